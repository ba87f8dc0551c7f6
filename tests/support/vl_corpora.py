"""Small corpora in the layouts of the official downloads, and the few lines that all their tests need.

Each ``make_*`` writes one below a folder; what it says is small enough to be checked by eye. Also for other tests that
want records with boxes, questions or expressions.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (64, 48)
COLOURS = ("red", "blue", "green", "yellow", "white", "black")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_image(path: Path, number: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(path)


def coco_file(year: str, image_id: int) -> str:
    return f"{image_id:012d}.jpg" if year.endswith("2017") else f"COCO_{year}_{image_id:012d}.jpg"


def make_coco_images(root: Path, year: str, ids: list[int]) -> None:
    for image_id in ids:
        make_image(root / year / coco_file(year, image_id), image_id)


def make_coco_karpathy(root: Path) -> dict[str, Any]:
    """Two training images, one each of restval, val and test; returns what was written."""
    places = {1: ("train", "train2014"), 2: ("train", "train2014"), 3: ("restval", "val2014")}
    places |= {4: ("val", "val2014"), 5: ("test", "val2014")}
    images = []
    for cocoid, (split, year) in places.items():
        make_coco_images(root, year, [cocoid])
        said = [f"A {COLOURS[cocoid]} image.", f" Number {cocoid} "]
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": cocoid - 1, "sentid": 10 * cocoid + i}
            for i, text in enumerate(said)
        ]
        image = {"filepath": year, "filename": coco_file(year, cocoid), "cocoid": cocoid, "imgid": cocoid - 1}
        images.append(image | {"sentids": [s["sentid"] for s in sentences], "sentences": sentences, "split": split})
    written = {"images": images, "dataset": "coco"}
    write_json(root / "dataset_coco.json", written)
    return written


def make_coco_official(root: Path, year: str = "val2017") -> dict[str, Any]:
    """Two images whose captions stand in another order than they do."""
    make_coco_images(root, year, [1, 2])
    images = [
        {"id": i, "file_name": coco_file(year, i), "width": SIZE[0], "height": SIZE[1], "license": 1} for i in (2, 1)
    ]
    captions = [
        {"image_id": 1, "id": 31, "caption": "second of one"},
        {"image_id": 2, "id": 12, "caption": "of two\n"},
        {"image_id": 1, "id": 30, "caption": "first of one"},
    ]
    written = {"info": {"year": 2017}, "images": images, "licenses": [], "annotations": captions}
    write_json(root / "annotations" / f"captions_{year}.json", written)
    return written


def make_flickr30k(root: Path) -> None:
    """One image in each of Karpathy's splits."""
    images = []
    for number, split in enumerate(("train", "val", "test")):
        name = f"{1000 + number}.jpg"
        make_image(root / "flickr30k-images" / name, number)
        sentences = [
            {"raw": f"Sentence {i} of {name}", "sentid": 5 * number + i, "imgid": number, "tokens": []}
            for i in range(5)
        ]
        images.append({"filename": name, "imgid": number, "sentids": [], "sentences": sentences, "split": split})
    write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


ENTITIES_SENTENCES = """\
[/EN#1/people Two men] in [/EN#2/clothing blue shirts] stand near [/EN#0/notvisual it] .
[/EN#1/people/other They] are [/EN#3/scene outside] .
"""
ENTITIES_XML = """\
<annotation>
  <filename>77.jpg</filename>
  <size><width>64</width><height>48</height><depth>3</depth></size>
  <object><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object>
  <object><name>1</name><name>2</name><bndbox><xmin>30</xmin><ymin>5</ymin><xmax>65</xmax><ymax>48</ymax></bndbox></object>
  <object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
  <object><name>4</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>
"""


def make_flickr30k_entities(root: Path) -> None:
    """One image with two captions, two boxes (one of two entities, and a pixel too wide) and a scene."""
    make_image(root / "flickr30k-images" / "77.jpg")
    for name in ("Sentences", "Annotations"):
        (root / name).mkdir(exist_ok=True)
    (root / "Sentences" / "77.txt").write_text(ENTITIES_SENTENCES)
    (root / "Annotations" / "77.xml").write_text(ENTITIES_XML)
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("77\n" if split == "train" else "")


def vqa_answers(*words: str) -> list[dict[str, Any]]:
    given = [*words, *[words[-1]] * (10 - len(words))]
    return [{"answer": w, "answer_confidence": "yes", "answer_id": i} for i, w in enumerate(given, 1)]


def make_vqa_v2(root: Path, *, per_image: int = 2) -> None:
    """Images 1 and 2 in train, 3 in val, 4 in test (and test-dev), each with ``per_image`` questions."""
    ids = {"train2014": [1, 2], "val2014": [3], "test2015": [4], "test-dev2015": [4]}
    for year, images in ids.items():
        if year != "test-dev2015":
            make_coco_images(root, year, images)
        questions, annotations = [], []
        for image_id in images:
            for number in range(per_image):
                question_id = 1000 * image_id + number
                asked = "What colour is it?" if number == 0 else f"Are there {number} of them?"
                questions.append({"image_id": image_id, "question": asked, "question_id": question_id})
                answers = (COLOURS[image_id], "a colour") if number == 0 else ("no", "yes")
                annotations.append(
                    {
                        "question_type": "what color is" if number == 0 else "are there",
                        "multiple_choice_answer": answers[1],
                        "answers": vqa_answers(*answers),
                        "image_id": image_id,
                        "answer_type": "other" if number == 0 else "yes/no",
                        "question_id": question_id,
                    }
                )
        write_json(
            root / f"v2_OpenEnded_mscoco_{year}_questions.json",
            {"info": {}, "task_type": "Open-Ended", "questions": questions, "license": {}},
        )
        if year in ("train2014", "val2014"):
            write_json(root / f"v2_mscoco_{year}_annotations.json", {"info": {}, "annotations": annotations})


def make_visual_genome(folder: Path) -> None:
    """Image 501 is COCO's 1, 502 its 4 (a test image), 503 not COCO's."""
    coco = {501: 1, 502: 4, 503: None}
    write_json(folder / "image_data.json", [{"image_id": i, "coco_id": c, "width": 64} for i, c in coco.items()])
    asked = [
        {
            "id": i,
            "qas": [{"qa_id": 10 * i, "image_id": i, "question": "What is it?", "answer": "A car.", "a_objects": []}],
        }
        for i in coco
    ]
    write_json(folder / "question_answers.json", asked)


def vcr_line(number: int, split: str, movie: str = "movie_A", image: str = "still@1") -> dict[str, Any]:
    """One question about an image with a person, a dog and a person."""
    line = {
        "movie": movie,
        "objects": ["person", "dog", "person"],
        "img_fn": f"{movie}/{image}.jpg",
        "metadata_fn": f"{movie}/{image}.json",
        "img_id": f"{split}-0",
        "annot_id": f"{split}-{number}",
        "question_number": number,
        "question": ["Why", "do", [0, 2], "look", "at", [1], "?"],
        "answer_choices": [[[0], "likes", "it", "."], ["No", "."], [[1], "barks", "."], ["They", "do", "not", "."]],
        "rationale_choices": [
            ["Dogs", "bark", "."],
            [[2], "smiles", "."],
            ["So", "what", "."],
            ["It", "is", "so", "."],
        ],
    }
    return line if split == "test" else line | {"answer_label": 2, "rationale_label": 0, "answer_likelihood": "likely"}


def vcr_metadata() -> dict[str, Any]:
    return {
        "boxes": [[1.5, 2, 20, 40, 0.98], [22, 20, 40, 47.5, 0.9], [41, 1, 63, 47, 0.7]],
        "segms": [[[[2, 3], [19, 3], [10, 39]]], [], [[[42, 2], [60, 2], [60, 40]], [[50, 41], [52, 41], [51, 45]]]],
        "names": ["person", "dog", "person"],
        "width": SIZE[0],
        "height": SIZE[1],
    }


def make_vcr(root: Path) -> None:
    """Two questions in train, one in val and one in test, all about stills of one film."""
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        lines = [json.dumps(vcr_line(i, split, image=f"{split}@1")) for i in range(count)]
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        make_image(root / "vcr1images" / "movie_A" / f"{split}@1.jpg")
        write_json(root / "vcr1images" / "movie_A" / f"{split}@1.json", vcr_metadata())


def refcoco_refs() -> list[dict[str, Any]]:
    """Three references: an object with two expressions in train, one each in val and testA."""
    found, sent_id = [], 0
    for ref_id, (ann_id, image_id, split, said) in enumerate(
        [(11, 1, "train", ["the left Dog", "dog"]), (12, 1, "val", ["cat"]), (21, 2, "testA", ["naïve café owner"])]
    ):
        sentences = []
        for text in said:
            sentences.append({"tokens": text.lower().split(), "raw": text, "sent": text.lower(), "sent_id": sent_id})
            sent_id += 1
        found.append(
            {
                "sent_ids": [s["sent_id"] for s in sentences],
                "file_name": coco_file("train2014", image_id).replace(".jpg", f"_{ann_id}.jpg"),
                "ann_id": ann_id,
                "ref_id": ref_id,
                "image_id": image_id,
                "split": split,
                "sentences": sentences,
                "category_id": 18,
            }
        )
    return found


def refcoco_instances() -> dict[str, Any]:
    images = [{"id": i, "file_name": coco_file("train2014", i), "width": SIZE[0], "height": SIZE[1]} for i in (1, 2)]
    boxes = {11: (1, [2, 3, 10, 20]), 12: (1, [20.5, 3, 30, 40]), 21: (2, [0, 0, 64, 48])}
    annotations = [
        {"id": a, "image_id": i, "category_id": 18 if a != 12 else 17, "bbox": box, "iscrowd": 0}
        for a, (i, box) in boxes.items()
    ]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_refcoco(root: Path, folder: str = "refcoco+", by: str = "unc", protocol: int = 2) -> None:
    """References as a pickle, objects, MAttNet's detections and the images."""
    make_coco_images(root, "train2014", [1, 2])
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"refs({by}).p").write_bytes(pickle.dumps(refcoco_refs(), protocol=protocol))
    write_json(root / folder / "instances.json", refcoco_instances())
    detections = [
        {"det_id": 1, "box": [1, 3, 11, 20], "image_id": 1, "category_id": 18, "category_name": "dog", "score": 0.9},
        {"det_id": 2, "box": [30, 5, 20, 20], "image_id": 1, "category_id": 17, "category_name": "cat", "score": 0.8},
        {
            "det_id": 3,
            "box": [0, 0, 60, 48.5],
            "image_id": 2,
            "category_id": 1,
            "category_name": "person",
            "score": 0.7,
        },
    ]
    write_json(root / "detections" / f"{folder}_{by}" / "res101_coco_minus_refer_notime_dets.json", detections)
