"""Regions: boxes, features and classes that belong together."""

from __future__ import annotations

import numpy as np
import pytest

from mmbert.errors import DataError
from mmbert.vision.regions import Regions


def test_the_whole_image_stands_before_detected_regions() -> None:
    boxes = np.array([[0, 0, 5, 5], [2, 2, 9, 7]], dtype=np.float64)
    features = np.arange(2 * 6).reshape(2, 6)
    found = Regions.with_whole_image(boxes, features, (10, 8), classes=np.array([[0.2, 0.8], [1, 0]]))
    assert found.boxes.tolist() == [[0, 0, 9, 7], [0, 0, 5, 5], [2, 2, 9, 7]]
    np.testing.assert_array_equal(found.features[0], features.mean(0))
    assert found.classes[0].sum() == 0
    assert found.features.dtype == found.boxes.dtype == np.float32


@pytest.mark.parametrize(
    ("boxes", "features", "classes", "message"),
    [
        (np.zeros((0, 4)), np.zeros((0, 3)), None, "n > 0"),
        (np.zeros((2, 5)), np.zeros((2, 3)), None, "boxes must be"),
        (np.zeros((2, 4)), np.zeros((3, 3)), None, "2 boxes but features"),
        (np.zeros((2, 4)), np.zeros((2, 3)), np.zeros((1, 7)), "2 boxes but classes"),
        (np.zeros((2, 4)), np.full((2, 3), np.nan), None, "not finite"),
    ],
)
def test_regions_that_do_not_fit_together_are_refused(
    boxes: np.ndarray, features: np.ndarray, classes: np.ndarray | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Regions(boxes, features, (10, 10), classes)
