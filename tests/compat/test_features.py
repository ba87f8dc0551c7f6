"""Old feature files of every format become the same regions; hostile ones are named, and nothing of them is run."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import encoded, old_image, old_json, write_zip

from mmbert.compat.feature_export import legacy_json, write_json_zip
from mmbert.compat.feature_values import regions_of, unpickled
from mmbert.compat.features import convert_features, open_features
from mmbert.data.archives import Archive, ArchivePath
from mmbert.data.records import BadRecords
from mmbert.errors import DataError, UsageError
from mmbert.vision.regions import Regions
from mmbert.vision.store import RegionStore

LEGACY = Path(__file__).parents[2].parent / "shared" / "data" / "legacy"
KEYS = ["101", "102", "103"]
IMAGES = {key: old_image(i, count=2 + i) for i, key in enumerate(KEYS)}
needs_legacy = pytest.mark.skipif(not LEGACY.is_dir(), reason="../shared/data/legacy is not here")


def as_originals_read(values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, features and classes by highest class score, the whole image with the mean feature first."""
    order = sorted(range(values["num_boxes"]), key=lambda i: -values["classes"][i].max())
    boxes = [[0, 0, values["image_w"] - 1, values["image_h"] - 1], *(values["boxes"][i].tolist() for i in order)]
    features = np.stack([values["features"].mean(0), *(values["features"][i] for i in order)])
    return np.array(boxes, np.float32), features, values["classes"][order]


def check(found: Regions, values: dict[str, Any], classes: bool = True) -> None:
    boxes, features, shares = as_originals_read(values)
    if not classes:  # without scores there is no order to bring them into
        boxes[1:], features[1:] = values["boxes"], values["features"]
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-6)
    np.testing.assert_allclose(found.features, features, rtol=1e-6)
    if classes:
        assert found.classes is not None
        np.testing.assert_allclose(found.classes[1:], shares, rtol=1e-6)
    assert found.size == (values["image_w"], values["image_h"])


def converted(source: Path, out: Path, **options: Any) -> RegionStore:
    convert_features(source, out, dtype="fp32", top_k=100, shard_images=2, **options)
    return RegionStore(out)


def json_zip(folder: Path) -> Path:
    return write_zip(folder / "frcnn.zip", {f"{k}.json": old_json(v, image_id=int(k)) for k, v in IMAGES.items()})


def json_folder(folder: Path) -> Path:
    for key, values in IMAGES.items():
        (folder / f"{key}.json").write_text(old_json(values))
    return folder


def annotations(folder: Path) -> Path:
    json_zip(folder)
    rows = [{"image": f"images.zip@/{k}.jpg", "frcnn": f"frcnn.zip@/{k}.json", "caption": "a dog"} for k in KEYS]
    (folder / "train.json").write_text("\n".join(map(json.dumps, rows)))
    return folder / "train.json"


def annotations_unpacked(folder: Path) -> Path:
    path = annotations(folder)
    with zipfile.ZipFile(folder / "frcnn.zip") as archive:
        archive.extractall(folder / "frcnn")
    (folder / "frcnn.zip").unlink()
    return path


def numpy_dictionaries(folder: Path) -> Path:
    for key, values in IMAGES.items():
        np.save(folder / f"{key}.npy", values, allow_pickle=True)  # type: ignore[arg-type]
    return folder


def mmf_pairs(folder: Path) -> Path:
    names = {"boxes": "bbox", "classes": "cls_prob", "image_w": "image_width", "image_h": "image_height"}
    for key, values in IMAGES.items():
        np.save(folder / f"{key}.npy", values["features"])
        info = {names.get(name, name): value for name, value in values.items() if name != "features"}
        np.save(folder / f"{key}_info.npy", info, allow_pickle=True)  # type: ignore[arg-type]
    return folder


def npz(folder: Path) -> Path:
    for key, values in IMAGES.items():
        np.savez(folder / f"{key}.npz", **values)
    return folder


def hdf5_groups(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "f.h5", "w") as file:
        for key, values in IMAGES.items():
            group = file.create_group(key)
            group.attrs.update({n: v for n, v in values.items() if isinstance(v, int)})
            for name in ("features", "classes"):
                group[name] = values[name]
            group["bbox"] = values["boxes"]
    return folder / "f.h5"


def hdf5_arrays(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "f.h5", "w") as file:
        file["image_ids"] = np.array(KEYS, dtype="S8")
        for name in ("image_w", "image_h", "num_boxes"):
            file[name] = np.array([values[name] for values in IMAGES.values()])
        for name in ("boxes", "features", "classes"):
            width = next(iter(IMAGES.values()))[name].shape[1]
            padded = np.zeros((3, 10, width), np.float32)
            for i, values in enumerate(IMAGES.values()):
                padded[i, : values["num_boxes"]] = values[name]
            file[name] = padded
    return folder / "f.h5"


def lmdb_of(folder: Path) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / "f.lmdb"), map_size=1 << 20) as database, database.begin(write=True) as transaction:
        for key, values in IMAGES.items():
            transaction.put(key.encode(), pickle.dumps(values, protocol=2 if key == "101" else 5))
        transaction.put(b"keys", pickle.dumps([key.encode() for key in KEYS]))
    return folder / "f.lmdb"


def saved_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image_id": k} | {n: getattr(v, "tolist", lambda v=v: v)() for n, v in x.items()} for k, x in IMAGES.items()
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "set"))
    return folder / "set"


FORMATS = [
    json_zip, json_folder, annotations, annotations_unpacked, numpy_dictionaries, mmf_pairs, npz, hdf5_groups,
    hdf5_arrays, lmdb_of, saved_dataset,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS, ids=lambda f: f.__name__)
def test_every_format_becomes_the_same_regions(tmp_path: Path, write: Any) -> None:
    (tmp_path / "old").mkdir()
    store = converted(write(tmp_path / "old"), tmp_path / "store")
    assert sorted(store.keys) == KEYS
    for key, values in IMAGES.items():
        check(store.regions(key), values)
    assert store.layout.encoder == "legacy:6x5"


def test_bottom_up_tables_have_no_classes_and_keep_their_order(tmp_path: Path) -> None:
    lines = []
    for key, v in IMAGES.items():
        cells = [key, v["image_w"], v["image_h"], v["num_boxes"], encoded(v["boxes"]), encoded(v["features"])]
        lines.append("\t".join(map(str, cells)))
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    store = converted(tmp_path / "t.tsv", tmp_path / "store", encoder="bottom-up")
    assert store.keys == KEYS and store.layout.num_classes == 0
    for key, values in IMAGES.items():
        check(store.regions(key), values, classes=False)
    assert store.regions("101").encoder == "bottom-up"


def test_back_and_forth_changes_nothing(tmp_path: Path) -> None:
    store = converted(json_zip(tmp_path), tmp_path / "store")
    assert write_json_zip(store, tmp_path / "back.zip") == 3
    again = converted(tmp_path / "back.zip", tmp_path / "again")
    for key in KEYS:
        for name in ("boxes", "features", "classes"):
            np.testing.assert_array_equal(getattr(again.regions(key), name), getattr(store.regions(key), name))
    content = json.loads(zipfile.ZipFile(tmp_path / "back.zip").read("101.json"))
    assert content["image_id"] == 101 and content["num_boxes"] == 2
    assert np.frombuffer(base64.b64decode(content["features"]), "<f4").shape == (12,)
    assert (tmp_path / "back.zip").read_bytes() and not list(tmp_path.glob(".*partial"))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_the_json_of_any_image_is_read_back(seed: int, count: int) -> None:
    values = old_image(seed, count)
    regions = regions_of(values, "x", "e")
    again = regions_of(json.loads(json.dumps(legacy_json("x.jpg", regions))), "x", "e")
    np.testing.assert_array_equal(again.boxes, regions.boxes)
    np.testing.assert_array_equal(again.features[1:], regions.features[1:])


@needs_legacy
@pytest.mark.parametrize("name", ["multi30k_val_40.json", "frcnn_val.zip"])
def test_the_published_format_is_read(tmp_path: Path, name: str) -> None:
    convert_features(LEGACY / name, tmp_path / "s", dtype="fp16")
    store = RegionStore(tmp_path / "s")
    with zipfile.ZipFile(LEGACY / "frcnn_val.zip") as archive:
        assert len(store) == 40
        assert store.manifest.regions == 225 + 40
        for member in archive.namelist()[:5]:
            raw = json.loads(archive.read(member))
            arrays = {
                n: np.frombuffer(base64.b64decode(raw[n]), "<f4").reshape(raw["num_boxes"], -1)
                for n in ("boxes", "features", "classes")
            }
            boxes, features, shares = as_originals_read(raw | arrays)
            found = store.regions(member.removesuffix(".json"))
            np.testing.assert_allclose(found.boxes, boxes)
            np.testing.assert_allclose(found.features, features, rtol=1e-3, atol=1e-4)
            assert found.classes is not None
            assert (found.classes[1:].argmax(1) == shares.argmax(1)).all()
            np.testing.assert_allclose(found.classes[1:].sum(1), 1, atol=5e-3)
    old = (LEGACY / "frcnn_val.zip").stat().st_size
    assert sum(p.stat().st_size for p in (tmp_path / "s").rglob("*") if p.is_file()) < 0.4 * old


# -- hostile and damaged files ----------------------------------------------------------------------------------------


def broken(**changes: Any) -> dict[str, Any]:
    return old_image(0) | changes


NAN = np.full((3, 6), np.nan, np.float32)
FAULTS: list[tuple[dict[str, Any], str]] = [
    (broken(features=NAN), "features are not finite"),
    (broken(boxes=np.full((3, 4), np.inf, np.float32)), "boxes are not finite"),
    (broken(classes=np.full((3, 5), np.nan, np.float32)), "classes are not finite"),
    (broken(boxes=np.array([[0, 0, 500, 20]] * 3, np.float32)), "not inside the image of 80x60"),
    (broken(boxes=np.array([[-50, 0, 5, 20]] * 3, np.float32)), "not inside the image"),
    (broken(boxes=np.array([[30, 0, 5, 20]] * 3, np.float32)), "not inside the image"),
    (broken(num_boxes=-3), "-3 boxes"),
    (broken(num_boxes=0), "0 boxes"),
    (broken(num_boxes=10**12), "1000000000000 boxes"),
    (broken(num_boxes="three"), "number of boxes is not a whole number"),
    (broken(num_boxes=1.5), "not a whole number"),
    (broken(num_boxes=5), "do not fit 5 boxes"),
    (broken(image_w=0), "width 0"),
    (broken(image_h=-1), "height -1"),
    (broken(image_w=float("nan")), "width is not a whole number"),
    (broken(image_w=10**30), "is no size of an image"),
    ({k: v for k, v in old_image(0).items() if k != "image_w"}, "width of the image is missing"),
    ({k: v for k, v in old_image(0).items() if k != "features"}, "features are missing"),
    (broken(features="not base64!"), "features cannot be read"),
    (broken(features=encoded(old_image(0)["features"])[:-4]), "features"),
    (broken(features="AAA"), "features cannot be read"),
    (broken(features=[["x"]]), "features cannot be read"),
    (broken(features={"a": 1}), "features cannot be read"),
    (broken(classes=np.full((3, 5), 7, np.float32)), "not shares between 0 and 1"),
    (broken(boxes=np.zeros((3, 2), np.float32)), "four numbers"),
]


@pytest.mark.parametrize(("values", "message"), FAULTS, ids=[m for _, m in FAULTS])
def test_values_that_make_no_sense_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        regions_of(values, "a.zip@/7.json", "e")
    assert caught.value.where == "a.zip@/7.json"


def test_bad_images_stop_a_conversion_or_are_counted(tmp_path: Path) -> None:
    members = {f"{k}.json": old_json(v) for k, v in IMAGES.items()}
    members |= {"nan.json": old_json(broken(features=NAN)), "cut.json": old_json(old_image(1))[:50], "list.json": "[1]"}
    source = write_zip(tmp_path / "f.zip", members)
    with pytest.raises(DataError, match=r"f\.zip@/cut\.json: not JSON"):
        convert_features(source, tmp_path / "strict")
    report = convert_features(source, tmp_path / "s", skip_bad=True)
    assert report.images == 3 and report.complete
    assert [where.rpartition("/")[2] for where, _ in report.left_out] == ["cut.json", "list.json", "nan.json"]
    assert sorted(RegionStore(tmp_path / "s").keys) == KEYS


def test_an_archive_that_unpacks_to_an_absurd_size_is_refused(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "b.zip", {"1.json": " " * (8 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="unpacks to 8388608 bytes"):
        Archive(source).read("1.json")


def test_a_size_that_the_archive_lies_about_is_noticed(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "b.zip", {"1.json": " " * 5000}, zipfile.ZIP_DEFLATED)
    raw = source.read_bytes()
    source.write_bytes(raw.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match=r"b\.zip@/1\.json"):
        Archive(source).read("1.json")


@pytest.mark.parametrize("name", ["../1.json", "/etc/1.json", "a/../../1.json", "c:1.json"])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    source = write_zip(tmp_path / "t.zip", {name: "{}"})
    with pytest.raises(DataError, match="leads out of its folder"):
        open_features(source, BadRecords())
    with pytest.raises(DataError, match="leads out of its folder"):
        ArchivePath.parse(f"t.zip@/{name.lstrip('/')}" if not name.startswith("/") else f"t.zip@//{name}")


def test_a_zip_that_is_cut_short_is_named(tmp_path: Path) -> None:
    source = json_zip(tmp_path)
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"frcnn\.zip: not a zip, or cut short"):
        open_features(source, BadRecords())


class Evil:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    evil = pickle.dumps({"features": Evil(target)})
    with pytest.raises(DataError, match="could run code"):
        unpickled(evil, "x")
    file = io.BytesIO()
    np.save(file, np.array({"features": Evil(target)}, dtype=object), allow_pickle=True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "1.npy").write_bytes(file.getvalue())
    with pytest.raises(DataError, match=r"1\.npy: .*could run code"):
        convert_features(tmp_path / "old", tmp_path / "s")
    assert not target.exists()


def test_a_pickle_cannot_ask_for_any_memory() -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1000000000000L\ntS'b'\ntR."
    with pytest.raises(DataError, match="numpy did not write"):
        unpickled(array, "x")


def test_an_npy_that_is_cut_short_is_named(tmp_path: Path) -> None:
    source = numpy_dictionaries(tmp_path)
    np.save(source / "101.npy", np.ones((3, 6), np.float32))
    (source / "101.npy").write_bytes((source / "101.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match=r"101\.npy: not an \.npy file, or cut short"):
        convert_features(source, tmp_path / "s")


def test_an_hdf5_file_that_links_elsewhere_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["101"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(DataError, match="link to another file"):
        open_features(tmp_path / "l.h5", BadRecords())


@pytest.mark.parametrize(("name", "content"), [("a.h5", b"x" * 99), ("a.tsv", b"no columns\n"), ("a.json", b"{\n")])
def test_files_of_another_kind_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        convert_features(tmp_path / name, tmp_path / "s")
    (tmp_path / "a.xyz").touch()
    with pytest.raises(DataError, match="no feature file that is known"):
        open_features(tmp_path / "a.xyz", BadRecords())


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for library, name in (("h5py", "a.h5"), ("lmdb", "a.lmdb")):
        (tmp_path / name).touch()
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UsageError, match=r"mm-bert\[features\]"):
            open_features(tmp_path / name, BadRecords())


def test_a_folder_with_an_annotation_file_says_to_give_that(tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text('{"image": "a"}\n{"image": "b"}\n')
    with pytest.raises(DataError, match="give it by itself"):
        converted(tmp_path, tmp_path / "out.regions")
