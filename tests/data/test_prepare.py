"""From downloads to a store, and the store as a source."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from corpora import records, write_image, write_multi30k
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmbert.data import prepare as module
from mmbert.data import shards
from mmbert.data.check import check
from mmbert.data.prepare import prepare
from mmbert.data.records import BadRecords, ImageRef, Record, RegionBox
from mmbert.data.sources import multi30k, open_data, parse_data
from mmbert.errors import ConfigError, DataError


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits of four images, and a corpus that was published so."""
    monkeypatch.setattr(multi30k, "SPLITS", ("train", "validation"))
    monkeypatch.setattr(multi30k, "RECORDS", {"train": 4, "validation": 4})
    return write_multi30k(tmp_path / "downloads")


def make(downloads: Path, name: str = "store", **options: Any) -> Path:
    out = downloads.parent / name
    flags = {
        key: options.pop(key)
        for key in ("skip_bad", "allow_incomplete", "copy_images", "embed_images")
        if key in options
    }
    prepare("multi30k", downloads, out, {"languages": "en,de", "images": downloads / "images", **options}, **flags)
    return out


class Pretended:
    """A source of given records."""

    name, languages = "pretended", ("en",)

    def __init__(self, found: list[Record]) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int, /) -> Record:
        return self.found[index]


def test_a_store_holds_what_the_source_says(downloads: Path) -> None:
    store = make(downloads)
    for split in ("train", "validation"):
        direct = {"source": "multi30k", "root": downloads, "split": split, "languages": "en,de"}
        expected = records(open_data(direct, images=downloads / "images"))
        assert records(open_data(f"{store}:{split}")) == expected
        letter = "a" if split == "train" else "b"
        assert expected[2].captions == {"en": (f"en {letter} 2",), "de": (f"de {letter} 2",)}
        assert expected[2].image == ImageRef(path=str(downloads / "images" / f"{letter}2.jpg"), key=f"{letter}2.jpg")
    whole = open_data(str(store))
    assert [record.split for record in records(whole)] == ["train"] * 4 + ["validation"] * 4
    assert whole.languages == ("en", "de")
    assert whole[-1] == whole[7]
    with pytest.raises(IndexError):
        whole[8]
    assert records(pickle.loads(pickle.dumps(whole))) == records(whole)


def test_corpus_json_says_what_was_made(downloads: Path) -> None:
    about = json.loads((make(downloads) / "corpus.json").read_text())
    assert about["corpus"] == "multi30k"
    assert about["card"]["licence"] == multi30k.CARD.licence
    assert about["options"]["languages"] == ["en", "de"]
    assert about["images"] == str(downloads / "images")
    assert about["format"] == 1
    train = about["splits"]["train"]
    assert train["counts"] == {"records": 4, "images": 4, "captions": 8, "captions_en": 4, "captions_de": 4}
    assert train["published"] == {"records": 4, "images": 4, "captions_en": 4, "captions_de": 4}
    (shard,) = train["shards"]
    file = downloads.parent / "store" / shard["file"]
    assert (shard["rows"], shard["bytes"]) == (4, file.stat().st_size)
    assert str(file.parent) not in file.read_bytes().decode("latin-1"), "images are stored relative to their folder"


def test_a_store_is_known_by_its_corpus_json(downloads: Path) -> None:
    store = make(downloads)
    assert parse_data(str(store)) == {"source": "prepared", "root": str(store)}
    assert parse_data(f"{store}:train") == {"source": "prepared", "root": str(store), "split": "train"}
    assert parse_data(str(downloads)) == {"source": "folder", "root": str(downloads)}


def test_images_may_move(downloads: Path) -> None:
    store = make(downloads)
    (downloads / "images").rename(downloads / "moved")
    with pytest.raises(DataError, match="no such folder of images"):
        open_data(str(store))
    source = open_data(str(store), images=downloads / "moved")
    assert source[0].image == ImageRef(path=str(downloads / "moved" / "a0.jpg"), key="a0.jpg")


def test_images_may_be_copied(downloads: Path) -> None:
    store = make(downloads, copy_images=True)
    moved = store.rename(store.parent / "elsewhere")
    for image in (downloads / "images").iterdir():
        assert (moved / "images" / image.name).read_bytes() == image.read_bytes()
        image.unlink()
    assert check(str(moved)).ok
    assert open_data(str(moved))[0].image == ImageRef(path=str(moved / "images" / "a0.jpg"), key="a0.jpg")


def test_images_may_be_in_the_shards(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_BYTES", 1)
    store = make(downloads, embed_images=True)
    pixels = (downloads / "images" / "a0.jpg").read_bytes()
    (downloads / "images").rename(downloads / "moved")
    source = open_data(str(store))
    assert source[0].image == ImageRef(data=pixels, key="a0.jpg")
    assert len(source) == 8
    assert not (store / "images").exists()
    with pytest.raises(ConfigError, match="not both"):
        make(downloads, "both", embed_images=True, copy_images=True)


def test_images_elsewhere_are_copied_under_names_of_their_own(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders, one file name: neither overwrites the other."""
    paths = [downloads / "images" / name / "x.jpg" for name in ("a", "b")]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        write_image(path, colour)
    found = [Record(path.parent.name, ImageRef(path=str(path)), {"en": ("x",)}) for path in paths]
    monkeypatch.setattr(multi30k, "open_source", lambda options, report: Pretended(found))
    (downloads / "elsewhere").mkdir()
    store = make(downloads, images=downloads / "elsewhere", copy_images=True, allow_incomplete=True, split="train")
    images = [record.image for record in records(open_data(str(store)))]
    assert [Path(str(image and image.path)).read_bytes() for image in images] == [path.read_bytes() for path in paths]


def test_without_images_there_are_captions_alone(downloads: Path) -> None:
    store = make(downloads, images=None)
    source = open_data(str(store))
    assert all(record.image is None for record in records(source))
    assert source[0].extra == {"file_name": "a0.jpg"}


def test_languages_are_chosen_when_it_is_opened(downloads: Path) -> None:
    store = make(downloads)
    german = open_data(f"{store}:validation", languages="de")
    assert german.languages == ("de",)
    assert german[1].captions == {"de": ("de b 1",)}
    with pytest.raises(DataError, match="no caption is in language 'fr'"):
        open_data(str(store), languages="fr")
    with pytest.raises(DataError, match="no split 'test'"):
        open_data(str(store), split="test")


def test_counts_that_were_not_published_stop_it(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi30k, "RECORDS", {"train": 4, "validation": 5})
    with pytest.raises(DataError, match=r"validation: records 4 instead of 5 \(1 missing\)") as caught:
        make(downloads)
    assert "--allow-incomplete" in str(caught.value)
    assert sorted(path.name for path in downloads.parent.iterdir()) == ["downloads"], "nothing is left behind"
    store = make(downloads, allow_incomplete=True)
    about = json.loads((store / "corpus.json").read_text())
    assert about["differences"][0] == {"split": "validation", "what": "records", "found": 4, "published": 5}


def test_missing_pieces_are_all_named(downloads: Path) -> None:
    (downloads / "task1/raw/train.en").unlink()
    (downloads / "task1/raw/val.de.gz").unlink()
    with pytest.raises(DataError, match=r"missing: task1/raw/train.en, task1/raw/val.de") as caught:
        make(downloads)
    assert multi30k.CARD.where in str(caught.value)
    (downloads / "task1/raw/val.de").write_text("x\n" * 4)
    store = make(downloads, allow_incomplete=True)
    assert json.loads((store / "corpus.json").read_text())["missing"] == ["task1/raw/train.en"]
    assert {record.split for record in records(open_data(str(store)))} == {"validation"}


def test_a_missing_image_is_a_bad_record(downloads: Path) -> None:
    (downloads / "images" / "a2.jpg").unlink()
    with pytest.raises(DataError, match=r"train.en:3: no image a2.jpg"):
        make(downloads)
    bad = BadRecords(skip=True)
    store = make(downloads, skip_bad=bad, allow_incomplete=True)
    assert list(bad) == [(f"{downloads}/task1/raw/train.en:3", "no image a2.jpg")]
    assert [record.id for record in records(open_data(f"{store}:train"))] == ["a0.jpg", "a1.jpg", "a3.jpg"]
    assert json.loads((store / "corpus.json").read_text())["left_out"] == 1


def test_a_folder_that_is_there_is_not_touched(downloads: Path) -> None:
    (downloads.parent / "store").mkdir()
    with pytest.raises(DataError, match="exists already"):
        make(downloads)
    with pytest.raises(DataError, match="no such folder"):
        make(downloads, "no/store")


def test_options_are_checked_before_anything_is_read(downloads: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'languages'"):
        make(downloads, langauges="en")
    with pytest.raises(ConfigError, match="did you mean 'validation'"):
        make(downloads, split="validatoin")
    with pytest.raises(ConfigError, match=r"'../x' is no name for a split"):
        make(downloads, split="train,../x")
    with pytest.raises(ConfigError, match="did you mean 'multi30k'"):
        prepare("multi3k", downloads, downloads.parent / "store")
    with pytest.raises(ConfigError, match="nothing to prepare"):
        prepare("starter", downloads, downloads.parent / "store")
    with pytest.raises(ConfigError, match="needs its files") as caught:
        open_data("multi30k")
    assert "mmbert data prepare multi30k" in str(caught.value)


def test_a_split_may_be_called_by_a_number(downloads: Path) -> None:
    with pytest.raises(ConfigError, match="the corpus has no split '2016'"):
        make(downloads, split=2016)


def test_several_splits_of_those_there_are(downloads: Path) -> None:
    store = make(downloads, split="validation")
    assert len(open_data(str(store))) == 4
    assert {path.name for path in store.iterdir()} == {"corpus.json", "validation-00000.arrow"}


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other"])
def test_damage_is_found(downloads: Path, damage: str) -> None:
    store = make(downloads, images=None)
    path = store / "train-00000.arrow"
    raw = path.read_bytes()
    if damage == "flip":  # inside a caption: only the checksum can tell
        at = raw.index(b"en a 1")
        path.write_bytes(raw[:at] + b"EN" + raw[at + 2 :])
        result = check(str(store))
        assert [(fault.where, fault.reason) for fault in result.broken] == [
            ("train-00000.arrow", "its checksum is not that in corpus.json")
        ]
        return
    if damage == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "gone":
        path.unlink()
    else:
        schema = pa.schema([("id", pa.string())])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist([{"id": "a"}], schema=schema))
    with pytest.raises(DataError, match=r"train-00000.arrow"):
        open_data(str(store))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 9}, "is of format 9"),
        ({"splits": {"train": {"languages": [], "shards": [{"file": "../a", "sha256": ""}]}}}, "a file elsewhere"),
        ({"splits": {"train": {"languages": []}}}, "is damaged"),
        ({"splits": {}}, "holds no records"),
    ],
)  # fmt: skip
def test_a_damaged_description_is_a_data_error(downloads: Path, change: dict[str, Any], why: str) -> None:
    store = make(downloads, images=None)
    about = json.loads((store / "corpus.json").read_text())
    (store / "corpus.json").write_text(json.dumps(about | change))
    with pytest.raises(DataError, match=why):
        open_data(str(store))


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=5)
floats = st.floats(allow_nan=False, allow_infinity=False, width=64)
said = st.dictionaries(st.sampled_from(["en", "de", "und"]), st.lists(names, max_size=2).map(tuple), max_size=2)
values = st.dictionaries(names, st.none() | st.booleans() | st.integers(-9, 9) | names | st.lists(names, max_size=2))
boxes = st.builds(
    RegionBox,
    st.tuples(floats, floats, floats, floats),
    names | st.just(""),
    st.lists(st.lists(floats, max_size=4).map(tuple), max_size=2).map(tuple),
    st.none() | floats,
)
images = st.none() | st.builds(ImageRef, data=st.binary(max_size=4), key=names | st.just(""))
any_record = st.builds(
    Record,
    id=names,
    image=images
    | names.filter(lambda name: "/" not in name).map(lambda name: ImageRef(path=f"/root/{name}", key=name)),
    captions=said,
    texts=said,
    split=st.none() | names,
    group=names | st.just(""),
    extra=values,
    origin=names | st.just(""),
    size=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    boxes=st.lists(boxes, max_size=2).map(tuple),
    annotation=values,
    regions=names | st.just(""),
)


@given(st.lists(any_record, min_size=1, max_size=5), st.sampled_from([1, 2, 1000]))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=25, deadline=None)
def test_every_record_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, given_records: list[Record], rows: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_ROWS", rows)
        writer = shards.ShardWriter(folder, "x", shard_bytes=1)
        for record in given_records:
            path = record.image.path if record.image is not None else None
            writer.add(record, path.removeprefix("/root/") if path else None)
        written = writer.close()
    assert sum(shard.rows for shard in written) == len(given_records)
    batches = [batch for shard in written for batch in shards.open_shard(folder / shard.file)]
    found = [shards.record_at(b, i, Path("/root")) for b in batches for i in range(b.num_rows)]
    assert found == given_records


def test_a_value_that_json_does_not_know_is_named(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Record("a", captions={"en": ("x",)}, extra={"n": float("nan")}, origin="file:1")
    monkeypatch.setattr(multi30k, "open_source", lambda options, report: Pretended([odd]))
    with pytest.raises(DataError, match="file:1: a has a value that JSON does not know"):
        make(downloads)
    assert not list(downloads.parent.glob(".store*"))
    fine = Record("b", captions={"en": ("y",)})
    monkeypatch.setattr(multi30k, "open_source", lambda options, report: Pretended([fine, odd]))
    bad = BadRecords(skip=True)
    store = make(downloads, skip_bad=bad, allow_incomplete=True, split="train")
    assert [record.id for record in records(open_data(str(store)))] == ["b"]
    assert [where for where, _ in bad] == ["file:1"]


def test_progress_is_told(downloads: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    options = {"languages": "en", "split": "train"}
    module.prepare("multi30k", downloads, downloads.parent / "s", options, progress=lambda *now: seen.append(now))
    assert seen == [("train", 4, 4)]
