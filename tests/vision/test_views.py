"""Views of an image: what is drawn where, against a loop over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from mmbert.vision.views import VIEWS, view


def test_the_first_view_is_the_image_itself() -> None:
    pixels = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    assert torch.equal(view(pixels, 0), pixels)


@pytest.mark.parametrize("number", range(1, len(VIEWS)))
def test_a_view_is_the_image_resized_and_turned_about_its_centre_on_white(number: int) -> None:
    side = 12
    pixels = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(number)).to(torch.uint8)
    size, degrees = VIEWS[number]
    found = view(pixels, number)
    angle = math.radians(degrees)

    def ink(image: int, band: int, row: int, column: int) -> float:
        inside = 0 <= row < side and 0 <= column < side
        return 1 - int(pixels[image, band, row, column]) / 255 if inside else 0.0

    for image, band, row, column in [(0, 0, 5, 6), (1, 2, 0, 0), (0, 1, 11, 3), (1, 0, 7, 10), (0, 2, 2, 2)]:
        x, y = (column + 0.5) / side * 2 - 1, (row + 0.5) / side * 2 - 1
        u = (math.cos(angle) * x - math.sin(angle) * y) / size
        v = (math.sin(angle) * x + math.cos(angle) * y) / size
        across, down = (u + 1) / 2 * side - 0.5, (v + 1) / 2 * side - 0.5
        left, top = math.floor(across), math.floor(down)
        expected = sum(
            ink(image, band, top + i, left + j) * abs(1 - i - (down - top)) * abs(1 - j - (across - left))
            for i in (0, 1)
            for j in (0, 1)
        )
        assert float(found[image, band, row, column]) == pytest.approx(1 - expected, abs=1e-5)


def test_white_stays_white() -> None:
    white = torch.full((1, 3, 10, 10), 255, dtype=torch.uint8)
    for number in range(1, len(VIEWS)):
        torch.testing.assert_close(view(white, number), torch.ones(1, 3, 10, 10))
