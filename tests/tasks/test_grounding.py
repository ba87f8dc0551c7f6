"""Grounding examples: an expression, its image's regions, and which of these overlap the true box enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stores import make_store, regions_of
from tiny import Quarters, tiny_config

from mmbert.api.loading import find_model, load_model
from mmbert.api.processing import MMBertProcessor
from mmbert.data.images import BoxedImage
from mmbert.data.packing import Example
from mmbert.data.records import ImageRef, Record, RegionBox
from mmbert.data.region_input import RegionInput
from mmbert.errors import ConfigError, DataError
from mmbert.model.around import Around
from mmbert.tasks import grounding
from mmbert.text.tokenizer import train_tokenizer
from mmbert.training.build import build_model
from mmbert.training.recipe import load_recipe
from mmbert.vision.boxes import overlaps, windows

SAID = "the dog to the left of the cat"


class Looking(Quarters):
    """Looks into given boxes, behind its own five regions."""

    takes_boxes = True


def processor(vision: Any = Looking) -> MMBertProcessor:
    tokenizer = train_tokenizer([SAID, "right Left above below"] * 5, vocab_size=300)
    return MMBertProcessor(tokenizer, tiny_config(vocab_size=len(tokenizer)), vision and vision())


def record(*boxes: tuple[float, float, float, float], true: Any = (10, 10, 30, 30), **changes: Any) -> Record:
    given: dict[str, Any] = {
        "image": ImageRef(path="a.png"),
        "size": (100, 80),
        "boxes": tuple(RegionBox(box) for box in boxes),
        "annotation": {"expression": SAID, "box": list(true)},
    }
    return Record("r", **(given | changes))


def made(reader: MMBertProcessor, of: Record, seed: int = 0, **options: Any) -> Example:
    (example,) = grounding.build(grounding.Options(**options), reader, ("grounding",)).examples(
        of, np.random.default_rng(seed)
    )
    return example


def plain_overlap(one: Any, other: Any) -> float:
    """Intersection over union, written out."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(across, 0) * max(down, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return shared / (sum(areas) - shared)


BOX = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40), st.integers(1, 40)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(BOX, min_size=1, max_size=6), BOX)
def test_overlap_is_intersection_over_union(boxes: list[Any], true: Any) -> None:
    assert overlaps(np.array(boxes), true).tolist() == pytest.approx([plain_overlap(b, true) for b in boxes], abs=1e-6)


def test_regions_that_overlap_the_true_box_by_half_are_right() -> None:
    boxes = [(10, 10, 30, 30), (10, 10, 30, 50), (10, 10, 30, 51), (60, 60, 70, 70)]  # 1, 1/2, less, none
    example = made(processor(), record(*boxes))
    label = example.labels["grounding"]
    assert (label.objective, label.scope, label.places.tolist()) == ("grounding", "region", list(range(9)))
    assert label.values is not None
    assert label.values.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0]  # the whole image, four quarters, then the boxes
    assert example.token_ids.tolist() == processor().ids(SAID).tolist()
    strict = made(processor(), record(*boxes), overlap=0.6).labels["grounding"].values
    assert strict is not None and strict.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_the_whole_image_and_own_regions_can_be_right() -> None:
    whole = made(processor(Quarters), record(true=(0, 0, 100, 79))).labels["grounding"].values
    assert whole is not None and whole.tolist() == [1, 0, 0, 0, 0]
    corner = made(processor(Quarters), record(true=(52, 0, 100, 38))).labels["grounding"].values
    assert corner is not None and corner.tolist() == [0, 0, 1, 0, 0]


def test_a_flipped_image_has_its_boxes_flipped_and_its_sides_swapped() -> None:
    reader, of = processor(), record((10, 10, 30, 30), (60, 60, 70, 70))
    example = made(reader, of, flip=1.0)
    assert isinstance(example.image, BoxedImage) and example.image.flipped
    assert example.token_ids.tolist() == reader.ids("the dog to the right of the cat").tolist()
    assert reader.boxes_of(example.image, (100, 80))[5:].tolist() == [[70, 10, 90, 30], [30, 60, 40, 70]]
    plain, flipped = (e.labels["grounding"].values for e in (made(reader, of), example))
    assert plain is not None and flipped is not None
    assert flipped.tolist() == plain.tolist()


def test_regions_that_the_model_makes_itself_stay_where_they_are_in_a_flipped_image() -> None:
    example = made(processor(Quarters), record(true=(52, 0, 100, 38)), flip=1.0)
    values = example.labels["grounding"].values
    assert values is not None and values.tolist() == [0, 1, 0, 0, 0]  # right has become left


def test_flips_are_drawn_at_random() -> None:
    reader, of = processor(), record((10, 10, 30, 30))
    flipped = [bool(getattr(made(reader, of, seed, flip=0.5).image, "flipped", False)) for seed in range(60)]
    assert 15 < sum(flipped) < 45
    assert not any(getattr(made(reader, of, seed).image, "flipped", False) for seed in range(10))


def test_boxes_of_a_store_are_brought_to_the_size_of_the_image(tmp_path: Path) -> None:
    stored = regions_of(1, count=3)  # of an image of 80 x 60
    make_store(tmp_path / "store", {"a.png": stored})
    reader = processor(None)
    reader.images = RegionInput(tmp_path / "store")
    true = (stored.boxes[2] * 2).tolist()
    example = made(reader, record(true=true, size=(160, 120), image=ImageRef(path="a.png")))
    values = example.labels["grounding"].values
    assert values is not None and values[2] == 1
    expected = [plain_overlap(box * 2, true) >= 0.5 for box in stored.boxes]
    assert values.tolist() == expected


def test_a_record_costs_what_it_makes() -> None:
    reader, of = processor(), record((10, 10, 30, 30), (60, 60, 70, 70))
    task = grounding.build(grounding.Options(flip=0.5), reader, ("grounding",))
    examples = [task.examples(of, np.random.default_rng(seed))[0] for seed in range(12)]
    sizes = {len(example.token_ids) + reader.region_count(example.image) + 1 for example in examples}
    assert len(sizes) == 2  # "right" has other pieces than "left"
    assert max(sizes) == task.cost(of)
    assert task.cost(record(image=None)) == 0
    assert task.cost(record(annotation={"question": "what?"})) == 0


def test_what_cannot_be_grounded_is_said() -> None:
    with pytest.raises(ConfigError, match="grounding needs regions"):
        grounding.build(grounding.Options(), processor(None), ("grounding",))
    with pytest.raises(DataError, match="does not say how large the image is"):
        made(processor(), record((10, 10, 30, 30), size=None, origin="refs.p:[3]"))


@pytest.mark.parametrize("size", [(100, 80), (33, 200)])
def test_windows_cover_the_image_and_stay_inside(size: tuple[int, int]) -> None:
    found = windows(*size)
    assert len(found) == 9 + 25 + 49
    assert found[:, :2].min() == 0 and (found[:, 2:].max(0) <= np.array(size) + 1e-3).all()
    covered = np.zeros((size[1], size[0]), dtype=bool)
    for x1, y1, x2, y2 in found[:9].round().astype(int):
        covered[y1:y2, x1:x2] = True
    assert covered.all()


def test_a_product_head_starts_as_pooler_and_match_head_of_the_starter() -> None:
    """What the recipe says: a region that agrees with the text as a whole image would gets the match head's logit."""
    recipe = load_recipe("grounding")
    bert, starter = build_model(recipe.model, {}, 1), load_model(find_model("starter"), torch.float32)
    head, pooler = bert.model.heads["grounding"], starter.trunk.pooler
    rng = torch.Generator().manual_seed(0)
    firsts, regions = (torch.randn(4, 256, generator=rng) for _ in range(2))
    with torch.inference_mode():
        expected = starter.match_logits(pooler(firsts, regions))  # type: ignore[misc]
        assert torch.allclose(head(regions, Around(firsts)).squeeze(1), expected, atol=1e-5)
    vision = bert.model.trunk.vision
    assert vision is not None and vision.takes_boxes
    assert not any(parameter.requires_grad for parameter in vision.parameters())
    assert bert.encode_text(["a dog"]).shape == (1, 256)  # it still finds images
