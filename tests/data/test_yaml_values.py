"""NAME=VALUE, as it is read wherever a user may write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmbert.api.features import open_encoder
from mmbert.cli._vcr import _options
from mmbert.data.yaml_values import read_setting, read_settings
from mmbert.errors import ConfigError
from mmbert.training.recipe import load_recipe

READERS: dict[str, Callable[[str], Any]] = {
    "data prepare": lambda text: read_settings([text]),
    "evaluate vcr --option": lambda text: _options([text]),
    "--encoder": lambda text: open_encoder(f"grid:test_vit,{text}", "cpu"),
    "train": lambda text: load_recipe("retrieval", [text]),
}


def test_a_setting_is_a_name_and_a_value_as_in_yaml() -> None:
    assert read_setting("a.b = {no: [1, true]}") == ("a.b", {"no": [1, True]})
    assert read_setting("where=x=y") == ("where", "x=y")
    assert read_settings(["a=1", "b="]) == {"a": 1, "b": None}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "message"), [("=3", "'=3' is not NAME=VALUE"), ("a={", "'a={': the value is not valid")]
)
def test_what_is_none_is_told_alike_everywhere(reader: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        READERS[reader](text)
    assert caught.value.message.startswith(message)
    assert str(caught.value.hint).startswith("such as ")


@pytest.mark.parametrize(
    "read", [lambda: read_settings(["a=1", "b=2", "a=3"]), lambda: open_encoder("grid:one,backbone=two", "cpu")]
)
def test_a_name_that_is_said_twice_is_an_error(read: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match="is said twice"):
        read()
