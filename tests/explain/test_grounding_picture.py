"""The picture of a grounding: the best box is lit and framed, the rest is dimmed, the expression stands below."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmbert.api.grounding import Grounding
from mmbert.errors import UsageError
from mmbert.explain.grounding import BEST, grounding_picture

FOUND = Grounding(
    np.array([[100, 60, 200, 180], [10, 10, 60, 60], [250, 150, 300, 200]], np.float32),
    np.array([0.9, 0.2, 0.4], np.float32),
)


def test_the_best_box_is_lit_and_framed() -> None:
    image = Image.new("RGB", (640, 400), (200, 200, 200))
    drawn = grounding_picture(image, FOUND, "the thing", top=1)
    assert drawn.size[0] == 640 and drawn.size[1] > 400
    assert drawn.getpixel((150, 120)) == (200, 200, 200)
    outside = drawn.getpixel((500, 300))
    assert isinstance(outside, tuple) and max(outside) < 140
    edge = np.asarray(drawn)[100, 95:110].astype(int)
    assert (np.abs(edge - np.array(BEST)).sum(1) < 60).any()  # the frame's colour at the box's left edge
    assert drawn.getpixel((600, drawn.size[1] - 2)) == (255, 255, 255)  # paper
    below = np.asarray(drawn.convert("L"))[402:]
    assert (below < 128).any()  # with letters on it


def test_the_next_best_are_outlined_only_where_asked() -> None:
    image = Image.new("RGB", (640, 400), (200, 200, 200))
    one, three = (np.asarray(grounding_picture(image, FOUND, "x", top=top)).astype(int) for top in (1, 3))
    assert (np.abs(one[30, 8:14] - three[30, 8:14]).sum(1) > 60).any()
    assert np.array_equal(one[300:390, 400:], three[300:390, 400:])


@pytest.mark.parametrize("size", [(20, 30), (3000, 200), (200, 3000), (2, 2)])
@pytest.mark.parametrize("box", [[0, 0, 5000, 5000], [-3, -3, 1, 1], [1, 1, 1, 1]])
def test_any_size_and_any_box_can_be_drawn(size: tuple[int, int], box: list[float]) -> None:
    found = Grounding(np.array([box], np.float32), np.array([1.0], np.float32))
    drawn = grounding_picture(Image.new("RGB", size), found, "a rather long expression " * 6, names=["a dog"])
    assert max(drawn.size[0], 1) <= 1280


def test_letters_that_are_not_at_hand_are_said() -> None:
    with pytest.raises(UsageError, match="no letters for 'der größte Hund'"):
        grounding_picture(Image.new("RGB", (64, 64)), FOUND, "der größte Hund")
    with pytest.raises(UsageError, match="not a font"):
        grounding_picture(Image.new("RGB", (64, 64)), FOUND, "größte", font="nothing.ttf")
