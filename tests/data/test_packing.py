"""Collation: where labels land, which regions stand in the table, and what a hidden region cannot reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KnownRegions, Picture, picture, random_example, tiny_network

from mmbert.data.images import OpenedImage
from mmbert.data.packing import Example, Label, collate, regions_table
from mmbert.data.records import ImageRef
from mmbert.errors import DataError
from mmbert.model.packed import NO_IMAGE, TEXT, PackedBatch

torch.set_num_threads(1)
MODEL = tiny_network()


def numbers_of(example: Example, pictures: dict[str, Picture]) -> list[int]:
    if example.image is None:
        return []
    count = len(pictures[example.image.key].regions)
    return list(range(count)) if example.region_numbers is None else example.region_numbers.tolist()


def labelled(example: Example, number: int, rng: np.random.Generator, regions: list[int]) -> Example:
    """The example with labels of each scope, at random places."""
    n = len(example.token_ids)
    labels = {}
    if rng.random() < 0.7:
        places = np.sort(rng.permutation(n)[: int(rng.integers(1, n + 1))])
        labels["text/mlm"] = Label("mlm", "token", places, rng.integers(0, 60, len(places)))
    if regions and rng.random() < 0.7:
        places = np.sort(rng.permutation(len(regions))[: int(rng.integers(1, len(regions) + 1))])
        labels["image/mvrc"] = Label("mvrc", "region", places)
        boxes = rng.random((len(places), 2)).astype(np.float32)
        labels["image/boxes"] = Label("boxes", "region", places, boxes, {"weight": places * 10})
    if rng.random() < 0.7:
        group = np.array([1000 + number])
        labels["main/itc"] = Label(
            "itc", "sequence", np.zeros(1, np.int64), group, {"is_image": np.array([number % 2])}
        )
    return replace(example, labels=labels)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9))
def test_labels_land_where_their_token_region_or_sequence_stands(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = {f"p{i}": picture(f"p{i}", int(rng.integers(2, 6)), rng) for i in range(3)}
    examples = [random_example(rng, list(pictures.values())) for _ in range(count)]
    examples = [labelled(e, i, rng, numbers_of(e, pictures)) for i, e in enumerate(examples)]

    images = KnownRegions(list(pictures.values()))
    batch = collate(examples, images)

    first_row: dict[str, int] = {}
    for key in images.asked[0] if images.asked else []:
        first_row[key] = sum(len(pictures[k].regions) for k in first_row)
    expected: dict[str, list[tuple[int, list[float], list[float]]]] = {}
    start = 0
    for number, example in enumerate(examples):
        regions = numbers_of(example, pictures)
        for name, label in example.labels.items():
            for i, place in enumerate(label.places.tolist()):
                if label.scope == "sequence":
                    position = number
                else:
                    position = start + place + (len(example.token_ids) if label.scope == "region" else 0)
                if label.values is None:
                    value = [first_row[example.image.key] + regions[place]]
                else:
                    value = np.ravel(label.values[i]).tolist()
                expected.setdefault(name, []).append((position, value, [v[i] for v in label.extra.values()]))
        start += len(example.token_ids) + len(regions) + 1

    assert batch.num_positions == start
    assert batch.targets.keys() == expected.keys()
    for name, target in batch.targets.items():
        assert target.objective == name.split("/")[1]
        found = zip(target.positions.tolist(), target.labels.reshape(len(target.positions), -1).tolist(), strict=True)
        extras = [list(row) for row in zip(*(v.tolist() for v in target.extra.values()), strict=True)] or [
            [] for _ in target.positions
        ]
        assert [(p, v, e) for (p, v), e in zip(found, extras, strict=True)] == expected[name]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9))
def test_each_image_stands_once_and_rows_are_what_the_example_says(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = {f"p{i}": picture(f"p{i}", int(rng.integers(2, 6)), rng) for i in range(2)}
    examples = [random_example(rng, list(pictures.values())) for _ in range(count)]
    images = KnownRegions(list(pictures.values()))
    batch = collate(examples, images)
    used = list(dict.fromkeys(e.image.key for e in examples if e.image is not None))
    assert images.asked == ([used] if used else [])
    if not used:
        assert batch.regions is None
        return
    table = batch.regions
    assert len(table) == sum(len(pictures[k].regions) for k in used)
    known = {}  # base row -> (image, region number)
    for key in used:
        known |= {len(known) + i: (key, i) for i in range(len(pictures[key].regions))}
    masked = [] if table.masked_rows is None else table.masked_rows.tolist()
    members = [] if table.pooled_owner is None else table.pooled_owner.tolist()

    def behind(row: int) -> tuple[str, object]:
        if row < len(table):
            return ("region", known[row])
        if row < len(table) + len(masked):
            return ("masked", known[masked[row - len(table)]])
        pooled = row - len(table) - len(masked)
        parts = [known[m] for m, o in zip(table.pooled_members.tolist(), members, strict=True) if o == pooled]
        return ("mean", (known[int(table.pooled_box_rows[pooled])], sorted(parts)))

    for spec, example in zip(batch.sequences, examples, strict=True):
        if example.image is None:
            assert spec.text_rows == NO_IMAGE
            continue
        key, regions = example.image.key, numbers_of(example, pictures)
        hidden = [False] * len(regions) if example.masked is None else example.masked.tolist()
        seen = sorted((key, n) for n, h in zip(regions, hidden, strict=True) if not h and n != 0)
        expected: dict[int, tuple[str, object]] = {n: ("region", (key, n)) for n in range(len(pictures[key].regions))}
        expected |= {n: ("masked", (key, n)) for n, h in zip(regions, hidden, strict=True) if h}
        if any(hidden):
            expected[0] = ("mean", ((key, 0), seen))
        assert [behind(row) for row in spec.region_rows.tolist()] == [expected[n] for n in regions]
        ties = np.broadcast_to(example.ties, len(example.token_ids)).tolist()
        rows = np.broadcast_to(spec.text_rows, len(example.token_ids)).tolist()
        assert [behind(row) for row in rows] == [expected[t] for t in ties]


def states(batch: PackedBatch) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(MODEL(batch).last_hidden_state.split(batch.lengths))


def test_a_hidden_regions_feature_reaches_its_own_sequence_by_no_way() -> None:
    """Not by its row, not by the whole image, not by text that is tied to it; other sequences still see it."""
    shown = picture("p", 4, np.random.default_rng(0))
    hidden = np.array([False, True, False, False])
    examples = [
        Example(np.array([3, 4, 5]), image=shown.ref, ties=np.array([0, 1, 2]), masked=hidden),
        Example(np.array([3, 4, 5]), image=shown.ref, ties=np.array([0, 1, 2])),
        Example(np.array([6]), image=shown.ref, region_numbers=np.array([0, 2]), ties=1),
    ]
    features = shown.regions.features.copy()
    features[1] += 5
    changed = Picture("p", replace(shown.regions, features=features))
    before, after = (states(collate(examples, KnownRegions([p]))) for p in (shown, changed))
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-3
    assert (before[2] - after[2]).abs().max() > 1e-3


def test_texts_alone_need_no_images() -> None:
    batch = collate([Example(np.array([1, 2])), Example(np.array([3]))])
    assert batch.regions is None
    assert batch.pixels is None
    assert batch.kinds.tolist().count(TEXT) == 3


def test_images_without_a_place_to_get_regions_from_are_an_error() -> None:
    with pytest.raises(DataError, match="no vision encoder"):
        collate([Example(np.array([1]), image=ImageRef(path="a.png"))])


def test_pictures_of_the_same_name_in_two_folders_are_two_images() -> None:
    class Asked(KnownRegions):
        def table(self, images, rng=None):  # type: ignore[no-untyped-def]
            self.asked.append([image.path or image.data for image in images])
            first_rows, table = regions_table([picture(str(i), 2, np.random.default_rng(0)).regions for i in images])
            return first_rows, table, None

    images = Asked([])
    refs = [ImageRef(path=f"{folder}/1.png", key="1.png") for folder in "aba"]
    batch = collate([Example(np.array([1]), image=ref) for ref in refs], images)
    assert images.asked == [["a/1.png", "b/1.png"]]
    assert [s.region_rows.tolist() for s in batch.sequences] == [[0, 1], [2, 3], [0, 1]]
    collate([Example(np.array([1]), image=ImageRef(data=data)) for data in (b"x", b"y", b"x")], images)
    assert images.asked[1] == [b"x", b"y"]


def test_opened_images_are_told_apart_by_key_or_by_themselves() -> None:
    from PIL import Image

    from mmbert.data.images import identity

    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    assert identity(OpenedImage(red, "k")) == identity(OpenedImage(blue, "k"))
    assert identity(OpenedImage(red, "")) == identity(OpenedImage(red, ""))
    assert identity(OpenedImage(red, "")) != identity(OpenedImage(blue, ""))


def test_classes_stand_in_the_table_only_if_every_image_has_them() -> None:
    rng = np.random.default_rng(0)
    one, two = picture("a", 3, rng).regions, picture("b", 2, rng).regions
    first_rows, table = regions_table([one, two])
    assert first_rows == [0, 3, 5]
    np.testing.assert_array_equal(table.classes.numpy(), np.concatenate([one.classes, two.classes]))
    assert table.sizes.tolist() == [list(one.size)] * 3 + [list(two.size)] * 2
    assert regions_table([one, replace(two, classes=None)])[1].classes is None
