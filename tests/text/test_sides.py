"""Left and right change places where an image is mirrored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbert.text.sides import swap_sides


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("What is left of the dog?", "What is right of the dog?"),
        ("LEFT or Right", "RIGHT or Left"),
        ("the leftmost cat, righthand side", "the rightmost cat, lefthand side"),
        ("on the left's right", "on the right's left"),
        ("left-hand, right-side", "right-hand, left-side"),
        ("a bright copyright, leftovers and rights", "a bright copyright, leftovers and rights"),
        ("", ""),
    ],
)
def test_words_change_places(text: str, mirrored: str) -> None:
    assert swap_sides(text) == mirrored


@given(st.lists(st.sampled_from(["left", "Right", "leftmost", "bright", "LEFT", " ", "dog", "?"])).map(" ".join))
def test_twice_is_as_before(text: str) -> None:
    assert swap_sides(swap_sides(text)) == text
