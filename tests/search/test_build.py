"""Building an index and bringing it up to date: what is encoded, what readers see, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from colours import ColourModel, save_picture
from filelock import FileLock
from PIL import Image
from rays import stand_in_for_ray

from mmbert.errors import DataError, ImageError, IndexStoreError, UsageError
from mmbert.search import build
from mmbert.search.index import IndexSummary, SearchIndex, build_index


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def rewrite(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def names(index: SearchIndex) -> set[str]:
    return {Path(hit.path).stem for hit in index.search("red", k=100)}


def test_every_image_is_in_it(model: ColourModel, folder: Path, out: Path) -> None:
    summary = build_index(model, folder, out)
    assert summary == IndexSummary(added=12, unchanged=0, removed=0, failed=0)
    assert SearchIndex.open(out, model).count() == 12


def test_workers_of_a_cluster_make_the_same_index(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, theirs = ColourModel(), ColourModel()
    build_index(model, folder, out.with_name("alone"), keep_regions=True)
    model.images_encoded = 0
    monkeypatch.setattr(build, "LOT", 5)
    monkeypatch.setattr("mmbert.api.front_door.MMBert.from_pretrained", lambda name, int8: theirs)
    asked = stand_in_for_ray(monkeypatch)
    done = build_index(model, folder, out, keep_regions=True, ray_workers=2)
    assert done == IndexSummary(added=12, unchanged=0, removed=0, failed=0)
    assert asked == {"pieces": 3, "workers": 2}
    assert (model.images_encoded, theirs.images_encoded) == (0, 12)
    mine, other = SearchIndex.open(out, model), SearchIndex.open(out.with_name("alone"), model)
    assert mine.search("dunkel rot", k=12, rerank=4) == other.search("dunkel rot", k=12, rerank=4)
    save_picture(folder / "pictures/red.png", "blue")
    (folder / "pictures/broken.png").write_bytes(b"no image")
    rewrite(folder, [*rows_of(folder), {"file_name": "pictures/broken.png"}])
    done = build_index(model, folder, out, ray_workers=2, skip_bad=True)
    assert (done.added, done.updated, done.unchanged, done.failed) == (0, 1, 11, 1)
    with pytest.raises(ImageError, match="broken"):
        build_index(model, folder, out, ray_workers=2)


def test_workers_elsewhere_need_ray_and_a_model_with_a_name(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="Ray is not installed"):
        build_index(ColourModel(), folder, out, ray_workers=2)
    assert not out.exists()
    stand_in_for_ray(monkeypatch)
    with pytest.raises(UsageError, match="without a name"):
        build_index(ColourModel(name_or_path=""), folder, out, ray_workers=2)
    assert not out.exists()


def test_ray_itself_builds_an_index(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from mmbert import MMBert

    photos = tmp_path / "photos"
    photos.mkdir()
    for colour in ("red", "green", "blue"):
        save_picture(photos / f"{colour}.png", colour)
    model = MMBert.from_pretrained("starter")
    assert build_index(model, photos, tmp_path / "index", ray_workers=2).added == 3
    build_index(model, photos, tmp_path / "alone")
    mine, other = (SearchIndex.open(tmp_path / name, model) for name in ("index", "alone"))
    assert mine.search("green", k=3) == other.search("green", k=3)
    (photos / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="broken"):
        build_index(model, photos, tmp_path / "index", ray_workers=2)


def test_building_again_encodes_nothing(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    model.images_encoded = 0
    assert build_index(model, folder, out) == IndexSummary(added=0, unchanged=12, removed=0, failed=0)
    assert model.images_encoded == 0


def test_only_new_and_changed_images_are_encoded(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    save_picture(folder / "pictures/red.png", "blue")
    save_picture(folder / "pictures/new.png", "dark yellow")
    rewrite(folder, [*rows_of(folder), {"file_name": "pictures/new.png"}])
    model.images_encoded = 0

    assert build_index(model, folder, out) == IndexSummary(added=1, updated=1, unchanged=11, removed=0, failed=0)
    assert model.images_encoded == 2
    index = SearchIndex.open(out, model)
    assert index.count() == 13
    assert {Path(hit.path).stem for hit in index.search("blue", k=3)} == {"red", "blue", "dark-blue"}


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_images_that_only_pillow_finds_large_are_indexed_without_a_word(
    model: ColourModel, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert build_index(model, folder, out).added == 12
    (hit,) = SearchIndex.open(out, model).search("red", k=1)
    assert (hit.extra["width"], hit.extra["height"]) == (24, 24)


def test_a_file_with_another_time_and_the_same_bytes_is_unchanged(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    picture = folder / "pictures/red.png"
    picture.write_bytes(picture.read_bytes())
    assert build_index(model, folder, out).unchanged == 12


def test_changed_words_are_taken_over_without_encoding(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    rows = rows_of(folder)
    rows[0] |= {"caption_en": "a warm colour", "year": 1900}
    rewrite(folder, rows)
    model.images_encoded = 0

    assert build_index(model, folder, out) == IndexSummary(added=0, updated=1, unchanged=11, removed=0, failed=0)
    assert model.images_encoded == 0
    index = SearchIndex.open(out, model)
    (hit,) = index.search("red", k=5, where="year = 1900")
    assert hit.captions["en"] == ("a warm colour",)
    assert index.count() == 12


def test_sizes_in_metadata_do_not_take_the_place_of_measured_ones(model: ColourModel, folder: Path, out: Path) -> None:
    rewrite(folder, [row | {"width": "wide", "bytes": -1} for row in rows_of(folder)])
    assert build_index(model, folder, out).measured == ("bytes", "width")
    index = SearchIndex.open(out, model)
    assert (index.columns["width"], index.columns["bytes"]) == ("int64", "int64")
    (hit,) = index.search("red", k=1)
    assert (hit.extra["width"], hit.extra["bytes"]) == (24, Path(hit.path).stat().st_size)


def test_an_image_that_cannot_be_read_now_is_not_gone(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    (folder / "pictures/red.png").write_bytes(b"not a picture")
    found = build_index(model, folder, out, prune=True, skip_bad=True)
    assert (found.failed, found.removed, found.vanished) == (1, 0, 0)
    assert "red" in names(SearchIndex.open(out, model))


REFUSED_ROWS = {
    "an empty caption": '{"file_name": "pictures/red.png", "caption": " "}',
    "no JSON": '{"file_name": "pictures/red.png", "caption"',
    "no file name": '{"filename": "pictures/red.png"}',
}


@pytest.mark.parametrize("row", REFUSED_ROWS.values(), ids=REFUSED_ROWS)
def test_images_whose_rows_are_refused_are_not_gone(model: ColourModel, folder: Path, out: Path, row: str) -> None:
    build_index(model, folder, out)
    metadata = folder / "metadata.jsonl"
    first, second, *others = metadata.read_text(encoding="utf-8").splitlines(keepends=True)
    assert ["red.png" in line for line in (first, second)] == [True, True]
    metadata.write_text("".join([row, "\n", second, *others]), encoding="utf-8")
    (folder / "pictures/blue.png").unlink()
    found = build_index(model, folder, out, prune=True, skip_bad=True)
    assert (found.failed, found.removed, found.vanished) == (2, 1, 0)  # the row, and the row of the file that is gone
    assert names(SearchIndex.open(out, model)) >= {"red", "dark-red"}
    assert "blue" not in names(SearchIndex.open(out, model))


def test_of_a_corpus_that_has_records_refused_nothing_is_gone(model: ColourModel, folder: Path, out: Path) -> None:
    spec = f"{{source: joined, parts: ['{folder}']}}"
    build_index(model, spec, out)
    rows = rows_of(folder)
    rewrite(folder, [rows[0] | {"caption_en": ""}, *rows[2:]])
    assert build_index(model, spec, out, prune=True, skip_bad=True).removed == 0
    rewrite(folder, [rows[0], *rows[2:]])
    assert build_index(model, spec, out, prune=True, skip_bad=True).removed == 1


def test_an_image_that_lost_its_row_is_gone_though_another_row_is_refused(
    model: ColourModel, folder: Path, out: Path
) -> None:
    build_index(model, folder, out)
    rows = rows_of(folder)
    rewrite(folder, [rows[0] | {"caption_en": ""}, *rows[2:]])
    assert build_index(model, folder, out, prune=True, skip_bad=True).removed == 1
    assert "red" in names(SearchIndex.open(out, model))
    assert "dark-red" not in names(SearchIndex.open(out, model))


def test_images_that_are_gone_stay_until_pruned(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    rewrite(folder, rows_of(folder)[2:])  # red and dark red
    summary = IndexSummary(added=0, unchanged=10, removed=0, failed=0, vanished=2, unlisted=2)
    assert build_index(model, folder, out) == summary
    assert SearchIndex.open(out, model).count() == 12
    assert build_index(model, folder, out, prune=True) == replace(summary, removed=2, vanished=0)
    assert names(SearchIndex.open(out, model)) & {"red", "dark-red"} == set()
    assert SearchIndex.open(out, model).count() == 10


def test_metadata_columns_may_come_and_change_their_type(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    rows = rows_of(folder)
    for row in rows:
        row["stars"] = 4.5
    rows[0]["year"] = "unknown"  # the column is text now, for every row
    rewrite(folder, rows)
    model.images_encoded = 0
    assert build_index(model, folder, out).updated == 12
    assert model.images_encoded == 0

    index = SearchIndex.open(out, model)
    assert index.columns["year"] == "string"
    assert index.count("year = '2001'") == 2
    assert index.count("year = 'unknown'") == 1
    assert index.count("stars > 4") == 12


def test_metadata_of_several_types_become_columns(model: ColourModel, folder: Path, out: Path) -> None:
    rows = rows_of(folder)
    rows[0] |= {"good": True, "score": 1, "mixed": 1, "a.b": "dotted", "Größe x": "odd", "huge": 2**70}
    rows[1] |= {"good": False, "score": 0.5, "mixed": "two"}
    rewrite(folder, rows)
    build_index(model, folder, out)
    index = SearchIndex.open(out, model)
    kinds = {name: index.columns[name] for name in ("good", "score", "mixed", "a_b", "year", "width", "huge")}
    assert kinds == {
        "good": "bool", "score": "double", "mixed": "string", "a_b": "string", "year": "int64", "width": "int64",
        "huge": "string",
    }  # fmt: skip
    assert [index.count(where) for where in ("good", "not good", "score >= 1", "mixed = '1'", "`Größe x` = 'odd'")] == [
        1, 1, 1, 1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["vector", "mmbert_content", "_rowid", " "])
def test_a_column_that_the_index_needs_itself_is_refused(
    model: ColourModel, folder: Path, out: Path, name: str
) -> None:
    rows = rows_of(folder)
    rows[3][name] = "x"
    rewrite(folder, rows)
    with pytest.raises(DataError, match=rf"metadata.jsonl:4.*{name}.*rename"):
        build_index(model, folder, out)


def test_size_is_that_of_the_upright_image(model: ColourModel, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "turned"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 20), (220, 20, 20)).save(folder / "a.jpg", exif=exif)
    build_index(model, folder, out)
    (hit,) = SearchIndex.open(out, model).search("red")
    assert (hit.extra["width"], hit.extra["height"]) == (20, 40)
    assert hit.extra["bytes"] == (folder / "a.jpg").stat().st_size


def test_images_without_metadata_are_enough(model: ColourModel, tmp_path: Path, out: Path) -> None:
    save_picture(tmp_path / "bare" / "sub dir" / "it's red.png", "red")
    save_picture(tmp_path / "bare" / "grün.png", "green")
    assert build_index(model, tmp_path / "bare", out).added == 2
    best, _ = SearchIndex.open(out, model).search("أحمر")
    assert best.path == str(tmp_path / "bare" / "sub dir" / "it's red.png")
    assert best.captions == {}
    # A quote in a name is no SQL.
    (tmp_path / "bare" / "sub dir" / "it's red.png").unlink()
    assert build_index(model, tmp_path / "bare", out, prune=True).removed == 1


def test_rows_with_one_image_become_one_entry(model: ColourModel, folder: Path, out: Path) -> None:
    rows = rows_of(folder)
    more = {"file_name": rows[0]["file_name"], "caption_en": "scarlet", "caption_el": "κόκκινο"}
    rewrite(folder, [*rows, more])
    assert build_index(model, folder, out).added == 12
    (hit,) = SearchIndex.open(out, model).search("red", where="path = 'pictures/red.png'")
    assert hit.captions["en"] == ("red", "scarlet")
    assert hit.captions["el"] == ("κόκκινο",)


def test_a_corpus_without_files_keeps_its_images_in_the_index(model: ColourModel, out: Path) -> None:
    summary = build_index(model, "starter:validation/noto", out)
    assert summary.added > 10
    hit = SearchIndex.open(out, model).search("red", k=1)[0]
    assert hit.path.endswith("/noto")
    assert hit.image is not None
    assert hit.image.data is not None
    assert hit.extra["style"] == "noto"


def test_the_index_may_lie_inside_the_folder(model: ColourModel, folder: Path) -> None:
    build_index(model, folder, folder / "index")
    assert build_index(model, folder, folder / "index").unchanged == 12


# -- interrupted and concurrent builds ------------------------------------------------------------------------------


class Killed(ColourModel):
    """Dies after some images."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def encode_images(self, images, **options: object):  # type: ignore[no-untyped-def]
        if self.images_encoded >= self.after:
            raise KeyboardInterrupt
        return super().encode_images(images, **options)


def test_a_killed_first_build_is_no_index_yet_and_goes_on(
    model: ColourModel, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LOT", 5)
    with pytest.raises(KeyboardInterrupt):
        build_index(Killed(after=5), folder, out)
    with pytest.raises(IndexStoreError, match="not finished"):
        SearchIndex.open(out, model)
    build_index(model, folder, out)
    assert model.images_encoded == 7  # the first five had been written
    assert SearchIndex.open(out, model).count() == 12
    assert len(names(SearchIndex.open(out, model))) == 12


def test_readers_see_nothing_of_a_killed_update(
    model: ColourModel, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LOT", 5)
    build_index(model, folder, out)
    before = SearchIndex.open(out, model).search("red", k=20)
    for picture in (folder / "pictures").iterdir():
        save_picture(picture, "white", size=(30, 30))
    with pytest.raises(KeyboardInterrupt):
        build_index(Killed(after=5), folder, out)
    assert SearchIndex.open(out, model).search("red", k=20) == before

    summary = build_index(model, folder, out)
    assert (summary.updated, summary.unchanged) == (7, 5)
    assert {round(hit.score, 3) for hit in SearchIndex.open(out, model).search("white", k=20)} == {1.0}


def test_an_open_index_goes_on_reading_while_it_is_updated(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    opened = SearchIndex.open(out, model)
    before = opened.search("red", k=20)
    for picture in (folder / "pictures").iterdir():
        save_picture(picture, "white")
    build_index(model, folder, out)
    assert opened.search("red", k=20) == before
    assert SearchIndex.open(out, model).search("red", k=20) != before


def test_a_build_killed_while_it_made_the_table_is_started_over(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    shutil.rmtree(out / "images.lance" / "_versions")
    shutil.rmtree(out / "images.lance" / "_refs")
    with pytest.raises(IndexStoreError, match="not finished"):
        SearchIndex.open(out, model)
    assert build_index(model, folder, out).added == 12
    assert SearchIndex.open(out, model).count() == 12


def test_two_builds_at_once_are_refused(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    with FileLock(out / ".lock"), pytest.raises(IndexStoreError, match="another mmbert index is writing"):
        build_index(model, folder, out)
    build_index(model, folder, out)


def test_many_lots_are_put_together_in_the_end(
    model: ColourModel, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LOT", 1)
    build_index(model, folder, out)
    assert SearchIndex.open(out, model)._table.stats()["fragment_stats"]["num_fragments"] == 1


# -- what is refused ------------------------------------------------------------------------------------------------


def test_a_folder_without_images_is_refused(model: ColourModel, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(IndexStoreError, match="no images to index"):
        build_index(model, tmp_path / "empty", out)
    with pytest.raises(IndexStoreError, match="no images to index"):
        build_index(model, "starter:text", out)
    with pytest.raises(DataError, match="no such folder"):
        build_index(model, tmp_path / "nowhere", out)
    assert not out.exists()


def test_a_damaged_image_stops_the_build_or_is_skipped(model: ColourModel, folder: Path, out: Path) -> None:
    (folder / "pictures/red.png").write_bytes((folder / "pictures/red.png").read_bytes()[:40])
    (folder / "pictures/blue.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"metadata.jsonl:1"):
        build_index(model, folder, out)
    summary = build_index(model, folder, out, skip_bad=True)
    assert (summary.added, summary.failed) == (10, 2)
    assert [where for where, _ in summary.problems] == ["metadata.jsonl:1", "metadata.jsonl:5"]
    assert SearchIndex.open(out, model).count() == 10


def test_a_file_name_that_is_not_utf8_stops_the_build_or_is_skipped(
    model: ColourModel, folder: Path, out: Path
) -> None:
    (folder / "metadata.jsonl").unlink()
    try:
        shutil.copy(folder / "pictures/red.png", folder / "pictures" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    with pytest.raises(DataError, match="file name is not UTF-8"):
        build_index(model, folder, out)
    summary = build_index(model, folder, out, skip_bad=True)
    assert summary.problems == (("pictures/caf\\udce9.png", "file name is not UTF-8"),)


def test_nothing_usable_is_an_error(model: ColourModel, tmp_path: Path, out: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    with pytest.raises(IndexStoreError, match="none of the images can be used"):
        build_index(model, tmp_path / "bad", out, skip_bad=True)


def test_an_index_of_another_model_is_refused(model: ColourModel, folder: Path, out: Path) -> None:
    build_index(model, folder, out)
    other = ColourModel(fingerprint="colours-2")
    with pytest.raises(IndexStoreError, match="made by another model"):
        build_index(other, folder, out)
    with pytest.raises(IndexStoreError, match="made by another model"):
        SearchIndex.open(out, other)


def test_an_index_of_another_folder_is_refused_but_a_moved_folder_is_followed(
    model: ColourModel, folder: Path, out: Path, tmp_path: Path
) -> None:
    build_index(model, folder, out)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with pytest.raises(IndexStoreError, match=r"holds the images of .*photos"):
        build_index(model, copy, out)
    shutil.rmtree(folder)
    assert build_index(model, copy, out).unchanged == 12
    assert all(Path(hit.path).is_file() for hit in SearchIndex.open(out, model).search("red", k=20))


def test_a_folder_with_other_files_is_not_taken_for_an_index(model: ColourModel, folder: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("important")
    with pytest.raises(IndexStoreError, match="other files and no index"):
        build_index(model, folder, out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(IndexStoreError, match="is a file"):
        build_index(model, folder, out / "thesis.tex")


def test_vectors_that_are_not_numbers_are_refused(folder: Path, out: Path) -> None:
    class Diverged(ColourModel):
        def encode_images(self, images, **options: object):  # type: ignore[no-untyped-def]
            return super().encode_images(images) * float("nan")

    with pytest.raises(DataError, match="not numbers"):
        build_index(Diverged(), folder, out)
