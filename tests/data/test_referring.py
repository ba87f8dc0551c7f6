"""RefCOCO, RefCOCO+ and RefCOCOg from files in the official layout."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from vl_corpora import make_refcoco, refcoco_instances, refcoco_refs, write_json

from mmbert.data.records import BadRecords, Record, Source
from mmbert.data.sources import open_data
from mmbert.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_refcoco(tmp_path)
    return tmp_path


def records(source: Source) -> list[Record]:
    return [source[i] for i in range(len(source))]


def test_an_expression_its_box_and_the_other_objects(root: Path) -> None:
    found = records(open_data({"source": "refcoco_plus", "root": root}))
    assert [(r.id, r.annotation["expression"], r.annotation["raw"]) for r in found] == [
        ("0", "the left dog", "the left Dog"),
        ("1", "dog", "dog"),
    ]
    record = found[0]
    assert [(b.box, b.name) for b in record.boxes] == [((2, 3, 12, 23), "dog"), ((20.5, 3, 50.5, 43), "cat")]
    assert record.annotation["target"] == 0
    assert record.annotation["box"] == [2, 3, 12, 23]
    assert {key: record.annotation[key] for key in ("sent_id", "ref_id", "ann_id", "image_id")} == {
        "sent_id": 0,
        "ref_id": 0,
        "ann_id": 11,
        "image_id": 1,
    }
    assert record.size == (64, 48)
    assert record.image is not None and record.image.key == "train2014/COCO_train2014_000000000001.jpg"
    (second,) = records(open_data({"source": "refcoco_plus", "root": root, "split": "val"}))
    assert second.annotation["target"] == 1


def test_detections_instead_of_objects(root: Path) -> None:
    options = {"source": "refcoco_plus", "root": root, "split": "val", "candidates": "detections"}
    (record,) = records(open_data(options))
    assert [(b.box, b.name, b.score) for b in record.boxes] == [
        ((1, 3, 12, 23), "dog", 0.9),
        ((30, 5, 50, 25), "cat", 0.8),
    ]
    assert record.annotation["target"] is None
    assert record.annotation["box"] == [20.5, 3, 50.5, 43]
    other = root / "other.json"
    write_json(other, [{"box": [0, 0, 5, 5], "image_id": 2}])
    with pytest.raises(DataError, match="image 1 has no detections"):
        open_data(options, detections=other)


def test_detections_and_objects(root: Path) -> None:
    options = {"source": "refcoco_plus", "root": root, "split": "val", "candidates": "detections+objects"}
    (record,) = records(open_data(options))
    assert [b.box for b in record.boxes] == [(1, 3, 12, 23), (30, 5, 50, 25), (2, 3, 12, 23), (20.5, 3, 50.5, 43)]
    target = record.annotation["target"]
    assert target == 3
    assert list(record.boxes[target].box) == record.annotation["box"]
    write_json(root / "none.json", [])
    (without,) = records(open_data(options, detections=root / "none.json"))
    assert [b.box for b in without.boxes] == [(2, 3, 12, 23), (20.5, 3, 50.5, 43)]
    assert without.annotation["target"] == 1


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("name", "folder", "by", "split"),
    [
        ("refcoco", "refcoco", "unc", "testA"),
        ("refcocog", "refcocog", "umd", "val"),
        ("refcoco", "refcoco", "google", "val"),
    ],
)
def test_the_three_corpora_share_a_layout(
    name: str, folder: str, by: str, split: str, protocol: int, tmp_path: Path
) -> None:
    make_refcoco(tmp_path, folder, by, protocol)
    options = {"source": name, "root": tmp_path, "split": split}
    source = open_data(options if by in ("unc", "umd") else options | {"split_by": by})
    (record,) = records(source)
    assert record.annotation["expression"] == ("naïve café owner" if split == "testA" else "cat")


def test_references_may_come_as_json(root: Path) -> None:
    (root / "refcoco+" / "refs(unc).p").unlink()
    write_json(root / "refcoco+" / "refs(unc).json", refcoco_refs())
    assert len(open_data({"source": "refcoco_plus", "root": root})) == 2


def test_a_pickle_that_would_run_something_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(root / "made"),)

    (root / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps([Runs()]))
    with pytest.raises(DataError, match=r"asks for posix\.mkdir"):
        open_data({"source": "refcoco_plus", "root": root})
    assert not (root / "made").exists()


def instances(change_it: Any) -> dict[str, Any]:
    value = refcoco_instances()
    change_it(value)
    return value


@pytest.mark.parametrize(
    ("change_it", "place", "reason"),
    [
        (lambda v: v["annotations"][0].update(bbox=[2, 3, 100, 20]), "annotations[1]", "outside of the image"),
        (lambda v: v["annotations"][0].update(bbox=[2, 3, 0, 20]), "annotations[1]", "no area"),
        (lambda v: v["annotations"][0].update(bbox=[2, 3, 4]), "annotations[1]", "has 3 items, not 4"),
        (lambda v: v["annotations"][0].update(bbox=[2, 3, 4, "5"]), "annotations[1]", "holds text"),
        (lambda v: v["annotations"][0].update(category_id=99), "annotations[1]", "category 99 is not listed"),
        (lambda v: v["annotations"][0].update(image_id=9), "annotations[1]", "image 9, which is not listed"),
        (lambda v: v["images"][0].pop("width"), "images[1]", "'width' is missing"),
    ],
)
def test_damaged_objects_are_named_and_their_expressions_go(
    root: Path, change_it: Any, place: str, reason: str
) -> None:
    write_json(root / "refcoco+" / "instances.json", instances(change_it))
    with pytest.raises(DataError) as caught:
        open_data({"source": "refcoco_plus", "root": root})
    assert reason in caught.value.message
    assert caught.value.where == f"instances.json:{place}"
    report = BadRecords(skip=True)
    with pytest.raises(DataError, match="no usable record"):
        open_data({"source": "refcoco_plus", "root": root}, report=report)
    if place == "annotations[1]":  # the other object of the image is still a candidate
        (record,) = records(open_data({"source": "refcoco_plus", "root": root, "split": "val", "skip_bad": True}))
        assert [box.name for box in record.boxes] == ["cat"]
        assert record.annotation["target"] == 0


@pytest.mark.parametrize(("part", "place", "what"), [("images", 3, "image 1"), ("annotations", 4, "object 11")])
def test_objects_and_images_that_are_there_twice_are_refused(root: Path, part: str, place: int, what: str) -> None:
    write_json(root / "refcoco+" / "instances.json", instances(lambda v: v[part].append(v[part][0])))
    with pytest.raises(DataError, match=f"{what} is there twice") as caught:
        open_data({"source": "refcoco_plus", "root": root})
    assert caught.value.where == f"instances.json:{part}[{place}]"
    report = BadRecords(skip=True)
    (first, *_) = records(open_data({"source": "refcoco_plus", "root": root}, report=report))
    assert (len(report), len(first.boxes)) == (1, 2)


def test_damaged_references_are_named(root: Path) -> None:
    refs = refcoco_refs()
    refs[0]["ann_id"] = 99
    refs[1]["image_id"] = 2
    refs.append(refcoco_refs()[1])
    refs.append(refcoco_refs()[1])
    del refs[2]["sentences"]
    write_json(root / "refcoco+" / "refs(unc).json", refs)
    (root / "refcoco+" / "refs(unc).p").unlink()
    report = BadRecords(skip=True)
    source = open_data({"source": "refcoco_plus", "root": root, "split": "train+val+testA"}, report=report)
    assert [record.id for record in records(source)] == ["2"]
    assert [(where, message) for where, message in report] == [
        ("refs(unc).json:[1]", "object 99 is not listed with a usable box"),
        ("refs(unc).json:[2]", "object 12 is in image 1, not in 2"),
        ("refs(unc).json:[3]", "'sentences' is missing"),
        ("refs(unc).json:[5]", "sentence 2 is there twice"),
    ]


def test_options_are_checked(root: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'testC'"):
        open_data({"source": "refcoco_plus", "root": root, "split": "testC"})
    with pytest.raises(ConfigError, match="candidates"):
        open_data({"source": "refcoco_plus", "root": root, "candidates": "all"})
    (root / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="not a list of references"):
        open_data({"source": "refcoco_plus", "root": root})
    (root / "refcoco+" / "refs(unc).p").write_bytes(json.dumps([]).encode())
    with pytest.raises(DataError, match="not a pickle"):
        open_data({"source": "refcoco_plus", "root": root})
