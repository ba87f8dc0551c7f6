"""Figures of translations, cased and as MM-BERT's models are scored, and where which of them are reported."""

from __future__ import annotations

import pytest
import torch
from sacrebleu import corpus_bleu
from written import TEXTS, masked_writer, writing_model

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.errors import DataError
from mmbert.evaluation.measures import translation as measure
from mmbert.evaluation.translation import evaluate_translation, fold, score, score_folded

torch.set_num_threads(1)
RECORDS = [Record(str(n), None, {"en": (text,), "de": ("ein großer Käfer läuft",)}) for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Ein großer Käfer", "Ein grosser Kafer"),
        ("STRAẞE, Café, Öl", "STRASSE, Cafe, Ol"),
        ("Ka\u0308fer", "Kafer"),
        ("čeština übers Ø", "cestina ubers Ø"),
        ("한국", "한국"),
        ("", ""),
    ],
)
def test_folding_strips_accents_and_writes_ss(text: str, folded: str) -> None:
    assert fold(text) == folded
    assert fold(folded) == folded


def test_both_sides_are_folded_and_compared_in_lower_case() -> None:
    """What a model without accents writes is right; cased, none of its words with any is."""
    texts, references = ["ein grosser kafer lauft schnell"], [["Ein großer Käfer läuft schnell", "Ein Hund"]]
    found = score_folded(texts, references)
    assert found["BLEU_folded"] == pytest.approx(100.0)
    assert "case:lc" in found["BLEU_folded_signature"] and "tok:13a" in found["BLEU_folded_signature"]
    assert score_folded(references[0][:1], [texts])["BLEU_folded"] == pytest.approx(100.0)
    assert score(texts, references)["BLEU"] < 20
    wrong = ["ein grosser hund lauft schnell weg"]
    expected = corpus_bleu(wrong, [["ein grosser kafer lauft schnell"]], lowercase=True).score
    assert score_folded(wrong, [references[0][:1]])["BLEU_folded"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(DataError, match="0 texts"):
        score_folded([], [])


@pytest.mark.parametrize(
    ("model", "beam", "folded"),
    [
        (masked_writer(vision=None, accents=False), 1, True),
        (masked_writer(vision=None), 1, False),
        (writing_model(vision=None), 4, False),
    ],
    ids=["at the mask, without accents", "at the mask", "with a beam"],
)
def test_models_that_read_without_accents_are_scored_folded_too(model: MMBert, beam: int, folded: bool) -> None:
    result = evaluate_translation(model, RECORDS, source="en", target="de", limit=2)
    assert result.report["beam"] == beam
    assert result.report["texts"] == len(result.hypotheses) == 2
    assert ("BLEU_folded" in result.report) is folded
    if folded:
        assert result.report.items() >= score_folded(result.hypotheses, result.references).items()
    assert result.report.items() >= score(result.hypotheses, result.references).items()
    lines = "\n".join(measure.table(result.report))
    assert ("case:lc" in lines) is folded


@pytest.mark.parametrize("penalty", ["nan", "inf", 1000, -11])
def test_a_measure_with_a_senseless_length_penalty_is_refused(penalty: object) -> None:
    with pytest.raises(ValueError, match="length_penalty"):
        measure.Options.model_validate({"length_penalty": penalty})
