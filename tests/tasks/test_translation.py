"""Translation examples: a source (or none) with its image, continued by the language's token and the target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny import KnownRegions, Quarters, picture, tiny_config

from mmbert.api.processing import MMBertProcessor
from mmbert.data.packing import Example, collate
from mmbert.data.records import ImageRef, Record
from mmbert.errors import ConfigError
from mmbert.tasks import translation
from mmbert.text.tokenizer import train_tokenizer, writing_languages

CAPTIONS = {"en": ("a dog", "the red dog"), "de": ("ein Hund",), "fr": ("un chien",)}
TEXT = Record("t", None, CAPTIONS)
PICTURE = Record("p", ImageRef(path="a.png"), CAPTIONS)


@pytest.fixture(scope="module")
def writer() -> MMBertProcessor:
    tokenizer = train_tokenizer([t for texts in CAPTIONS.values() for t in texts] * 3, vocab_size=300)
    tokenizer.add_tokens(["[2de]", "[2zh-Hant]", "[2en]", "[STOP]"], special_tokens=True)
    return MMBertProcessor(tokenizer, tiny_config(vocab_size=len(tokenizer), max_text_tokens=32), Quarters())


def made(
    processor: MMBertProcessor, record: Record = TEXT, seed: int = 0, objective: str = "lm", **options: Any
) -> list[Example]:
    task = translation.build(translation.Options(**options), processor, (objective,))
    return task.examples(record, np.random.default_rng(seed))


def pieces(processor: MMBertProcessor, text: str) -> list[int]:
    return processor.ids(text)[1:-1].tolist()


def test_languages_are_read_from_the_vocabulary(writer: MMBertProcessor) -> None:
    ids = writer.tokenizer.get_vocab()
    assert writing_languages(writer.tokenizer) == {code: ids[f"[2{code}]"] for code in ("de", "zh-Hant", "en")}


def test_a_sentence_is_continued_by_its_translation(writer: MMBertProcessor) -> None:
    (example,) = made(writer, sources=["en"], targets=["de"])
    tokenizer = writer.tokenizer
    assert example.token_ids.tolist() in [writer.ids(text).tolist() for text in CAPTIONS["en"]]
    german = pieces(writer, "ein Hund")
    assert example.written.tolist() == [tokenizer.convert_tokens_to_ids("[2de]"), *german]  # type: ignore[union-attr]
    label = example.labels["lm"]
    assert label.places.tolist() == list(range(1 + len(german)))
    assert label.values.tolist() == [*german, tokenizer.sep_token_id]  # type: ignore[union-attr]
    assert example.image is None


def test_one_language_may_be_in_every_pair(writer: MMBertProcessor) -> None:
    """All directions through English; French is read, but has no token to be written."""
    ids = writer.tokenizer.get_vocab()
    known = {code: {tuple(writer.ids(text).tolist()) for text in texts} for code, texts in CAPTIONS.items()}
    found = set()
    for seed in range(40):
        (example,) = made(writer, seed=seed, through="en")
        read = next(code for code, texts in known.items() if tuple(example.token_ids.tolist()) in texts)
        found.add((read, next(code for code in CAPTIONS if ids.get(f"[2{code}]") == example.written[0])))
    assert found == {("en", "de"), ("de", "en"), ("fr", "en")}


def test_directions_are_drawn_as_often_as_their_weights_say(writer: MMBertProcessor) -> None:
    """Three to one for German from English; English from German has the usual weight."""
    german, counted = writer.tokenizer.convert_tokens_to_ids("[2de]"), {True: 0, False: 0}
    for seed in range(400):
        (example,) = made(writer, seed=seed, sources=["en", "de"], through="en", weights={"en-de": 3})
        counted[bool(example.written[0] == german)] += 1
    assert counted[True] == pytest.approx(300, abs=40)  # more than four standard deviations
    shown = [made(writer, PICTURE, seed=seed, sources=[], weights={"-de": 1e6})[0] for seed in range(5)]
    assert all(example.written[0] == german for example in shown)
    with pytest.raises(ConfigError, match="'en-fr' ends with no language that can be written"):
        made(writer, weights={"en-fr": 2})
    with pytest.raises(ValueError, match="greater than 0"):
        translation.Options(weights={"en-de": 0})


def test_labels_stand_where_the_text_is_written(writer: MMBertProcessor) -> None:
    """Behind all sequences of the batch, in their order; a sequence that is not continued has none."""
    rng = np.random.default_rng(0)
    shown = picture("shown", 3, rng)
    first, other = made(writer, seed=1)[0], made(writer, seed=2)[0]
    examples = [
        first,
        Example(np.array([1, 2])),
        Example(other.token_ids, image=shown.ref, written=other.written, labels=other.labels),
    ]
    batch = collate(examples, KnownRegions([shown]))
    assert batch.continuation is not None
    target = batch.targets["lm"]
    places = target.positions - batch.num_positions
    assert places.tolist() == list(range(batch.continuation.num_positions))
    inputs = batch.continuation.token_ids[places]
    ends = np.cumsum(batch.continuation.lengths)
    for place, label in enumerate(target.labels.tolist()):
        follows = place + 1 not in ends  # a token's label is the next token
        assert (label == int(inputs[place + 1])) if follows else label == writer.tokenizer.sep_token_id


def test_only_languages_with_a_token_are_written(writer: MMBertProcessor) -> None:
    starts = {int(made(writer, seed=seed)[0].written[0]) for seed in range(30)}  # type: ignore[index]
    assert starts == {writer.tokenizer.convert_tokens_to_ids(f"[2{code}]") for code in ("de", "en")}


def test_no_language_is_translated_into_itself(writer: MMBertProcessor) -> None:
    texts = {tuple(writer.ids(t).tolist()): code for code, given in CAPTIONS.items() for t in given}
    tokens = {number: code for code, number in writing_languages(writer.tokenizer).items()}
    for seed in range(40):
        (example,) = made(writer, seed=seed)
        assert texts[tuple(example.token_ids.tolist())] != tokens[int(example.written[0])]  # type: ignore[index]


def test_a_caption_has_nothing_to_read_but_its_image(writer: MMBertProcessor) -> None:
    (example,) = made(writer, PICTURE, caption_rate=1.0)
    assert example.token_ids.tolist() == writer.image_ids().tolist()
    assert example.image is PICTURE.image
    only = Record("p", PICTURE.image, {"de": ("ein Hund",)})
    assert made(writer, only)[0].token_ids.tolist() == writer.image_ids().tolist()
    assert made(writer, PICTURE)[0].image is PICTURE.image
    assert made(writer, PICTURE, images=False)[0].image is None


def test_records_that_cannot_be_used_cost_nothing(writer: MMBertProcessor) -> None:
    task = translation.build(translation.Options(), writer, ("lm",))
    assert task.cost(Record("t", None, {"de": ("ein Hund",)})) == 0
    assert task.cost(Record("t", None, {"fr": ("un chien",)})) == 0
    assert task.cost(Record("t", None, {"fr": ("un chien",), "de": ("ein Hund",)})) > 0


@pytest.mark.parametrize("objective", ["lm", "mlm"])
@pytest.mark.parametrize("record", [TEXT, PICTURE], ids=["text", "picture"])
def test_the_cost_is_never_less_than_what_is_made(writer: MMBertProcessor, record: Record, objective: str) -> None:
    for options in ({}, {"prefixes": 2}, {"targets": ["de"]}, {"caption_rate": 0.5}):
        task = translation.build(translation.Options(**options), writer, (objective,))  # type: ignore[arg-type]
        for seed in range(12):
            examples = task.examples(record, np.random.default_rng(seed))
            sizes = [
                len(e.token_ids) + 1 + (5 if e.image else 0) + len(() if e.written is None else e.written)
                for e in examples
            ]
            assert sum(sizes) <= task.cost(record)


def test_the_simple_encoder_reads_every_prefix(writer: MMBertProcessor) -> None:
    examples = made(writer, objective="mlm", sources=["en"], targets=["de"])
    tokenizer = writer.tokenizer
    german, stop = pieces(writer, "ein Hund"), tokenizer.convert_tokens_to_ids("[STOP]")
    assert len(examples) == len(german) + 1
    source = next(
        ids for ids in map(writer.ids, CAPTIONS["en"]) if examples[0].token_ids[: len(ids)].tolist() == ids.tolist()
    )
    for number, example in enumerate(examples):
        end = [tokenizer.mask_token_id, tokenizer.sep_token_id]
        assert example.token_ids.tolist() == [*source, *german[:number], *end]
        label = example.labels["mlm"]
        assert example.token_ids[label.places].tolist() == [tokenizer.mask_token_id]
        assert label.values.tolist() == [[*german, stop][number]]  # type: ignore[union-attr]
    assert len(made(writer, objective="mlm", targets=["de"], prefixes=2)) == 2


def test_a_missing_token_is_named_with_the_remedy(writer: MMBertProcessor) -> None:
    with pytest.raises(ConfigError, match=r"no token \[2fr\].*add_special: \['\[2fr\]'\]"):
        made(writer, targets=["fr"])
    with pytest.raises(ConfigError, match="lm or by mlm"):
        translation.build(translation.Options(), writer, ("lm", "mlm"))
