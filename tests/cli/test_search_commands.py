"""mmbert index and mmbert search as a person runs them, with the model that knows colours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from colours import NAMES, ColourModel, save_picture, write_metadata

from mmbert.cli import index as index_command
from mmbert.cli import search as search_command
from mmbert.cli.main import run


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> ColourModel:
    """What every model name stands for here."""
    model = ColourModel()
    for command in (index_command, search_command):
        monkeypatch.setattr(command, "load_model", lambda name, device=None, **_: model)
    return model


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``photos`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = []
    for number, (colour, names) in enumerate(NAMES.items()):
        save_picture(tmp_path / "photos" / f"{colour}.png", colour)
        save_picture(tmp_path / "photos" / f"dark-{colour}.png", f"dark {colour}")
        captions = {f"caption_{lang}": word for lang, word in names.items()}
        rows.append({"file_name": f"{colour}.png", **captions, "year": 2000 + number})
        rows.append({"file_name": f"dark-{colour}.png", "caption": f"[bold]dark {colour}", "year": 1990})
    write_metadata(tmp_path / "photos", rows)
    return tmp_path / "photos"


def test_index_then_search_without_options(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos"]) == 0
    said = capsys.readouterr()
    assert said.out == "mmbert-index: 12 added\n"
    assert 'mmbert search "what you look for"' in said.err

    assert run(["search", "dunkel grün"]) == 0
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines() if ".png" in line]
    assert lines[0][0] == "1"
    assert lines[0][4] == "dark-green.png"
    assert lines[0][5:] == ["[bold]dark", "green"]  # a caption is not markup
    assert len(lines) == 10
    assert said.err == ""


def test_search_as_json(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["added"], summary["unchanged"], summary["left_out"]) == (12, 0, [])
    assert run(["search", "أزرق", "--k", "2", "--where", "year >= 2000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == "أزرق"
    first, second = found["hits"]
    assert first["path"] == str(photos / "blue.png")
    assert first["captions"]["fr"] == ["bleu"]
    assert first["extra"]["year"] == 2002
    assert first["match"] > 0.9
    assert (first["rank"], second["rank"]) == (1, 2)


def test_an_image_is_the_query_by_option_or_by_its_name(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos"]) == 0
    capsys.readouterr()
    for args in (["photos/yellow.png"], ["--image", "photos/yellow.png"]):
        assert run(["search", *args, "--json", "-k", "2"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert {Path(hit["path"]).name for hit in found["hits"]} == {"yellow.png", "dark-yellow.png"}
        assert found["hits"][0]["match"] is None


def test_an_image_file_that_is_not_there_is_told(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos"]) == 0
    capsys.readouterr()
    assert run(["search", "no-such.png", "--json", "-k", "2"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["query"] == "no-such.png"
    assert said.err == "no image file no-such.png: searched as a text\n"
    assert run(["search", "photos/no-such.PNG"]) == 2
    said = capsys.readouterr().err
    assert "no image file photos/no-such.PNG\nhint: to look for these words, leave .PNG out\n" in said
    assert run(["search", "photos/no-such", "-k", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_text_and_image_together_and_the_next_page(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos"]) == 0
    capsys.readouterr()
    both = [
        "search",
        "red",
        "--image",
        "photos/blue.png",
        "--image-weight",
        "0.9",
        "--rerank",
        "0",
        "--json",
        "-k",
        "2",
    ]
    assert run(both) == 0
    first = json.loads(capsys.readouterr().out)["hits"]
    assert {Path(hit["path"]).name for hit in first} == {"blue.png", "dark-blue.png"}
    assert run([*both, "--offset", "2"]) == 0
    second = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["rank"] for hit in second] == [3, 4]
    assert not {hit["path"] for hit in first} & {hit["path"] for hit in second}


def test_images_that_look_the_same_are_listed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture(photos / "large red.png", "red", size=(60, 60))
    with (photos / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"file_name": "large red.png"}\n')
    assert run(["index", "photos"]) == 0
    capsys.readouterr()
    assert run(["search", "--duplicates", "--threshold", "0.999", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    reds = next(group for group in groups if "red" in group[0]["path"])
    assert Path(reds[0]["path"]).name == "large red.png"
    assert run(["search", "--duplicates", "--threshold", "0.999"]) == 0
    said = capsys.readouterr()
    assert f"{photos}/large red.png  60x60\n" in said.out
    assert "images more than needed" in said.err


def test_the_page_is_written(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos"]) == 0
    assert run(["search", "rot", "--html", "found.html"]) == 0
    assert capsys.readouterr().err.endswith("page: found.html\n")
    page = Path("found.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 10
    assert "http:" not in page
    assert "https:" not in page
    assert run(["search", "--image", "photos/red.png", "--html", "like.html"]) == 0
    assert Path("like.html").read_text(encoding="utf-8").count("<img ") == 11


def test_left_out_and_vanished_images_are_told(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos"]) == 0
    (photos / "red.png").write_bytes(b"")
    rows = (photos / "metadata.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (photos / "metadata.jsonl").write_text("".join(rows[:-1]), encoding="utf-8")
    capsys.readouterr()
    assert run(["index", "photos"]) == 2
    assert "metadata.jsonl:1" in capsys.readouterr().err
    assert run(["index", "photos", "--skip-bad"]) == 0
    said = capsys.readouterr()
    assert said.out == "mmbert-index: 10 unchanged, 1 left out\n"
    assert "left out: metadata.jsonl:1: " in said.err
    assert "1 indexed image gone from the folder or its metadata: --prune removes what is gone" in said.err
    assert run(["index", "photos", "--skip-bad", "--prune"]) == 0
    assert "1 removed" in capsys.readouterr().out


def test_a_picture_that_is_gone_is_a_warning(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "photos"]) == 0
    (photos / "red.png").unlink()
    capsys.readouterr()
    assert run(["search", "rot", "--k", "12", "--html", "found.html"]) == 0
    said = capsys.readouterr()
    assert "red.png: no such image file; not re-ranked" in said.err
    assert said.out.rstrip().splitlines()[-1].split()[:3:2] == ["12", "red.png"]
    assert "cannot be opened" in Path("found.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["search"], "give a text or an image"),
        (["search", "red", "--duplicates"], "--duplicates goes with"),
        (["search", "red", "--offset", "-1"], "offset -1"),
        (["search", "--duplicates", "--threshold", "2"], "no cosine is 2.0"),
        (["index", "photos", "--kind", "hnws"], "unknown kind of vector index 'hnws'"),
        (["search", "--image", "none.png"], "no image file none.png"),
        (["search", "--image", "photos/red.png", "--rerank", "5"], "only a text query can be re-ranked"),
        (["search", "red", "--index", "photos"], "is not an index"),
        (["search", "red", "--index", "nowhere"], "no such index"),
        (["search", "red", "--where", "colour = 1"], "cannot filter by 'colour = 1'"),
        (["search", "red", "--k", "0"], "cannot find 0 images"),
        (["search", ""], "the query is empty"),
        (["search", "red", "--html", "photos"], "photos is a folder"),
        (["search", "red", "--html", "none/found.html"], "there is no folder none"),
        (["index", "nowhere"], "no such folder"),
        (["index", "photos", "--out", "photos/red.png"], "is a file"),
        (["index", "photos", "--out", "photos"], "holds other files and no index"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(
    photos: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["index", "photos"]) == 0
    capsys.readouterr()
    assert run(args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    error, *hint = said.err.splitlines()
    assert error.startswith(f"mmbert: error: {message}")
    assert [line.partition(" ")[0] for line in hint] in ([], ["hint:"])


def test_the_name_of_a_model_folder_is_noted_for_any_current_folder(photos: Path) -> None:
    Path("runs/first").mkdir(parents=True)
    assert run(["index", "photos", "--model", "runs/first"]) == 0
    about = json.loads(Path("mmbert-index/mmbert-index.json").read_text(encoding="utf-8"))
    assert about["model"] == str(Path("runs/first").resolve())


@pytest.mark.parametrize("command", ["index", "search"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"  mmbert {command} " in capsys.readouterr().out


def test_what_the_metadata_leaves_out_is_told(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    write_metadata(photos, [row | {"width": 3, "height": 2} for row in rows[:-2]])
    assert run(["index", "photos"]) == 0
    said = capsys.readouterr()
    assert said.out == "mmbert-index: 10 added\n"
    assert "2 images of the folder not indexed: in no usable record of its metadata\n" in said.err
    assert "left out of the metadata: height, width (the index measures it itself)\n" in said.err
    assert run(["index", "photos", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["unlisted"], summary["measured"]) == (2, ["height", "width"])


def test_errors_about_one_row_or_image_name_the_option_that_leaves_it_out(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    write_metadata(photos, [rows[0] | {"caption_en": " "}, *rows[1:]])
    assert run(["index", "photos"]) == 2
    assert "hint: write one, or leave the cell out; --skip-bad goes on without it\n" in capsys.readouterr().err
    write_metadata(photos, rows)
    (photos / "red.png").write_bytes(b"no picture")
    assert run(["index", "photos"]) == 2
    assert capsys.readouterr().err.endswith("; --skip-bad goes on without it\n")
    assert run(["index", "nowhere"]) == 2
    assert "--skip-bad" not in capsys.readouterr().err  # it would not help
