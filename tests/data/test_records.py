"""Records, the list of bad ones, and naming corpora."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmbert.data.records import BadRecords, ImageRef, Record
from mmbert.data.sources import catalogue, open_data, parse_data
from mmbert.errors import ConfigError, DataError


def test_a_record_is_its_own_group_unless_told_otherwise() -> None:
    assert Record("a").group == "a"
    assert Record("a", group="b").group == "b"


def test_languages_of_a_record_are_those_of_captions_then_texts() -> None:
    assert Record("a", captions={"de": ("x",), "en": ("y",)}, texts={"fr": ("z",), "en": ("w",)}).languages == (
        "de",
        "en",
        "fr",
    )


def test_an_image_reference_has_one_place_and_a_key() -> None:
    assert ImageRef(path="a.png").key == "a.png"
    assert ImageRef(data=b"x", key="k").key == "k"
    for both in ({}, {"path": "a", "data": b"x"}):
        with pytest.raises(ValueError, match="either a path or data"):
            ImageRef(**both)  # type: ignore[arg-type]


def test_bad_records_are_raised_or_noted() -> None:
    error = DataError("broken", where="a.csv:3")
    with pytest.raises(DataError, match="broken"):
        BadRecords().add(error)
    report = BadRecords(skip=True)
    assert report  # also an empty one: `report or BadRecords()` must not lose it
    report.add(error)
    assert list(report) == [("a.csv:3", "broken")]
    assert len(report) == 1


def test_the_starter_and_its_splits_are_named_by_words() -> None:
    assert parse_data("starter") == {"source": "starter"}
    assert parse_data("starter:heldout_style") == {"source": "starter", "split": "heldout_style"}
    assert parse_data("starter:heldout_concepts/noto") == {"source": "starter", "split": "heldout_concepts/noto"}


def test_anything_else_is_a_folder_with_an_optional_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "a:b", "starter", "text"):
        Path(name).mkdir()
    assert parse_data("photos") == {"source": "folder", "root": "photos"}
    assert parse_data("photos:test") == {"source": "folder", "root": "photos", "split": "test"}
    assert parse_data("a:b") == {"source": "folder", "root": "a:b"}
    assert parse_data("a:b:test") == {"source": "folder", "root": "a:b", "split": "test"}
    assert parse_data("gone:test") == {"source": "folder", "root": "gone:test"}
    assert parse_data("./starter") == {"source": "folder", "root": "./starter"}
    assert parse_data("text") == {"source": "folder", "root": "text"}
    assert parse_data(f"{tmp_path}/photos:x") == {"source": "folder", "root": f"{tmp_path}/photos", "split": "x"}


def test_options_stand_between_braces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_data("{source: mlt, root: a b, split: test_2016}") == {
        "source": "mlt", "root": "a b", "split": "test_2016",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_data("{source: [}")
    Path("{folder}").mkdir()
    assert parse_data("{folder}") == {"source": "folder", "root": "{folder}"}


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        open_data({"source": "starter", "langauges": ["en"]})
    assert "langauges" in str(caught.value)
    assert "did you mean 'languages'" in str(caught.value)


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'starter'"):
        open_data({"source": "startr"})
    with pytest.raises(ConfigError, match="names no source"):
        open_data({"split": "train"})


def test_a_wrong_value_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="skip_bad"):
        open_data({"source": "folder", "root": ".", "skip_bad": "perhaps"})


def test_overrides_win_and_none_means_not_given() -> None:
    assert open_data("starter:train", split="validation").name == "starter:validation"
    assert open_data("starter:validation", split=None, languages=["de"]).languages == ("de",)


def test_the_catalogue_lists_every_source_with_its_options() -> None:
    entries = {entry["name"]: entry for entry in catalogue()}
    assert {"starter", "folder", "text"} <= set(entries)
    assert "heldout_style" in entries["starter"]["splits"]
    assert {"root", "split", "languages", "skip_bad"} <= set(entries["folder"]["options"])
    assert all(entry["summary"] for entry in entries.values())
