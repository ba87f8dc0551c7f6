"""Lexical translation examples: the word, its sentence and image, which output is right and among which."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Quarters, step_of, tiny_config, tiny_network
from torch.nn import functional as F

from mmbert.api.processing import MMBertProcessor
from mmbert.data.records import ImageRef, Record
from mmbert.errors import ConfigError, DataError
from mmbert.objectives import lexical
from mmbert.tasks import lexical_translation
from mmbert.tasks.lexical_translation import Options, TargetWords, heads
from mmbert.text.tokenizer import train_tokenizer

ROWS = [
    ("hat", "hut", "a man in a hat", "ein mann mit hut"),
    ("hat", "mütze", "two hats in the snow", "zwei mützen im schnee"),
    ("snow", "schnee", "two hats in the snow", "zwei mützen im schnee"),
]


def record(number: int, image: bool = False) -> Record:
    word, translation, en, de = ROWS[number]
    return Record(
        str(number),
        ImageRef(path="a.png") if image else None,
        captions={"en": (en,), "de": (de,)},
        annotation={"word": word, "language": "de", "translations": [translation]},
    )


class Rows(list[Record]):
    name, languages = "rows", ("en", "de")


def head_of(**options: Any) -> dict[str, Any]:
    return heads([(Options(**options), Rows(record(n) for n in range(3)))])["lexical"]


def processor_of(head: dict[str, Any], **changes: Any) -> MMBertProcessor:
    tokenizer = train_tokenizer([text for row in ROWS for text in row[2:]] * 5, vocab_size=300)
    config = tiny_config(vocab_size=len(tokenizer), max_text_tokens=32, heads={"lexical": head}, **changes)
    return MMBertProcessor(tokenizer, config, Quarters())


def task_of(head: dict[str, Any] | None = None, **options: Any) -> lexical_translation.LexicalTranslationTask:
    wide = {"type_vocab_size": 9}
    return lexical_translation.build(Options(**options), processor_of(head or head_of(**options), **wide), ("lexical",))


def test_the_head_has_an_output_for_each_word_of_the_training_rows() -> None:
    head = head_of()
    assert (head["kind"], head["outputs"], head["labels"]) == ("linear", 3, ["hut", "mütze", "schnee"])
    assert head["lexicon"] == {
        "de": {"hat": {"hut": {"hut": 1}, "mütze": {"mütze": 1}}, "snow": {"schnee": {"schnee": 1}}}
    }
    assert head_of(answers="occurring")["labels"] == ["hut", "mützen", "schnee"]


def test_a_file_gives_the_words_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("schnee\nhut\n", "utf-8")
    head = head_of(words=tmp_path / "words.txt")
    assert (head["labels"], head["outputs"]) == (["schnee", "hut"], 2)
    task = task_of(head)
    assert [task.cost(record(n)) > 0 for n in range(3)] == [True, False, True]  # mütze is not in the list


def test_one_model_has_one_list(tmp_path: Path) -> None:
    rows = Rows(record(n) for n in range(3))
    with pytest.raises(ConfigError, match="different lists"):
        heads([(Options(), rows), (Options(words=tmp_path / "words.txt"), rows)])
    with pytest.raises(DataError, match="no record gives a word"):
        heads([(Options(languages=["fr"]), rows)])


def test_the_word_and_its_sentence_are_a_pair_with_the_image() -> None:
    task = task_of()
    (example,) = task.examples(record(0, image=True), np.random.default_rng(0))
    assert example.token_ids.tolist() == task.processor.ids("hat", "a man in a hat").tolist()
    assert example.image is not None
    assert example.segments == 0
    label = example.labels["lexical"]
    assert (label.scope, label.values.tolist()) == ("sequence", [0])  # type: ignore[union-attr]
    assert label.extra["among"].tolist() == [[True, True, False]]  # what a hat was in training
    blind = task_of(images=False)
    assert blind.examples(record(0, image=True), np.random.default_rng(0))[0].image is None


def test_several_right_words_are_all_drawn() -> None:
    task = task_of()
    several = Record("s", captions={"en": ("a hat",)}, annotation={
        "word": "hat", "language": "de", "translations": ["Mütze", "hut", "kappe"],
    })  # fmt: skip
    drawn = {int(task.examples(several, np.random.default_rng(s))[0].labels["lexical"].values[0]) for s in range(20)}  # type: ignore[index]
    assert drawn == {0, 1}


def test_a_word_that_training_has_not_seen_may_be_anything() -> None:
    target = TargetWords(head_of())
    unseen = Record("u", captions={"en": ("a cap",)}, annotation={
        "word": "cap", "language": "de", "translations": ["hut"],
    })  # fmt: skip
    (item,) = lexical_translation.lexical_items(unseen)
    assert target.candidates(item).all()
    with pytest.raises(ConfigError, match="does not say what the outputs"):
        TargetWords({"kind": "linear", "outputs": 3})


def test_segments_say_which_word_is_meant_and_what_stands_around_it() -> None:
    task = task_of(neighbours=2)
    (example,) = task.examples(record(1), np.random.default_rng(0))
    pieces = task.processor.tokenizer.convert_ids_to_tokens(example.token_ids.tolist())
    said = dict(zip(np.asarray(example.segments).tolist(), pieces, strict=True))
    assert "".join(p for p, s in zip(pieces, example.segments, strict=True) if s == 1) == "▁hats"  # type: ignore[call-overload]
    assert said[3] == "▁two"[-len(said[3]) :]  # the piece before it; nothing stands two places before it
    assert 5 not in said or said[5] in "▁two"
    behind = pieces[max(i for i, s in enumerate(example.segments) if s == 1) + 1 :][:2]  # type: ignore[arg-type]
    assert [said[4], said[6]] == behind


def test_too_few_segments_are_told_with_the_remedy() -> None:
    head = head_of()
    with pytest.raises(ConfigError, match=r"neighbours 2 need 7 segments, the model has 3.*type_vocab_size=7"):
        lexical_translation.build(Options(neighbours=2), processor_of(head), ("lexical",))


@pytest.mark.parametrize("image", [False, True], ids=["text", "picture"])
def test_the_cost_is_never_less_than_what_is_made(image: bool) -> None:
    task = task_of(neighbours=1)
    for number in range(3):
        one = record(number, image)
        (example,) = task.examples(one, np.random.default_rng(0))
        assert len(example.token_ids) + (5 if image else 0) + 1 <= task.cost(one)
    assert task.cost(Record("t", captions={"en": ("a hat",)})) == 0


def test_the_loss_among_candidates_is_the_cross_entropy_of_their_logits_alone() -> None:
    task = task_of()
    network = tiny_network(vocab_size=len(task.processor.tokenizer), heads={"lexical": head_of()}, max_text_tokens=32)
    rng = np.random.default_rng(0)
    step = step_of(network, [task.examples(record(n), rng)[0] for n in range(3)])
    target = step.batch.targets["lexical"]
    with torch.no_grad():
        logits = network.head_logits("lexical", step.output.pooled)
        whole = lexical.compute(step, target, lexical.Options(), "words/lexical")
        among = lexical.compute(step, target, lexical.Options(candidates=True), "words/lexical")
    assert float(whole.total) == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 1, 2]), reduction="sum")))
    hats = -logits[:2, :2].log_softmax(1).diagonal().sum()  # snow has one translation, so nothing to choose
    assert float(among.total) == pytest.approx(float(hats), abs=1e-5)
    assert float(whole.count) == float(among.count) == 3


def test_the_prior_is_added_to_the_logits_before_the_loss() -> None:
    task = task_of(prior=0.5)
    network = tiny_network(vocab_size=len(task.processor.tokenizer), heads={"lexical": head_of()}, max_text_tokens=32)
    rng = np.random.default_rng(0)
    step = step_of(network, [task.examples(record(n), rng)[0] for n in (0, 2)])
    with torch.no_grad():
        logits = network.head_logits("lexical", step.output.pooled)
        loss = lexical.compute(step, step.batch.targets["lexical"], lexical.Options(), "words/lexical")
    raised = logits.clone()
    raised[0, :2] += 0.5 * math.log(2)  # a hat was each of the two once
    raised[1, 2] += 0.5 * math.log(2)
    wanted = F.cross_entropy(raised, torch.tensor([0, 2]), reduction="sum")
    assert float(loss.total) == pytest.approx(float(wanted), abs=1e-5)


def test_the_head_remembers_how_much_counts_say() -> None:
    assert head_of(prior=2)["prior"] == 2.0
    target = TargetWords(head_of(prior=2))
    (item,) = lexical_translation.lexical_items(record(0))
    assert target.prior(item) == pytest.approx([2 * math.log(2), 2 * math.log(2), 0])
    assert not TargetWords({"labels": ["hut"]}).prior(item).any()  # a model of before says nothing of it
