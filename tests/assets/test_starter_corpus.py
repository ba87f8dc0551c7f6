"""The shipped starter corpus is complete, its pictures are whole and its splits are honest."""

import io
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

STARTER = Path(str(files("mmbert"))) / "assets" / "starter"
LANGUAGES = "en de fr cs es it pt nl pl ru uk tr ar he fa hi bn zh ja ko vi id sw el".split()
STYLES = {"twemoji", "noto", "fluent"}


@pytest.fixture(scope="module")
def concepts() -> dict[str, dict]:
    rows = pq.read_table(STARTER / "concepts.parquet").to_pylist(maps_as_pydicts="strict")
    return {row["codepoints"]: row for row in rows}


@pytest.fixture(scope="module")
def drawings() -> list[dict]:
    return pq.read_table(STARTER / "drawings.parquet").to_pylist()


def in_split(drawings: list[dict], split: str) -> list[dict]:
    return [row for row in drawings if split in row["splits"]]


def test_files_have_the_documented_columns() -> None:
    text = pa.string()
    assert pq.read_schema(STARTER / "concepts.parquet").equals(
        pa.schema(
            {
                "concept": text,
                "codepoints": text,
                "names": pa.map_(text, text),
                "keywords": pa.map_(text, pa.list_(text)),
                "held_out": pa.bool_(),
            }
        )
    )
    assert pq.read_schema(STARTER / "drawings.parquet").equals(
        pa.schema({"codepoints": text, "style": text, "image": pa.binary(), "splits": pa.list_(text)})
    )


def test_corpus_fits_its_size_limit() -> None:
    corpus = [path for path in STARTER.rglob("*") if path.is_file() and STARTER / "model" not in path.parents]
    assert sum(path.stat().st_size for path in corpus) <= 15_000_000


def test_starter_model_fits_its_size_limit() -> None:
    assert 0 < sum(path.stat().st_size for path in (STARTER / "model").iterdir()) <= 30_000_000


def test_there_are_about_1500_concepts_and_each_appears_once(concepts) -> None:
    table = pq.read_table(STARTER / "concepts.parquet", columns=["codepoints"])
    assert len(concepts) == table.num_rows
    assert len(concepts) >= 1500


def test_codepoints_spell_the_concept(concepts) -> None:
    for codepoints, row in concepts.items():
        assert "".join(chr(int(part, 16)) for part in codepoints.split("-")) == row["concept"]


def test_there_are_no_skin_tones_and_no_country_flags(concepts) -> None:
    for row in concepts.values():
        assert not any(0x1F3FB <= ord(char) <= 0x1F3FF for char in row["concept"])
        assert not any(0x1F1E6 <= ord(char) <= 0x1F1FF for char in row["concept"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_concept_has_its_own_name_in_every_starter_language(concepts, language) -> None:
    names = [row["names"][language] for row in concepts.values()]
    assert all(name.strip() and "↑" not in name for name in names)
    assert len({name.casefold() for name in names}) == len(names)


def test_keywords_neither_repeat_the_name_nor_themselves(concepts) -> None:
    for row in concepts.values():
        assert set(row["keywords"]) <= set(row["names"])
        for locale, keywords in row["keywords"].items():
            folded = [row["names"][locale].casefold(), *(keyword.casefold() for keyword in keywords)]
            assert keywords
            assert all(keyword.strip() for keyword in keywords)
            assert len(folded) == len(set(folded)), (row["codepoints"], locale)


def test_every_concept_is_drawn_once_in_every_style(concepts, drawings) -> None:
    drawn = Counter((row["codepoints"], row["style"]) for row in drawings)
    assert set(drawn) == {(codepoints, style) for codepoints in concepts for style in STYLES}
    assert set(drawn.values()) == {1}


def test_every_drawing_is_a_visible_transparent_96_pixel_picture(drawings) -> None:
    for row in drawings:
        with Image.open(io.BytesIO(row["image"])) as image:
            where = (row["codepoints"], row["style"])
            assert (image.format, image.size, image.mode) == ("WEBP", (96, 96), "RGBA"), where
            lowest, highest = image.getchannel("A").getextrema()
            assert highest > 200, where
            assert lowest < 50, where


def test_drawings_of_one_concept_differ_between_styles(concepts, drawings) -> None:
    assert len({(row["codepoints"], row["image"]) for row in drawings}) == len(drawings)


def test_fluent_drawings_are_in_colour(drawings) -> None:
    saturation = []
    for row in drawings[2 :: 3 * 10]:
        assert row["style"] == "fluent"
        with Image.open(io.BytesIO(row["image"])) as image:
            histogram = (
                image.convert("RGB").convert("HSV").getchannel("S").histogram(image.getchannel("A").convert("1"))
            )
        saturation.append(sum(level * count for level, count in enumerate(histogram)) / sum(histogram))
    assert sum(value > 30 for value in saturation) > 0.8 * len(saturation)


def test_no_fluent_drawing_is_trained_or_used_for_model_selection(drawings) -> None:
    fluent = [row for row in drawings if row["style"] == "fluent"]
    assert in_split(drawings, "heldout_style") == fluent
    assert not any({"train", "validation"} & set(row["splits"]) for row in fluent)


def test_150_held_out_concepts_are_in_no_training_or_validation_drawing(concepts, drawings) -> None:
    held_out = {codepoints for codepoints, row in concepts.items() if row["held_out"]}
    assert len(held_out) == 150
    rows = [row for row in drawings if row["codepoints"] in held_out]
    assert in_split(drawings, "heldout_concepts") == rows
    assert len(rows) == 450
    assert not any({"train", "validation"} & set(row["splits"]) for row in rows)


def test_validation_has_200_concepts_that_are_trained_in_the_other_style_only(drawings) -> None:
    validation = in_split(drawings, "validation")
    assert Counter(row["style"] for row in validation) == {"noto": 100, "twemoji": 100}
    assert len({row["codepoints"] for row in validation}) == 200
    trained = {(row["codepoints"], row["style"]) for row in in_split(drawings, "train")}
    other = {"noto": "twemoji", "twemoji": "noto"}
    for row in validation:
        assert (row["codepoints"], row["style"]) not in trained
        assert (row["codepoints"], other[row["style"]]) in trained


def test_every_remaining_drawing_is_trained(concepts, drawings) -> None:
    assert all(row["splits"] for row in drawings)
    for row in in_split(drawings, "train") + in_split(drawings, "validation"):
        assert len(row["splits"]) == 1
    assert len(in_split(drawings, "train")) == 2 * (len(concepts) - 150) - 200


def test_no_evaluation_drawing_has_the_same_bytes_as_a_training_drawing(drawings) -> None:
    trained = {row["image"] for row in in_split(drawings, "train")}
    assert not any(row["image"] in trained for row in drawings if "train" not in row["splits"])


def test_held_out_and_validation_concepts_spread_over_the_code_space(concepts, drawings) -> None:
    order = list(concepts)
    for chosen in (
        {codepoints for codepoints, row in concepts.items() if row["held_out"]},
        {row["codepoints"] for row in in_split(drawings, "validation")},
    ):
        quarters = Counter(order.index(codepoints) * 4 // len(order) for codepoints in chosen)
        assert min(quarters[quarter] for quarter in range(4)) > len(chosen) / 8


def test_every_source_has_its_licence_text_and_attribution() -> None:
    folder = STARTER / "LICENSES"
    attribution = (folder / "ATTRIBUTION.md").read_text("utf-8")
    texts = sorted(path.name for path in folder.glob("*.txt"))
    assert texts == [
        "Apache-2.0.txt",
        "CC-BY-4.0.txt",
        "MIT-fluent-emoji.txt",
        "MIT-fluentui-emoji-package.txt",
        "MIT-twemoji-svg.txt",
        "Unicode-3.0.txt",
    ]
    for name in texts:
        assert name in attribution
        assert len((folder / name).read_text("utf-8")) > 900
    for source in ("Unicode CLDR", "Twemoji", "Noto Emoji", "Fluent Emoji", "What was changed"):
        assert source in attribution
