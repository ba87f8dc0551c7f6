"""Accuracy of lexical translation against a count by hand, and what it says of unseen words and short lists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_network

from mmbert.api.front_door import MMBert
from mmbert.api.processing import MMBertProcessor
from mmbert.data.records import Record
from mmbert.errors import DataError, UsageError
from mmbert.evaluation.lexical import evaluate_lexical, target_words
from mmbert.evaluation.measures import lexical as measure
from mmbert.model.packed import SequenceSpec, pack
from mmbert.text.tokenizer import train_tokenizer

WORDS = ["hut", "mütze", "schnee", "weiß"]
LEXICON = {"de": {"hat": {"hut": {"hut": 3}, "mütze": {"mütze": 2}}, "white": {"weiß": {"weiß": 4}}}}
SENTENCES = ["a man in a hat", "two hats in the snow", "a white hat", "the snow is white", "a green hat"]
ROWS = [("hat", "Hut"), ("hat", "mütze kappe"), ("hat", "kappe"), ("white", "weiß"), ("snow", "schnee")]


def record(number: int) -> Record:
    word, translations = ROWS[number]
    annotation = {"word": word, "language": "de", "translations": translations.split()}
    return Record(str(number), captions={"en": (SENTENCES[number],), "de": ("-",)}, annotation=annotation)


RECORDS = [record(number) for number in range(len(ROWS))]


def model_of(head: dict[str, Any] | None) -> MMBert:
    tokenizer = train_tokenizer([*SENTENCES, *WORDS] * 5, vocab_size=300)
    heads = {"lexical": {"kind": "linear", "outputs": 4, **head}} if head is not None else None
    network = tiny_network(vocab_size=len(tokenizer), heads=heads, max_text_tokens=32)
    return MMBert(network, MMBertProcessor(tokenizer, network.config))


@pytest.fixture(scope="module")
def model() -> MMBert:
    return model_of({"labels": WORDS, "lexicon": LEXICON})


def best_words(model: MMBert, among: list[list[str]]) -> list[str]:
    """Each item alone: the word with the highest logit of those allowed."""
    found = []
    for (word, _), sentence, allowed in zip(ROWS, SENTENCES, among, strict=True):
        pooled = model.model(pack([SequenceSpec(model.processor.ids(word, sentence))])).pooled
        logits = model.model.head_logits("lexical", pooled)[0].tolist()
        found.append(max(allowed, key=lambda text: logits[WORDS.index(text)]))
    return found


def test_the_choice_is_the_best_of_the_words_own_translations(model: MMBert) -> None:
    hats, all_words = ["hut", "mütze"], WORDS
    among = [hats, hats, hats, ["weiß"], all_words]
    result = evaluate_lexical(model, RECORDS, batch_tokens=20)
    assert [choice.chosen["without_image"] for choice in result.choices] == best_words(model, among)
    whole = evaluate_lexical(model, RECORDS, whole_list=True)
    assert [choice.chosen["without_image"] for choice in whole.choices] == best_words(model, [all_words] * 5)


def test_the_report_counts_what_can_be_counted_by_hand(model: MMBert) -> None:
    result = evaluate_lexical(model, RECORDS)
    report = result.report()
    right = [c.chosen["without_image"] in t.lower().split() for c, (_, t) in zip(result.choices, ROWS, strict=True)]
    assert report["without_image"] == pytest.approx(np.mean(right))
    assert report["majority"] == pytest.approx(2 / 5)  # hat -> hut once, white -> weiß; snow was never seen
    assert report["with_image"] is None
    assert (report["items"], report["several_references"], report["out_of_list"]) == (5, 1, 1)  # kappe alone
    assert report["reachable"] == pytest.approx(4 / 5)
    assert report["unseen"] == {
        "items": 1, "words": ["snow"], "with_image": None, "without_image": float(right[4]), "majority": 0.0,
    }  # fmt: skip


def test_what_is_given_is_chosen_by_all_its_forms_together() -> None:
    """Two forms of one word win over a third that alone is the most probable."""
    forms = {"hat": {"hut": {"hut": 3}, "mütze": {"mütze": 2}, "schnee": {"mütze": 1, "kappe": 1}}}
    known = model_of({"labels": WORDS, "lexicon": {"de": forms}})
    records = RECORDS[:3]
    result = evaluate_lexical(known, records, as_given=True)
    for number, choice in enumerate(result.choices):
        ids = known.processor.ids("hat", SENTENCES[number])
        hut, mütze, schnee = (
            known.model.head_logits("lexical", known.model(pack([SequenceSpec(ids)])).pooled)[0, :3].exp().tolist()
        )
        totals = {"hut": hut, "mütze": mütze + schnee / 2, "kappe": schnee / 2}
        assert choice.chosen["without_image"] == max(totals, key=lambda text: totals[text])
        assert choice.chosen["majority"] == "hut"
        assert choice.reachable
        assert choice.in_list


@pytest.mark.parametrize("whole_list", [False, True], ids=["candidates", "all"])
@pytest.mark.parametrize("as_given", [False, True], ids=["forms", "given"])
def test_with_a_prior_a_network_that_has_learnt_nothing_answers_as_counting_does(
    whole_list: bool, as_given: bool
) -> None:
    model = model_of({"labels": WORDS, "lexicon": LEXICON, "prior": 1.0})
    with torch.no_grad():
        for parameter in model.model.heads["lexical"].parameters():
            parameter.zero_()
    result = evaluate_lexical(model, RECORDS, whole_list=whole_list, as_given=as_given)
    assert [c.chosen["without_image"] for c in result.choices[:4]] == [c.chosen["majority"] for c in result.choices[:4]]
    assert result.choices[4].chosen["majority"] is None  # never seen


def test_a_prior_raises_each_logit_by_the_logarithm_of_its_count() -> None:
    lexicon = {"de": {"hat": {"hut": {"hut": 3000}, "mütze": {"mütze": 2}}}}
    model = model_of({"labels": WORDS, "lexicon": lexicon, "prior": 0.5})
    ids = model.processor.ids(ROWS[0][0], SENTENCES[0])
    logits = model.model.head_logits("lexical", model.model(pack([SequenceSpec(ids)])).pooled)[0, :2].tolist()
    raised = [logits[0] + 0.5 * math.log(3001), logits[1] + 0.5 * math.log(3)]
    (choice,) = evaluate_lexical(model, RECORDS[:1]).choices
    assert choice.chosen["without_image"] == WORDS[int(np.argmax(raised))]
    assert int(np.argmax(raised)) == 0  # so much more often that no small network's logits outweigh it


def test_a_row_per_word_adds_up_to_the_whole(model: MMBert) -> None:
    result = evaluate_lexical(model, RECORDS)
    rows = result.words()
    assert [row["word"] for row in rows] == ["hat", "snow", "white"]
    for way in ("without_image", "majority"):
        total = sum(row[way] * row["items"] for row in rows)
        assert total / 5 == pytest.approx(result.report()[way])
    assert (rows[0]["most_frequent"], rows[1]["most_frequent"], rows[1]["seen"]) == ("hut", None, False)


def test_a_model_that_names_no_words_takes_a_list() -> None:
    nameless = model_of({})
    with pytest.raises(UsageError, match="3 target words for a head with 4 outputs"):
        target_words(nameless, WORDS[:3])
    result = evaluate_lexical(nameless, RECORDS, target=target_words(nameless, WORDS))
    assert result.report()["majority"] is None  # nothing is known of the rows it was trained on
    with pytest.raises(UsageError, match="no head for lexical translation"):
        evaluate_lexical(model_of(None), RECORDS)


def test_records_about_no_word_are_refused(model: MMBert) -> None:
    with pytest.raises(DataError, match="no record gives a word"):
        evaluate_lexical(model, [Record("a", captions={"en": ("a hat",)})])


def test_languages_that_are_not_there_are_refused_and_those_there_named(model: MMBert) -> None:
    assert len(evaluate_lexical(model, RECORDS, languages=["de"]).choices) == len(RECORDS)
    with pytest.raises(UsageError, match="no words translated to 'fr'") as caught:
        evaluate_lexical(model, RECORDS, languages=["de", "fr"])
    assert caught.value.hint == "there are: de"
    with pytest.raises(UsageError, match="no language to evaluate"):
        evaluate_lexical(model, RECORDS, languages=[])


def test_the_measure_gives_accuracy_beside_the_baseline(model: MMBert) -> None:
    measured = measure.measure(model, RECORDS, measure.Options())
    report = evaluate_lexical(model, RECORDS).report()
    accuracy = report["without_image"]
    assert measured.figures == {"accuracy": accuracy, "without_image": accuracy, "majority": 0.4}
    assert measured.show is not None
    shown = measured.show()
    assert shown.columns == ("word", "in", "without image", "majority", "right")
    assert len(shown.rows) == 5
    assert sum(row[2].lower() in row[4].split(", ") for row in shown.rows) == 5 * accuracy
    assert measure.table(measured.report)[-1] == f"| 5 |  | {100 * accuracy:.1f} | 40.0 |"
