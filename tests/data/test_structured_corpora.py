"""All structured corpora at once: they can be prepared and shown, and their documentation names them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page, outside_references
from vl_corpora import (
    make_coco_karpathy,
    make_coco_official,
    make_flickr30k,
    make_flickr30k_entities,
    make_refcoco,
    make_vcr,
    make_vqa_v2,
)

from mmbert.cli.main import run
from mmbert.data.prepare import prepare
from mmbert.data.records import ImageRef, Record, RegionBox, Source
from mmbert.data.show import boxes_of, data_page, lines_of, rest_of, rows_of, sample
from mmbert.data.sources import catalogue, open_data
from mmbert.errors import ConfigError
from mmbert.vision.regions import Regions

ROOT = Path(__file__).parents[2]
CORPORA: dict[str, tuple[Callable[[Path], Any], str]] = {
    "coco_captions": (make_coco_karpathy, "train"),
    "coco_official": (make_coco_official, "val2017"),
    "flickr30k": (make_flickr30k, "test"),
    "flickr30k_entities": (make_flickr30k_entities, "train"),
    "vqa_v2": (make_vqa_v2, "train"),
    "vcr": (make_vcr, "train"),
    "refcoco": (lambda root: make_refcoco(root, "refcoco"), "train"),
    "refcoco_plus": (make_refcoco, "train"),
    "refcocog": (lambda root: make_refcoco(root, "refcocog", "umd"), "val"),
}


def records(source: Source) -> list[Record]:
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("name", CORPORA)
def test_a_store_holds_what_the_downloads_say(name: str, tmp_path: Path) -> None:
    make, split = CORPORA[name]
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    make(downloads)
    direct = records(open_data({"source": name, "root": downloads, "split": split}))
    made = prepare(name, downloads, tmp_path / "store", {"split": split}, allow_incomplete=True)
    assert made.differences  # these few records are not the published number
    assert {d.what for d in made.differences} <= {"records", "images", "captions", "answers"}
    stored = records(open_data(str(tmp_path / "store")))
    assert len(stored) == len(direct) > 0
    for one, other in zip(stored, direct, strict=True):
        assert (one.id, one.captions, one.boxes, one.size) == (other.id, other.captions, other.boxes, other.size)
        assert json.dumps(one.annotation, sort_keys=True) == json.dumps(other.annotation, sort_keys=True)
        assert one.image is not None and Path(one.image.path or "").is_file()
    shown = sample(open_data(str(tmp_path / "store")), 12, seed=1)
    page = Page(data_page(shown))
    assert len(page.all("article", "sample")) == len(stored)
    assert len(page.all("rect")) == sum(len(record.boxes) for record in stored)
    assert len(page.all("polygon")) == sum(len(box.polygons) for record in stored for box in record.boxes)


@pytest.mark.parametrize("name", CORPORA)
def test_region_stores_may_know_images_by_their_numbers(name: str, tmp_path: Path) -> None:
    make, split = CORPORA[name]
    make(tmp_path)
    options = {"source": name, "root": tmp_path, "split": split}
    assert {record.regions for record in records(open_data(options))} == {""}
    if name == "vcr":
        with pytest.raises(ConfigError, match="does not number its images"):
            open_data(options, regions_by="image_id")
    else:
        for record in records(open_data(options, regions_by="image_id")):
            assert record.regions == str(record.annotation["image_id"]) != ""


def test_every_corpus_is_documented_with_its_card() -> None:
    page = (ROOT / "docs" / "structured-corpora.md").read_text(encoding="utf-8")
    cards = {entry["name"]: entry["card"] for entry in catalogue() if entry["name"] in CORPORA}
    assert set(cards) == set(CORPORA)
    for name, card in cards.items():
        assert f"`{name}`" in page
        assert card["where"] in page
        for split in card["counts"].values():
            assert all(f"{number:,}" in page for what, number in split.items() if what == "records")


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "structured-corpora.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "downloads").mkdir()
    make_vqa_v2(tmp_path / "downloads", per_image=6)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["answers"] == ["yes"]  # five of the six questions about each of three images


def test_counts_of_splits_add_up_to_the_published_totals() -> None:
    counts = {entry["name"]: entry["card"]["counts"] for entry in catalogue() if entry["name"] in CORPORA}

    def total(name: str, what: str = "records", *splits: str) -> int:
        return sum(numbers[what] for split, numbers in counts[name].items() if split in splits or not splits)

    assert total("coco_captions") == 123_287
    assert total("coco_captions", "records", "train", "restval") == 113_287
    assert total("coco_official", "captions", "train2014", "val2014") == 616_767
    assert total("flickr30k_entities") == 31_783
    assert total("vcr", "images") == 99_904
    assert total("refcoco_plus") == 141_564
    assert total("refcocog") == 95_010
    assert counts["vqa_v2"]["train"]["answers"] == 10 * counts["vqa_v2"]["train"]["records"]


ARABIC = "كلب على الشاطئ"
PERSON = RegionBox((1, 2, 30, 40), "person", ((1, 2, 30, 2, 30, 40),), 0.875)
DOG = RegionBox((10, 10, 60, 45), "<dog>")


def a_record(**values: Any) -> Record:
    return Record("r1", values.pop("image", None), boxes=values.pop("boxes", (PERSON, DOG)), size=(64, 48), **values)


@pytest.fixture
def picture(tmp_path: Path) -> ImageRef:
    make_flickr30k(tmp_path)
    return ImageRef(path=str(tmp_path / "flickr30k-images" / "1000.jpg"))


def test_the_same_seed_draws_the_same_records() -> None:
    class Numbers:
        name, languages = "numbers", ()

        def __len__(self) -> int:
            return 50

        def __getitem__(self, index: int, /) -> Record:
            return Record(str(index))

    drawn = [[int(r.id) for r in sample(Numbers(), 12, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(set(drawn[0]))
    assert len(sample(Numbers(), 99, 1)) == 50


def test_tokens_with_tags_become_text_with_box_numbers() -> None:
    said = {"question": ["Why", "do", [0, 1], "run", "?"], "answer_choices": [["No", "."], [[1], "barks", "."]]}
    lines = lines_of(a_record(annotation=said | {"answer_label": 1}))
    assert [(line.label, line.text, line.right) for line in lines] == [
        ("question", "Why do [1][2] run?", None),
        ("answer 1", "No.", False),
        ("answer 2", "[2] barks.", True),
    ]


def test_answers_are_counted_and_other_keys_shown_as_they_are() -> None:
    said = {"question": "What?", "answers": ["red"] * 9 + ["blue"], "answer": "red", "word": "bank", "n": [1, 2]}
    assert rows_of(a_record(annotation=said, boxes=())) == [
        ("question", "What?"),
        ("answers", "red ×9, blue"),
        ("answer", "✓ red"),
        ("word", "bank"),
        ("n", "[1, 2]"),
    ]


def test_the_true_box_is_marked_or_added() -> None:
    among = boxes_of(a_record(annotation={"expression": "the dog", "box": [10, 10, 60, 45], "target": 1}))
    assert [(box.number, box.right) for box in among] == [(1, False), (2, True)]
    beside = boxes_of(a_record(annotation={"expression": "the dog", "box": [9, 9, 50, 45], "target": None}))
    assert [(box.number, box.right, box.box) for box in beside][2] == (0, True, (9, 9, 50, 45))
    assert rows_of(a_record(annotation={"expression": "the dog", "box": [9, 9, 50, 45], "target": None}))[1] == (
        "boxes",
        "1 person 0.88, 2 <dog>, ✓ true box",
    )


def test_phrases_are_marked_in_their_caption() -> None:
    phrases = [
        [{"text": "a dog", "start": 5, "end": 10, "boxes": [1]}, {"text": "x", "start": 0, "end": 1, "boxes": []}]
    ]
    (line,) = lines_of(a_record(captions={"en": ("Here a dog sits",)}, annotation={"phrases": phrases}))
    assert line.parts == (("Here ", ()), ("a dog", (2,)), (" sits", ()))


def test_the_page_draws_boxes_in_every_direction_of_writing(picture: ImageRef) -> None:
    record = a_record(
        image=picture,
        captions={"ar": (ARABIC,), "de": ("ein Hund <b>",), "und": ("?",)},
        annotation={"expression": "the dog", "target": 1, "box": list(DOG.box)},
    )
    page = data_page([record], title="Look", facts=[("Data", "x")])
    assert outside_references(page) == []
    parsed = Page(page)
    said = {text: attrs for attrs, text in parsed.all("span") if attrs.get("dir") == "auto"}
    assert said[ARABIC]["lang"] == "ar"
    assert said["ein Hund <b>"]["lang"] == "de"
    assert "lang" not in said["?"]
    assert len(parsed.all("g", "right")) == 1
    rect = parsed.all("rect")[-1][0]  # the meant box is drawn last, on top
    assert (rect["x"], rect["y"], rect["width"], rect["height"]) == ("10", "10", "50", "35")
    assert parsed.all("svg")[0][0]["viewbox"] == "0 0 64 48"
    assert parsed.all("polygon")[0][0]["points"] == "1,2 30,2 30,40"
    assert "meant" in [text for _, text in parsed.all("span", "verdict")]


def test_a_picture_that_cannot_be_opened_says_why(picture: ImageRef) -> None:
    Path(picture.path or "").write_bytes(b"no picture")
    parsed = Page(data_page([a_record(image=picture), replace(a_record(), image=None, captions={"en": ("words",)})]))
    assert any("cannot be opened" in text for _, text in parsed.all("p"))
    assert parsed.all("img") == []
    assert len(parsed.all("article", "words")) == 1


def test_show_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_refcoco(tmp_path)
    command = ["data", "show", "refcoco_plus", "--from", str(tmp_path), "--split", "train"]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert "the left dog" in printed.out
    assert "1✓ dog" in printed.out
    assert "2 of 2 records" in printed.err
    page = tmp_path / "look.html"
    assert run([*command, "--html", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [record["annotation"]["expression"] for record in found["records"]] == ["the left dog", "dog"]
    assert len(Page(page.read_text(encoding="utf-8")).all("article", "sample")) == 2
    assert run(["data", "show", str(tmp_path), "--from", str(tmp_path)]) == 2
    assert "--from goes with the name of a corpus" in capsys.readouterr().err
    assert run(["data", "show", "refcoco_plus"]) == 2
    assert "mmbert data prepare refcoco_plus" in capsys.readouterr().err


def test_show_works_on_the_starter_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "show", "--help"]) == 0
    assert "mmbert data show starter -n 5" in capsys.readouterr().out
    assert run(["data", "show", "starter:validation", "-n", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["records"]) == 2
    assert {"en", "ar", "zh"} <= set(found["records"][0]["captions"])


BOXES = [[0, 0, 79, 59], [8, 6, 40, 30], [0, 0, 80, 60]]


class FewRegions:
    """Regions of one image, of 80x60 pixels where the record's has 64x48."""

    def __contains__(self, key: object) -> bool:
        return key == "seen"

    def regions(self, key: str) -> Regions:
        return Regions(np.array(BOXES, np.float32), np.ones((3, 2), np.float32), (80, 60))


def test_regions_are_drawn_at_the_scale_of_the_picture(picture: ImageRef) -> None:
    seen, unseen = a_record(image=picture, regions="seen", boxes=()), a_record(image=picture, boxes=())
    page = Page(data_page([seen, unseen], regions=FewRegions()))
    drawn = [
        [float(attrs[name] or 0) for name in ("x", "y", "width", "height")] for attrs, _ in page.all("rect", "region")
    ]
    assert drawn == [pytest.approx([6.4, 4.8, 25.6, 19.2]), pytest.approx([0, 0, 64, 48])]
    said = [text for _, text in page.all("p", "muted")]
    assert "2 regions (dashed)" in said
    assert "no regions in the store" in said


def test_regions_of_a_store_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmbert.vision.store")
    from stores import make_store, regions_of

    make_refcoco(tmp_path)
    make_store(tmp_path / "regions", {"train2014/COCO_train2014_000000000001.jpg": regions_of(0, 3)})
    page = tmp_path / "look.html"
    command = ["data", "show", "refcoco_plus", "--from", str(tmp_path), "--regions", str(tmp_path / "regions")]
    assert run([*command, "--html", str(page)]) == 0
    assert len(Page(page.read_text(encoding="utf-8")).all("rect", "region")) == 2 * 3
    assert run(command) == 2
    assert "--regions draws boxes on a page" in capsys.readouterr().err


def test_keys_with_another_meaning_are_shown_as_they_are() -> None:
    said = {"answers": "many", "phrases": "two", "question": [1, {"a": 2}], "answer_choices": 3, "box": [1, 2]}
    record = a_record(annotation=said, captions={"en": ("x",)})
    assert [line.text for line in lines_of(record)] == ["x", '[1, {"a": 2}]']
    assert rest_of(record) == [("answers", "many"), ("phrases", "two"), ("answer_choices", "3"), ("box", "[1, 2]")]
    assert len(boxes_of(record)) == 2
