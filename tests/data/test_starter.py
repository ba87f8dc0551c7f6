"""The starter corpus as a source of records."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from mmbert.data.records import Record, Source
from mmbert.data.sources import open_data, starter
from mmbert.errors import ConfigError, DataError
from mmbert.vision.images import load_image


def records(source: Source) -> list[Record]:
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def everything() -> list[Record]:
    return records(open_data("starter:all"))


def test_a_drawing_is_a_record_with_names_keywords_and_an_image() -> None:
    found = {record.id: record for record in records(open_data("starter:all", languages=["en", "de", "ja"]))}
    elephant = found["1f418/noto"]
    assert dict(elephant.captions) == {"en": ("elephant",), "de": ("Elefant",), "ja": ("ゾウ",)}
    assert {"Elefant", "Tier"} & set(elephant.texts["de"])
    assert elephant.group == "1f418"
    assert {key: elephant.extra[key] for key in ("style", "concept")} == {"style": "noto", "concept": "🐘"}
    assert isinstance(elephant.extra["held_out"], bool)
    assert elephant.image is not None
    assert elephant.image.key == "1f418/noto"
    pixels = np.asarray(load_image(elephant.image))
    assert pixels.shape == (96, 96, 3)
    assert (pixels[0, 0] == 255).all()  # transparent corners are white
    assert pixels.std() > 20


def test_every_drawing_has_a_name_in_each_of_the_24_languages(everything: list[Record]) -> None:
    assert len(starter.LANGUAGES) == 24
    for record in everything:
        assert tuple(record.captions) == starter.LANGUAGES
        assert all(len(names) == 1 and names[0].strip() for names in record.captions.values())


def test_ids_and_images_are_unique_and_a_group_is_one_concept(everything: list[Record]) -> None:
    assert len({record.id for record in everything}) == len(everything)
    assert Counter(Counter(record.group for record in everything).values()).keys() == {3}
    assert all(record.image is not None and record.image.key == record.id for record in everything)


def test_held_out_concepts_and_styles_are_never_trained_on() -> None:
    train = records(open_data("starter"))
    assert {record.split for record in train} == {"train"}
    assert not any(record.extra["held_out"] for record in train)
    assert {record.extra["style"] for record in train} == {"twemoji", "noto"}
    assert {record.extra["style"] for record in records(open_data("starter:heldout_style"))} == {"fluent"}
    held_out = records(open_data("starter:heldout_concepts"))
    assert all(record.extra["held_out"] for record in held_out)
    assert not {record.group for record in held_out} & {record.group for record in train}
    validation = records(open_data("starter:validation"))
    assert not {record.id for record in validation} & {record.id for record in train}


@pytest.mark.parametrize("style", starter.STYLES)
def test_a_split_can_be_narrowed_to_one_style(style: str) -> None:
    whole = records(open_data("starter:heldout_concepts"))
    found = records(open_data(f"starter:heldout_concepts/{style}"))
    assert [r.id for r in found] == [r.id for r in whole if r.extra["style"] == style]
    assert found == records(open_data("starter:heldout_concepts", styles=[style]))


def test_the_text_split_has_every_concept_once_and_no_image(everything: list[Record]) -> None:
    text = records(open_data("starter:text"))
    assert {record.id for record in text} == {record.group for record in everything}
    assert len(text) == len({record.id for record in text})
    assert all(record.image is None and record.captions and record.texts for record in text)
    assert any(record.extra["held_out"] for record in text)


def test_all_locales_are_there_on_request() -> None:
    source = open_data("starter:text", locales="all")
    assert len(source.languages) > 100
    assert set(starter.LANGUAGES) < set(source.languages)
    assert set(source[0].captions) <= set(source.languages)
    assert open_data("starter:text", languages="sv nn").languages == ("sv", "nn")


def test_reading_backwards_and_beyond_the_end() -> None:
    source = open_data("starter:validation")
    assert source[-1] == source[len(source) - 1]
    for index in (len(source), -len(source) - 1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "vaildation"}, "did you mean 'validation'"),
        ({"split": "train/notto"}, "did you mean 'noto'"),
        ({"styles": ["fluant"]}, "did you mean 'fluent'"),
        ({"languages": ["en", "xx"]}, "no language 'xx'"),
        ({"locales": 25}, "locales"),
    ],
)
def test_unknown_names_are_config_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_data({"source": "starter", **options})


def test_a_split_without_drawings_of_a_style_says_so() -> None:
    with pytest.raises(DataError, match="no drawing"):
        open_data("starter:train/fluent")


def test_a_missing_installation_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setattr(starter, "folder", lambda: empty)
    with pytest.raises(DataError, match="install mmbert again"):
        open_data("starter")
    (empty / "concepts.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="damaged"):
        open_data("starter")


def test_opening_it_loads_no_deep_learning_library() -> None:
    code = (
        "import sys; from mmbert.data.sources import open_data; open_data('starter')[0]; "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_undrawn_concepts_are_the_held_out_ones_as_text() -> None:
    undrawn, every = open_data("starter:text", undrawn=True), open_data("starter:text")
    assert {undrawn[i].group for i in range(len(undrawn))} == {
        r.group for r in map(every.__getitem__, range(len(every))) if r.extra["held_out"]
    }
    assert len(undrawn) == 150 and undrawn[0].image is None
    with pytest.raises(ConfigError, match="split: text"):
        open_data("starter:train", undrawn=True)
