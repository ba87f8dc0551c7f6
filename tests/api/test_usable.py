"""Encoding whole folders of other people's images, of which some cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmbert import MMBert
from mmbert.api.usable import encode_usable_images, usable_images
from mmbert.data.records import BadRecords
from mmbert.errors import ImageError


@pytest.fixture
def mixed(pictures: list[Path], tmp_path: Path) -> list[Path]:
    (tmp_path / "broken.png").write_bytes(b"no image")
    return [pictures[0], tmp_path / "broken.png", pictures[1], tmp_path / "missing.png"]


def test_good_images_are_encoded_and_bad_ones_reported(bert: MMBert, mixed: list[Path]) -> None:
    bad = BadRecords(skip=True)
    kept, vectors = encode_usable_images(bert, mixed, ["a", "b", "", ""], bad)
    assert kept == [0, 2]
    np.testing.assert_allclose(vectors, bert.encode_images([mixed[0], mixed[2]]), atol=1e-6)
    assert [where for where, _ in bad] == ["b", str(mixed[3])]


def test_without_skipping_the_first_bad_image_is_the_error(bert: MMBert, mixed: list[Path]) -> None:
    with pytest.raises(ImageError, match="b: "):
        encode_usable_images(bert, mixed, ["a", "b", "", ""], BadRecords())


def test_nothing_usable_gives_no_rows(bert: MMBert, mixed: list[Path]) -> None:
    kept, vectors = encode_usable_images(bert, mixed[1:2], ["b"], BadRecords(skip=True))
    assert kept == []
    assert vectors.shape == (0, 8)


def test_positions_are_those_of_the_given_list(mixed: list[Path]) -> None:
    assert usable_images(mixed, [""] * 4, BadRecords(skip=True)) == [0, 2]


def test_an_image_that_opens_but_is_refused_by_the_model_is_not_skipped(
    bert: MMBert, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(images: object) -> np.ndarray:
        raise ImageError("not for me")

    monkeypatch.setattr(bert, "encode_images", refuse)
    with pytest.raises(ImageError, match="not for me"):
        encode_usable_images(bert, pictures, [""] * 5, BadRecords(skip=True))
