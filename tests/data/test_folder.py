"""A user's own folder: the same records from every format, and every fault named with its place."""

from __future__ import annotations

import csv
import json
import os
import string
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmbert.data.check import check
from mmbert.data.records import BadRecords, Record, RegionBox
from mmbert.data.sources import open_data
from mmbert.errors import DataError, ImageError

Rows = Sequence[dict[str, Any]]


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (200, 10, 10)).save(path)
    return path


def write_jsonl(root: Path, rows: Rows) -> None:
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(root: Path, rows: Rows) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for row in rows:
            cells = [row.get(column, "") for column in columns]
            table.writerow(json.dumps(cell) if isinstance(cell, (list, dict)) else cell for cell in cells)


def write_parquet(root: Path, rows: Rows) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    plain = [{column: row.get(column) for column in columns} for row in rows]
    for column in columns:  # Parquet wants one type in a column
        if any(isinstance(row[column], list) for row in plain):
            for row in plain:
                row[column] = [row[column]] if isinstance(row[column], str) else row[column]
    pq.write_table(pa.Table.from_pylist(plain), root / "metadata.parquet")


WRITERS: dict[str, Callable[[Path, Rows], None]] = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def read(root: Path, **options: Any) -> list[Record]:
    source = open_data({"source": "folder", "root": root, **options})
    return [source[i] for i in range(len(source))]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg", "below/c.png"):
        picture(tmp_path / name)
    return tmp_path


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[[Path, Rows], None]:
    return WRITERS[request.param]


# -- what a folder says -------------------------------------------------------------------------------------------


def test_captions_of_all_kinds(photos: Path, write: Callable[[Path, Rows], None]) -> None:
    write(
        photos,
        [
            {
                "file_name": "a.png",
                "caption": "a dog",
                "caption_de": "ein Hund",
                "year": 2019,
                "weight": 1.5,
                "id": "x",
            },
            {"file_name": "b.jpg", "caption": ["a cat", "the cat"], "split": "test", "year": 2020},
            {"file_name": "below/c.png", "captions": {"en": "a cow", "pt_BR": ["vaca", "a vaca"]}, "place": "Köln"},
        ],
    )
    dog, cat, cow = read(photos)
    assert dog.id == "x"
    assert dog.captions == {"und": ("a dog",), "de": ("ein Hund",)}
    assert dog.extra == {"year": 2019, "weight": 1.5}
    assert dog.split is None
    assert dog.group == "a.png"
    assert dog.origin.startswith("metadata.")
    assert dog.image is not None
    assert (dog.image.path, dog.image.key) == (str(photos / "a.png"), "a.png")
    assert cat.id == "b.jpg"
    assert cat.captions == {"und": ("a cat", "the cat")}
    assert cat.split == "test"
    assert cow.captions == {"en": ("a cow",), "pt-BR": ("vaca", "a vaca")}
    assert cow.extra == {"place": "Köln"}


def test_parallel_text_without_images(tmp_path: Path, write: Callable[[Path, Rows], None]) -> None:
    write(
        tmp_path, [{"text_en": "one", "text_de": "eins", "topic": "numbers"}, {"text_en": "two", "text_zh-Hant": "二"}]
    )
    one, two = read(tmp_path)
    assert one.image is None
    assert one.captions == {"en": ("one",), "de": ("eins",)}
    assert one.texts == {}
    assert one.extra == {"topic": "numbers"}
    assert two.captions == {"en": ("two",), "zh-Hant": ("二",)}
    assert one.id != two.id


def test_text_beside_an_image_is_not_a_caption(photos: Path) -> None:
    write_jsonl(photos, [{"file_name": "a.png", "caption_en": "a dog", "text_en": "seen in May"}])
    (record,) = read(photos)
    assert record.captions == {"en": ("a dog",)}
    assert record.texts == {"en": ("seen in May",)}


def test_a_folder_without_metadata_gives_its_images(photos: Path) -> None:
    picture(photos / ".hidden.png")
    picture(photos / ".cache" / "d.png")
    (photos / "notes.txt").write_text("no image")
    found = read(photos)
    assert [record.id for record in found] == ["a.png", "b.jpg", "below/c.png"]
    assert all(record.captions == {} and record.image is not None for record in found)


def test_metadata_in_a_folder_below_names_images_relative_to_itself(photos: Path) -> None:
    write_jsonl(photos / "below", [{"file_name": "c.png", "caption": "a cow"}, {"file_name": "../a.png"}])
    write_csv(photos, [{"file_name": "b.jpg", "caption": "a cat"}])
    assert [(r.id, r.origin) for r in read(photos)] == [
        ("below/c.png", "below/metadata.jsonl:1"),
        ("a.png", "below/metadata.jsonl:2"),
        ("b.jpg", "metadata.csv:2"),
    ]


def test_several_rows_for_one_image_are_several_records_of_one_group(photos: Path) -> None:
    write_csv(photos, [{"file_name": "a.png", "caption": "a dog"}, {"file_name": "a.png", "caption": "my dog"}])
    first, second = read(photos)
    assert (first.id, second.id) == ("a.png", "a.png#2")
    assert first.group == second.group == "a.png"
    assert first.image == second.image


def test_groups_are_words_or_numbers(photos: Path, write: Callable[[Path, Rows], None]) -> None:
    write(
        photos, [{"file_name": "a.png", "group": 7}, {"file_name": "b.jpg", "group": 7}, {"text_en": "x", "group": 8}]
    )
    assert [record.group for record in read(photos)] == ["7", "7", "8"]


def test_a_group_in_csv_keeps_its_zeros(photos: Path) -> None:
    (photos / "metadata.csv").write_text("file_name,group\na.png,007\nb.jpg,\n")
    assert [record.group for record in read(photos)] == ["007", "b.jpg"]


def test_folders_named_like_splits_give_the_split(tmp_path: Path) -> None:
    for name in ("train/a.png", "test/b.png", "other/c.png"):
        picture(tmp_path / name)
    assert {r.id: r.split for r in read(tmp_path)} == {
        "train/a.png": "train",
        "test/b.png": "test",
        "other/c.png": None,
    }
    write_jsonl(tmp_path / "train", [{"file_name": "a.png", "caption": "x"}, {"file_name": "a.png", "split": "dev"}])
    assert [r.split for r in read(tmp_path)] == ["train", "dev"]


def test_only_one_split_or_some_languages(photos: Path) -> None:
    write_jsonl(
        photos,
        [
            {"file_name": "a.png", "captions": {"en": "a", "de": "b"}, "split": "train"},
            {"file_name": "b.jpg", "captions": {"fr": "c"}, "split": "test"},
            {"file_name": "below/c.png", "split": "test"},
        ],
    )
    assert [r.id for r in read(photos, split="test")] == ["b.jpg", "below/c.png"]
    german = read(photos, languages=["de"])
    assert [(r.id, dict(r.captions)) for r in german] == [("a.png", {"de": ("b",)}), ("below/c.png", {})]
    source = open_data(str(photos) + ":train")
    assert source.languages == ("en", "de")
    with pytest.raises(DataError, match=r"no record is in split 'dev'.*test, train"):
        read(photos, split="dev")
    with pytest.raises(DataError, match=r"language 'nl'.*en, de, fr"):
        read(photos, languages=["nl"])


def test_a_link_to_an_image_elsewhere_is_followed_and_a_loop_ends(
    photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = picture(tmp_path_factory.mktemp("elsewhere") / "d.png")
    (photos / "d.png").symlink_to(elsewhere)
    (photos / "below" / "up").symlink_to(photos)
    assert [r.id for r in read(photos)] == ["a.png", "b.jpg", "below/c.png", "d.png"]


def test_windows_line_ends_and_byte_order_marks(photos: Path) -> None:
    (photos / "metadata.csv").write_bytes('\ufefffile_name,caption\r\na.png,"two\r\nlines"\r\nb.jpg,x\r\n'.encode())
    assert [(r.captions["und"], r.origin) for r in read(photos)] == [
        (("two\r\nlines",), "metadata.csv:2"),
        (("x",), "metadata.csv:4"),
    ]
    (photos / "metadata.csv").unlink()
    (photos / "metadata.jsonl").write_bytes('\ufeff{"file_name": "a.png"}\r\n\r\n{"file_name": "b.jpg"}\r\n'.encode())
    assert [r.origin for r in read(photos)] == ["metadata.jsonl:1", "metadata.jsonl:3"]


def test_csv_columns_become_numbers_only_as_a_whole(photos: Path) -> None:
    rows = "file_name,zip,year,size,seen,mixed\na.png,00123,2019,1,true,1\nb.jpg,50667,,2.5,false,x\n"
    (photos / "metadata.csv").write_text(rows)
    first, second = read(photos)
    assert first.extra == {"zip": "00123", "year": 2019, "size": 1.0, "seen": True, "mixed": "1"}
    assert second.extra == {"zip": "50667", "size": 2.5, "seen": False, "mixed": "x"}


def test_a_csv_caption_in_brackets_is_still_a_caption(photos: Path) -> None:
    cells = ["[red] car", '["a", 1]', '["a", "b"]']
    write_csv(photos, [{"file_name": "a.png", "caption": cell} for cell in cells])
    assert [r.captions["und"] for r in read(photos)] == [("[red] car",), ('["a", 1]',), ("a", "b")]


def test_missing_numbers_as_pandas_writes_them_are_left_out(photos: Path) -> None:
    table = pa.table({"file_name": ["a.png", "b.jpg"], "height": [1.5, float("nan")], "caption": ["x", "y"]})
    pq.write_table(table, photos / "metadata.parquet")
    assert [r.extra for r in read(photos)] == [{"height": 1.5}, {}]


# -- round trip ---------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and not text.lstrip().startswith(("[", "{"))
)
languages = st.sampled_from(["en", "de", "zh-Hant", "sw", "und"])
captions = words | st.lists(words, min_size=1, max_size=3)
labels = st.text(string.ascii_letters, min_size=1, max_size=6).map(lambda text: f"L {text}")
rows = st.fixed_dictionaries(
    {"file_name": st.sampled_from(["a.png", "b.jpg", "below/c.png"]), "caption": captions},
    optional={
        "caption_de": captions,
        "caption_zh-Hant": captions,
        "text_en": words,
        "captions": st.dictionaries(languages, captions, min_size=1, max_size=3),
        "split": st.sampled_from(["train", "test"]),
        "year": st.integers(-(2**40), 2**40),
        "weight": st.floats(allow_nan=False, allow_infinity=False, width=32),
        "label": labels,
        "seen": st.booleans(),
    },
) | st.fixed_dictionaries({"text_en": words, "text_fr": words}, optional={"split": st.just("train"), "label": labels})


def uniform(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One type in a column, as Parquet needs it."""
    return [
        {
            **row,
            **(
                {"captions": {k: [v] if isinstance(v, str) else v for k, v in row["captions"].items()}}
                if "captions" in row
                else {}
            ),
        }
        for row in table
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for name in ("a.png", "b.jpg", "below/c.png"):
        picture(root / name)
    return root


@given(st.lists(rows, min_size=1, max_size=5).map(uniform))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_format_gives_the_same_records(pictures: Path, table: list[dict[str, Any]]) -> None:
    found = {}
    for kind, write_table in WRITERS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in ("a.png", "b.jpg", "below/c.png"):
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).symlink_to(pictures / name)
            write_table(root, table)
            found[kind] = [
                (
                    r.image and r.image.key,
                    dict(r.captions),
                    dict(r.texts),
                    r.split,
                    r.group if r.image else "",
                    dict(r.extra),
                )
                for r in read(root)
            ]
    assert found["csv"] == found["jsonl"]
    assert found["parquet"] == found["jsonl"]
    assert len(found["jsonl"]) == len(table)
    for row, (key, said, _, split, *_) in zip(table, found["jsonl"], strict=True):
        assert key == row.get("file_name")
        assert split == row.get("split")
        first = row["caption"] if key else row["text_en"]
        assert said["und" if key else "en"][0] == (first if isinstance(first, str) else first[0]).strip()


# -- what is wrong with a folder ----------------------------------------------------------------------------------


def fault(root: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(root, **options)
    return caught.value


def skipped(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    report = BadRecords(skip=True)
    source = open_data(str(root), report=report)
    return [source[i].id for i in range(len(source))], list(report)


GOOD = {"file_name": "b.jpg", "caption": "a cat"}


@pytest.mark.parametrize(
    ("lines", "opened"),
    [
        (['a.png,"a dog', "b.jpg,a cat", "below/c.png,a cow"], 2),
        (["a.png,a dog", 'b.jpg,"a cat', 'below/c.png,"a cow"'], 3),
        (['a.png,"a', 'dog","', "b.jpg,a cat"], 3),
        (["a.png,a dog", 'b.jpg,"a cat'], 3),
    ],
)
def test_an_open_quote_in_csv_is_no_single_record_to_skip(photos: Path, lines: list[str], opened: int) -> None:
    (photos / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]))
    with pytest.raises(DataError, match="a double quote opens here and is not closed") as caught:
        skipped(photos)
    assert caught.value.where == f"metadata.csv:{opened}"


def test_a_wrong_quote_within_a_line_is_one_bad_record(photos: Path) -> None:
    (photos / "metadata.csv").write_text('file_name,caption\na.png,"a "red" dog"\nb.jpg,a cat\n')
    ids, bad = skipped(photos)
    assert ids == ["b.jpg"] and [where for where, _ in bad] == ["metadata.csv:2"]


def save_undecodable(root: Path) -> None:
    try:
        picture(root / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system wants UTF-8")


def test_a_file_name_that_is_not_utf8_is_a_bad_record(photos: Path) -> None:
    save_undecodable(photos)
    error = fault(photos)
    assert (error.message, error.where) == ("file name is not UTF-8", "caf\\udce9.png")
    assert "rename" in str(error.hint)
    ids, bad = skipped(photos)
    assert ids == ["a.png", "b.jpg", "below/c.png"]
    assert bad == [("caf\\udce9.png", "file name is not UTF-8")]
    assert [broken.reason for broken in check(str(photos)).broken] == ["file name is not UTF-8"]
    write_jsonl(photos, [GOOD, {"file_name": os.fsdecode(b"caf\xe9.png")}])
    ids, bad = skipped(photos)
    assert (ids, bad) == (["b.jpg"], [("metadata.jsonl:2", "file name is not UTF-8")])


@pytest.mark.parametrize("line", ['"caption_de": "x", "caption_de": "y"', '"captions": {"en": "x", "en": "y"}'])
def test_a_key_that_is_there_twice_in_json_loses_nothing_silently(photos: Path, line: str) -> None:
    (photos / "metadata.jsonl").write_text(f'{{"file_name": "a.png", {line}}}\n{json.dumps(GOOD)}\n')
    error = fault(photos)
    assert error.where == "metadata.jsonl:1" and "is there twice in one object" in error.message
    assert skipped(photos)[0] == ["b.jpg"]


@pytest.mark.parametrize(
    ("column", "cell"),
    [("captions", {"en": "x", "de": "y"}), ("boxes", [{"box": [0, 0, 5, 5], "name": "x", "text": "y"}])],
)
def test_a_key_that_is_there_twice_in_a_cell_of_csv_is_a_bad_record(photos: Path, column: str, cell: Any) -> None:
    twice = json.dumps(cell).replace('"de"', '"en"').replace('"text"', '"name"').replace('"', '""')
    (photos / "metadata.csv").write_text(f'file_name,caption,{column}\na.png,a dog,"{twice}"\nb.jpg,a cat,\n')
    error = fault(photos)
    assert error.where == "metadata.csv:2" and "is there twice in one object" in error.message
    ids, bad = skipped(photos)
    assert ids == ["b.jpg"]
    assert [where for where, _ in bad] == ["metadata.csv:2"]


def test_a_caption_of_csv_that_only_looks_like_json_stays_a_text(photos: Path) -> None:
    text = '[{"a": 1, "a": 2}] in brackets'
    for cell in (text, text[:18]):
        quoted = cell.replace('"', '""')
        (photos / "metadata.csv").write_text(f'file_name,caption\na.png,"{quoted}"\n')
        assert open_data(str(photos))[0].captions["und"] == (cell,)


def test_a_key_that_is_there_twice_in_a_map_of_parquet_is_a_bad_record(photos: Path) -> None:
    kind = pa.map_(pa.string(), pa.string())
    said = pa.array([[("en", "x"), ("en", "y")], [("en", "a cat")]], kind)
    pq.write_table(pa.table({"file_name": ["a.png", "b.jpg"], "captions": said}), photos / "metadata.parquet")
    assert fault(photos).where == "metadata.parquet:1"
    assert skipped(photos) == (["b.jpg"], [("metadata.parquet:1", "a map holds one key twice")])


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_is_given_by_its_folder(photos: Path, name: str) -> None:
    WRITERS[name.partition(".")[2]](photos, [GOOD])
    with pytest.raises(DataError, match="is the metadata of a folder") as caught:
        open_data(str(photos / name))
    assert str(caught.value.hint) == f"give its folder: {photos}"


def test_boxes_from_every_format(photos: Path, write: Callable[[Path, Rows], None]) -> None:
    write(photos, [{"file_name": "a.png", "boxes": [[0, 1.5, 4, 5], [2, 2, 8, 6]]}, {"file_name": "b.jpg"}])
    dog, cat = read(photos)
    assert dog.boxes == (RegionBox((0, 1.5, 4, 5)), RegionBox((2, 2, 8, 6)))
    assert cat.boxes == ()


def test_boxes_may_name_what_is_in_them(photos: Path) -> None:
    write_jsonl(
        photos, [{"file_name": "a.png", "boxes": [{"box": [0, 1, 4, 5], "name": "cup"}, {"box": [1, 1, 2, 2]}]}]
    )
    assert read(photos)[0].boxes == (RegionBox((0, 1, 4, 5), "cup"), RegionBox((1, 1, 2, 2)))


@pytest.mark.parametrize(
    ("row", "where", "message"),
    [
        ({"file_name": "a.png", "boxes": 3}, "metadata.jsonl:1", "column 'boxes' holds a number (3)"),
        ({"file_name": "a.png", "boxes": "[[1, 2"}, "metadata.jsonl:1", "column 'boxes' holds text"),
        ({"file_name": "a.png", "boxes": [1, 2, 3, 4]}, "metadata.jsonl:1:boxes[1]", "a number (1) where a box"),
        ({"file_name": "a.png", "boxes": [[0, 0, 1, 1], [4, 0, 1, 9]]}, "metadata.jsonl:1:boxes[2]", "has no area"),
        ({"file_name": "a.png", "boxes": [[0, 0, "1", 1]]}, "metadata.jsonl:1:boxes[1]", "text, not a finite number"),
        ({"text_en": "x", "boxes": [[0, 0, 1, 1]]}, "metadata.jsonl:1", "boxes without an image"),
    ],
)
def test_bad_boxes_are_named(photos: Path, row: dict[str, Any], where: str, message: str) -> None:
    write_jsonl(photos, [row])
    error = fault(photos)
    assert error.where == where
    assert message in error.message


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        ({"file_name": "a.pgn", "caption": "x"}, "no image a.pgn", "did you mean 'a.png'"),
        ({"file_name": "below", "caption": "x"}, "is a folder", ""),
        ({"file_name": "below\\c.png", "caption": "x"}, "no image", "/ instead of"),
        ({"file_name": "a.png", "caption": ""}, "empty caption in column 'caption'", ""),
        ({"file_name": "a.png", "caption": " \t"}, "empty caption", ""),
        ({"file_name": "a.png", "caption_de": ["x", ""]}, "empty caption in column 'caption_de'", ""),
        ({"file_name": "a.png", "captions": {"en": ""}}, "empty caption in column 'captions.en'", ""),
        ({"file_name": "a.png", "caption": None}, "every caption of the record is empty", ""),
        ({"file_name": "a.png", "caption": None, "captions": {"en": None}}, "every caption of the record is empty", ""),
        ({"file_name": "a.png", "caption": []}, "every caption of the record is empty", ""),
        ({"file_name": "a.png", "caption": 3}, "holds a number (3), not text", ""),
        ({"file_name": "a.png", "caption": [True]}, "holds true/false, not text", ""),
        ({"file_name": "a.png", "caption": {"en": "x"}}, "holds an object, not text", ""),
        ({"file_name": "a.png", "caption": "\ud800"}, "half a character", ""),
        ({"file_name": "a.png", "captions": ["x"]}, "not an object of language and captions", '"en"'),
        ({"file_name": "a.png", "captions": {"english": "x"}}, "'english' in column 'captions'", ""),
        ({"file_name": "a.png", "captions_de": "x"}, "column 'captions_de' is not understood", "caption_<language"),
        ({"file_name": "a.png", "Caption": "x"}, "column 'Caption' is not understood", ""),
        ({"file_name": "a.png", "caption_english": "x"}, "column 'caption_english' is not understood", ""),
        ({"file_name": "a.png", "tags": ["x"]}, "column 'tags' holds a list", "text, numbers or true/false"),
        ({"file_name": "a.png", "box": {"x": 1}}, "column 'box' holds an object", ""),
        ({"file_name": 7}, "column 'file_name' holds a number (7)", ""),
        (
            {"filename": "a.png", "caption": "x"},
            "file_name is missing",
            "did you mean 'file_name' where it says 'filename'",
        ),
        ({"caption_de": "x"}, "captions without an image", "text_<language"),
        ({"year": 3}, "neither an image nor text", ""),
        ({"file_name": "../out.png"}, "lies outside the folder", "relative"),
        ({"file_name": "below/../../out.png"}, "lies outside the folder", ""),
        ({"file_name": "/etc/hostname"}, "lies outside the folder", ""),
        ({"file_name": "C:\\a.png"}, "lies outside the folder", ""),
        ({"file_name": "a\0.png"}, "no image", ""),
        ({"file_name": "https://example.org/a.png"}, "is not in the folder", "download"),
        ({"file_name": "a.png", "id": True}, "column 'id' holds true/false", ""),
        ({"file_name": "a.png", "id": " "}, "column 'id' is empty", ""),
        ({"file_name": "a.png", "id": "\ud800"}, "column 'id' holds half a character", ""),
        ({"file_name": "a.png", "place": "\ud800"}, "column 'place' holds half a character", ""),
        ({"file_name": "a.png", "split": 1}, "column 'split' holds a number", ""),
        ({}, "neither an image nor text", ""),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(photos: Path, row: dict[str, Any], message: str, hint: str) -> None:
    picture(photos.parent / "out.png")
    write_jsonl(photos, [GOOD, row, {**GOOD, "id": "last"}])
    error = fault(photos)
    assert error.where == "metadata.jsonl:2"
    assert message in error.message
    assert hint in (error.hint or "")
    assert isinstance(error, ImageError) == any(word in message for word in ("image a", "folder", "no image"))
    kept, bad = skipped(photos)
    assert kept == ["b.jpg", "last"]
    assert bad == [("metadata.jsonl:2", error.message)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"file_name": "a.png", ', "not valid JSON"),
        (b'["a.png"]', "holds a list, not a JSON object"),
        (b'"a.png"', "holds text, not a JSON object"),
        (b'{"file_name": "a.png", "caption": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_json_line_is_named_with_file_and_line(photos: Path, line: bytes, message: str) -> None:
    good = json.dumps(GOOD).encode()
    (photos / "below" / "metadata.jsonl").write_bytes(b"\n".join([b'{"file_name": "c.png"}', b"", line, b""]))
    error = fault(photos)
    assert error.where == "below/metadata.jsonl:3"
    assert message in error.message
    (photos / "metadata.jsonl").write_bytes(good)
    assert skipped(photos) == (["below/c.png", "b.jpg"], [("below/metadata.jsonl:3", error.message)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,a dog, brown", "3 cells where the header has 2"),
        ("a.png", "1 cells where the header has 2"),
        ('a.png,"a dog" brown', "not valid CSV"),
        ("a.png,", "every caption of the record is empty"),
        ("a.png,  ", "empty caption"),
        ("gone.png,x", "no image gone.png"),
    ],
)
def test_a_bad_csv_line_is_named_with_file_and_line(photos: Path, line: str, message: str) -> None:
    (photos / "metadata.csv").write_text(f'file_name,caption\nb.jpg,"a\ncat"\n{line}\nb.jpg,the cat\n')
    error = fault(photos)
    assert error.where == "metadata.csv:4"
    assert message in error.message
    assert skipped(photos) == (["b.jpg", "b.jpg#2"], [("metadata.csv:4", error.message)])


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        (b"file_name;caption\na.png;x\n", "metadata.csv:1", "not separated by commas"),
        (b"file_name,caption,caption\na.png,x,y\n", "metadata.csv:1", "column 'caption' is there twice"),
        (b"file_name,\na.png,x\n", "metadata.csv:1", "a column has no name"),
        (b"file_name,caption\na.png,x\nb.jpg,K\xf6ln\n", "metadata.csv:3", "not UTF-8"),
        (b"file_name,caption\n", "metadata.csv", "no records"),
        (b"", "metadata.csv", "no records"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_an_error_even_with_skip_bad(
    photos: Path, content: bytes, where: str, message: str
) -> None:
    (photos / "metadata.csv").write_bytes(content)
    for skip in (False, True):
        error = fault(photos, skip_bad=skip)
        assert (error.where or "").endswith(where)
        assert message in error.message


def test_a_damaged_parquet_file_is_named(photos: Path) -> None:
    write_parquet(photos, [GOOD])
    data = (photos / "metadata.parquet").read_bytes()
    for damaged in (data[:-20], b"PAR1", b""):
        (photos / "metadata.parquet").write_bytes(damaged)
        error = fault(photos)
        assert error.where == "metadata.parquet"
        assert "Parquet" in error.message


def test_parquet_columns_of_unknown_type_are_refused(photos: Path) -> None:
    pq.write_table(pa.table({"file_name": ["a.png"], "thumbnail": [b"\0\1"]}), photos / "metadata.parquet")
    error = fault(photos)
    assert "column 'thumbnail' holds bytes" in error.message
    assert error.where == "metadata.parquet:1"


def test_an_id_used_twice_names_both_lines(photos: Path) -> None:
    write_jsonl(photos, [{**GOOD, "id": 7}, {**GOOD, "id": "7"}])
    error = fault(photos)
    assert error.where == "metadata.jsonl:2"
    assert "id '7' is already that of metadata.jsonl:1" in error.message


def test_metadata_in_two_formats_is_refused(photos: Path) -> None:
    write_jsonl(photos, [GOOD])
    write_csv(photos, [GOOD])
    (photos / "metadata.d").mkdir()
    write_parquet(photos / "metadata.d", [{"text_en": "x"}])
    error = fault(photos, skip_bad=True)
    assert "metadata in two formats: metadata.csv and metadata.jsonl" in error.message


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    assert "no records" in fault(tmp_path).message
    assert "no such folder" in fault(tmp_path / "gone").message
    assert "not a folder" in fault(picture(tmp_path / "a.png")).message


def test_when_every_record_is_bad_the_first_is_named(photos: Path) -> None:
    write_jsonl(photos, [{"file_name": "gone.png"}, {"file_name": "gone too.png"}])
    error = fault(photos, skip_bad=True)
    assert error.where == "metadata.jsonl:1"
    assert "no usable record" in error.message


def test_bad_records_are_counted_by_the_source(photos: Path) -> None:
    write_jsonl(photos, [GOOD, {"file_name": "gone.png"}])
    source = open_data(str(photos), skip_bad=True)
    assert len(source) == 1
    assert list(source.bad) == [("metadata.jsonl:2", "no image gone.png")]  # type: ignore[attr-defined]
