"""``MMBert.ground``: every candidate gets the score that the network gives it, alone and among others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from grounded import draw_squares, grounding_model
from PIL import Image

from mmbert import MMBert, MMBertForReferringExpressions
from mmbert.api.grounding import Grounder, chosen_of
from mmbert.data.images import BoxedImage, OpenedImage
from mmbert.data.packing import Example, collate
from mmbert.errors import DataError, ImageError, UsageError
from mmbert.vision.boxes import windows
from mmbert.vision.regions import GivenBoxes

GRID = {"kind": "grid", "backbone": "test_resnet", "image_size": 64}


@pytest.fixture(scope="module")
def bert() -> MMBert:
    return grounding_model()


@pytest.fixture(scope="module")
def shown() -> tuple[Image.Image, list[str], np.ndarray]:
    image, names, boxes = draw_squares(np.random.default_rng(3))
    corners = np.array(boxes, dtype=np.float32)
    corners[:, 2:] += corners[:, :2]
    return image, names, corners


def by_the_network(bert: MMBert, image: Image.Image, text: str, boxes: np.ndarray) -> np.ndarray:
    """[1 + n] probabilities of the whole image and the boxes, from the class of the published network."""
    network = MMBertForReferringExpressions(bert.config)
    network.load_state_dict(bert.model.state_dict())
    example = Example(bert.processor.ids(text), image=BoxedImage(OpenedImage(image, "x"), GivenBoxes(boxes)))
    with torch.inference_mode():
        logits = network.eval()(collate([example], bert.processor.images)).logits
    return torch.sigmoid(logits).numpy()


def test_scores_are_those_of_the_network(bert: MMBert, shown: tuple[Image.Image, list[str], np.ndarray]) -> None:
    image, names, boxes = shown
    text = f"the {names[0]} square"
    expected = by_the_network(bert, image, text, boxes)
    found = bert.ground(image, text, boxes)
    assert found.boxes.tolist() == boxes.tolist()
    assert np.allclose(found.scores, expected[1:], atol=1e-5)
    assert np.ptp(found.scores) > 1e-3  # a network that tells nothing apart would pass anything
    assert found.best == int(expected[1:].argmax())
    assert found.box == tuple(boxes[found.best].tolist())
    assert found.order() == sorted(range(len(boxes)), key=lambda i: -expected[1 + i])
    assert found.order(2) == found.order()[:2]


def test_many_together_get_the_scores_they_get_alone(
    bert: MMBert, shown: tuple[Image.Image, list[str], np.ndarray]
) -> None:
    _, names, boxes = shown
    grounder = Grounder(bert)
    rng = np.random.default_rng(5)
    asked = []
    for number in range(20):  # more images than go through at once
        other, _, _ = draw_squares(rng)
        seen = grounder.candidates(other, boxes[: 1 + number % 4])
        asked += [(seen, f"the {name} square") for name in names[: 1 + number % 2]]
    together = grounder.ground(asked)
    assert len(together) == len(asked)
    for (seen, text), found in zip(asked, together, strict=True):
        (alone,) = grounder.ground([(seen, text)])
        assert np.allclose(found.scores, alone.scores, atol=1e-5)
        assert len(found.scores) == 1 + len(seen.given)  # type: ignore[union-attr]
        assert len(chosen_of(found, seen).scores) == len(seen.given)  # type: ignore[union-attr]
    small = grounder.ground(asked, batch_tokens=20)
    assert all(np.allclose(a.scores, b.scores, atol=1e-5) for a, b in zip(together, small, strict=True))


def test_without_boxes_windows_are_looked_into(bert: MMBert, tmp_path: Path) -> None:
    image, _, _ = draw_squares(np.random.default_rng(0))
    path = tmp_path / "a.png"
    image.save(path)
    found = bert.ground(path, "the red square")
    assert np.allclose(found.boxes, windows(*image.size))


def test_a_model_with_regions_of_its_own_chooses_among_these() -> None:
    own = grounding_model(GRID)
    vision = own.model.trunk.vision
    assert vision is not None
    image, _, _ = draw_squares(np.random.default_rng(0))
    found = own.ground(image, "the red square")
    assert np.allclose(found.boxes, vision.boxes(*image.size))
    with pytest.raises(UsageError, match="cannot look into given boxes"):
        own.ground(image, "the red square", [[0, 0, 9, 9]])


def test_what_cannot_be_grounded_is_said(bert: MMBert) -> None:
    image, _, _ = draw_squares(np.random.default_rng(0))
    with pytest.raises(UsageError, match="does not ground expressions"):
        grounding_model(head=False).ground(image, "the red square")
    with pytest.raises(UsageError, match="an expression is empty"):
        bert.ground(image, "  ")
    with pytest.raises(UsageError, match="no box to choose from"):
        bert.ground(image, "the red square", [])
    with pytest.raises(DataError, match="ends before it starts"):
        bert.ground(image, "the red square", [[9, 9, 1, 1]])
    with pytest.raises(DataError, match=r"boxes must be \[m, 4\]"):
        bert.ground(image, "the red square", [[1, 2, 3]])
    with pytest.raises(ImageError, match="no such image file"):
        bert.ground("nowhere.png", "the red square", [[0, 0, 9, 9]])
