"""mmbert features as a person runs it: extract, look, use it for evaluation, convert there and back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import save_folder
from PIL import Image
from rays import stand_in_for_ray
from stores import old_image, old_json, write_zip

from mmbert import MMBert
from mmbert.api.features import Job, extract_with_ray, open_encoder
from mmbert.cli.main import run
from mmbert.data.records import ImageRef
from mmbert.errors import CheckpointError, ConfigError, UsageError
from mmbert.training.run import TrainingResult
from mmbert.vision.images import load_image
from mmbert.vision.store import RegionStore

ENCODER = "grid:test_vit,image_size=160"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    save_folder(tmp_path / "photos", 7)
    return tmp_path / "photos"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_extraction_by_an_encoders_name(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--encoder", ENCODER, "--shard-images", "3", "--dtype", "fp32", "--json")
    assert run(["features", "extract", "photos", "--out", "one", *options]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["images"], made["known"], made["complete"], made["left_out"]) == (7, 0, True, [])
    for part in ("2/2", "1/2"):
        assert run(["features", "extract", "photos", "--out", "two", *options, "--shard", part]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["complete"]
    assert files(photos.parent / "one") == files(photos.parent / "two")

    store = RegionStore("one")
    encoder = open_encoder(ENCODER, "cpu")
    assert store.layout.encoder == encoder.identity
    key = store.keys[2]
    wanted = encoder.extract([load_image(photos / key)])[0]
    np.testing.assert_allclose(store.regions(key).features, wanted.features, rtol=1e-4, atol=1e-5)

    assert run(["features", "info", "one", "--verify"]) == 0
    said = capsys.readouterr().out
    assert store.layout.encoder in said and "in 3 files" in said and "right" in said
    assert run(["features", "extract", "photos", "--out", "one", "--encoder", "grid:test_vit,image_size=96"]) == 2
    assert "the store has encoder" in capsys.readouterr().err


def test_a_part_that_is_started_again_says_what_is_still_to_do(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad image that was left out is tried again by the part whose turn it is; the store can be read all along."""
    (photos / "metadata.jsonl").unlink()
    (photos / "broken.png").write_bytes(b"x")
    options = ["-e", ENCODER, "-o", "s", "--device", "cpu", "--shard-images", "3", "--skip-bad"]
    command = ["features", "extract", "photos", *options]
    assert run([*command, "--shard", "1/2"]) == 0
    assert "the other parts are not done yet (3 images); the store can be read when" in capsys.readouterr().err
    assert run([*command, "--shard", "2/2"]) == 0
    assert "parts" not in capsys.readouterr().err
    assert run([*command, "--shard", "1/2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "s: 0 images with 0 regions added, 7 were there already\n"
    wanted = "the store can be read; other parts are to try 1 image that it lacks: left out before, or new"
    assert printed.err.splitlines() == [wanted]
    assert len(RegionStore("s").keys) == 7
    assert run([*command, "--shard", "1/2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["complete"], made["readable"], made["waiting"]) == (False, True, 1)
    assert run([*command, "--shard", "2/2"]) == 0
    assert "broken.png" in capsys.readouterr().err


def test_a_models_encoder_gives_what_the_model_computes_from_pixels(
    photos: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"x")
    extract = [
        "features",
        "extract",
        "photos",
        "-e",
        str(model_folder),
        "-o",
        "s",
        "--dtype",
        "fp32",
        "--device",
        "cpu",
    ]
    assert run(extract) == 0  # the metadata does not list it
    (photos / "metadata.jsonl").unlink()
    assert run([*extract, "--skip-bad", "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made["images"], made["known"]) == (0, 7)
    assert [item["where"] for item in made["left_out"]] == ["broken.png"]
    assert run(extract) == 2
    assert "broken.png" in capsys.readouterr().err

    from mmbert.data.region_input import RegionInput

    model = MMBert.from_pretrained(model_folder, device="cpu")
    keys = RegionStore("s").keys[:3]
    seen = model.encode_images([ImageRef(path=str(photos / key), key=key) for key in keys])
    model.model.requires_grad_(False)
    model.use_regions(RegionInput("s"))
    np.testing.assert_allclose(model.encode_images([ImageRef(data=b"", key=key) for key in keys]), seen, atol=2e-3)


def test_evaluation_looks_images_up(photos: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["features", "extract", "photos", "-e", str(model_folder), "-o", "s"]) == 0
    for picture in photos.glob("*.png"):
        picture.write_bytes(b"gone")
    arguments = ["evaluate", "retrieval", "--data", "photos", "--model", str(model_folder), "--features", "s", "--json"]
    capsys.readouterr()
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 7


def test_a_report_looks_images_up_where_its_run_did_or_where_it_is_told(
    photos: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["features", "extract", "photos", "-e", str(model_folder), "-o", "s"]) == 0
    for picture in photos.glob("*.png"):
        picture.write_bytes(b"gone")
    shutil.copytree(model_folder, "run/best")
    Path("run/log.jsonl").write_text('{"step": 1, "loss": 4.0}\n{"step": 2, "loss": 3.0}\n')
    Path("run/metrics.json").write_text('{"data": "photos"}')
    Path("run/recipe.yaml").write_text("features: s\n")
    told = ["report", "run", "--data", "photos", "--map", "pca"]
    assert run(told) == 2  # the run's stores are those of its own data
    assert "not an image" in capsys.readouterr().err
    assert run([*told, "--features", "s"]) == 0
    assert run(["report", "run", "--map", "pca", "--out", "again.html"]) == 0
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "Recall by language" in page
    assert "Recall by language" in Path("again.html").read_text(encoding="utf-8")


def test_training_is_told_which_store_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def trained(recipe: Any, out: Path, **options: Any) -> TrainingResult:
        asked.append(recipe)
        return TrainingResult(out, out / "last", {}, 0.0, [])

    monkeypatch.setattr("mmbert.training.run.train", trained)
    assert run(["train", "pretraining-regions", "--data", "x.json", "--features", "x.regions"]) == 0
    assert run(["train", "pretraining-regions", "--data", "x.json", "features=[a, b]"]) == 0
    assert [recipe.features for recipe in asked] == ["x.regions", ["a", "b"]]
    assert asked[0].model.config["vision"] is None and asked[0].model.backbone_weights is None
    assert asked[0].components["captions"].options == {"max_positions": 64}


def test_there_and_back(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {f"{i}.json": old_json(old_image(i)) for i in range(4)} | {"bad.json": "{"}
    write_zip(Path("old.zip"), members)
    convert = ["features", "convert", "old.zip", "--out", "s", "--dtype", "fp32", "--top-k", "5"]
    assert run(convert) == 2
    assert "old.zip@/bad.json" in capsys.readouterr().err
    assert run([*convert, "--skip-bad", "--name", "frcnn"]) == 0  # nothing was done under the other name
    assert "left out: old.zip@/bad.json: not JSON" in capsys.readouterr().err
    assert run([*convert, "--skip-bad"]) == 2
    assert "the store has encoder frcnn, not legacy:" in capsys.readouterr().err
    assert run(["features", "convert", "s", "--to", "vlbert-json", "--out", "back.zip"]) == 0
    assert "back.zip: 4 images" in capsys.readouterr().out
    assert run(["features", "convert", "back.zip", "--out", "again", "--dtype", "fp32", "--top-k", "5"]) == 0
    for key in ("0", "3"):
        np.testing.assert_array_equal(
            RegionStore("again").regions(key).features, RegionStore("s").regions(key).features
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "photos", "-e", ENCODER, "-o", "s", "--dtype", "fp8"], "cannot keep features as 'fp8'"),
        (["extract", "photos", "-e", ENCODER, "-o", "s", "--shard", "0/3"], "there is no part 0 of 3"),
        (["extract", "photos", "-e", ENCODER, "-o", "s", "--shard", "a"], "is not I/N"),
        (["extract", "photos", "-e", ENCODER, "-o", "s", "--shard", "1/2", "--workers", "2"], "does not go with"),
        (["extract", "photos", "-e", "gird:x", "-o", "s"], "did you mean 'grid'?"),
        (["extract", "photos", "-e", "nowhere", "-o", "s"], "no such model"),
        (["extract", "nowhere", "-e", ENCODER, "-o", "s"], "no such folder"),
        (["extract", "photos", "-e", ENCODER, "-o", "odd://x"], "no such file system"),
        (["convert", "photos", "-o", "s", "--to", "x"], "cannot convert to 'x'"),
        (["convert", "nowhere.zip", "-o", "s"], "no such file or folder"),
        (["info", "photos"], "no region store here"),
    ],
)
def test_wrong_usage_is_said(photos: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["features", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("s").exists()


def test_options_of_an_encoder_are_read_as_yaml() -> None:
    encoder = open_encoder("grid:test_vit,image_size=160,mean=[0.5, 0.5, 0.5],classes=true", "cpu")
    assert dict(encoder.options) == {"backbone": "test_vit", "image_size": 160, "mean": [0.5] * 3, "classes": True}
    assert open_encoder(ENCODER, "cpu").identity == open_encoder(ENCODER, "cpu").identity
    for wrong, error in (
        ("grid:test_vit,image_size=[1", ConfigError),
        ("grid:test_vit,weights=no.pth", CheckpointError),
    ):
        with pytest.raises(error):
            open_encoder(wrong, "cpu")


def test_the_encoder_of_a_model_takes_options_that_leave_its_weights_alone() -> None:
    own, larger = open_encoder("starter", "cpu"), open_encoder("starter,image_size=128", "cpu")
    assert dict(larger.options) == {**own.options, "image_size": 128}
    assert larger.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in larger.state_dict().items())
    assert larger.identity != own.identity
    image = Image.new("RGB", (128, 128), "red")
    assert [len(encoder.extract([image])[0].boxes) for encoder in (own, larger)] == [1 + 3 * 3, 1 + 4 * 4]
    with pytest.raises(ConfigError, match="do not fit"):
        open_encoder("starter,backbone=tf_efficientnet_lite1", "cpu")


def test_the_weights_of_an_encoder_are_loaded(tmp_path: Path) -> None:
    from mmbert.vision.encoders import grid

    torch.manual_seed(5)
    trained = grid.build(backbone="test_vit", image_size=160)
    torch.save(trained.backbone.state_dict(), tmp_path / "w.pth")
    found = open_encoder(f"{ENCODER},weights={tmp_path / 'w.pth'}", "cpu")
    assert found.identity == trained.identity != open_encoder(ENCODER, "cpu").identity


def test_ray_shares_the_shards_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(str(photos), ENCODER, "shared", shard_images=2, device="cpu")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"mm-bert\[ray\]"):
        extract_with_ray(job, 2)
    made = stand_in_for_ray(monkeypatch)
    report = extract_with_ray(job, 2)
    assert made == {"workers": 2, "pieces": 4}
    assert (report.images, report.complete) == (7, True)
    assert run(["features", "extract", str(photos), "-e", ENCODER, "-o", "alone", "--shard-images", "2"]) == 0
    assert files(Path("shared")) == files(Path("alone"))


@pytest.mark.slow
def test_processes_share_the_work(photos: Path) -> None:
    options = ["-e", ENCODER, "--shard-images", "2", "--device", "cpu", "--threads", "1"]
    assert run(["features", "extract", "photos", "-o", "workers", *options, "--workers", "2"]) == 0
    assert run(["features", "extract", "photos", "-o", "alone", *options]) == 0
    assert RegionStore("workers").keys == RegionStore("alone").keys
    for key in RegionStore("alone").keys:
        np.testing.assert_allclose(
            RegionStore("workers").regions(key).features, RegionStore("alone").regions(key).features, atol=1e-3
        )
