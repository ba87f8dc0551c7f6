"""Ambiguous words of validation data that are translated rightly, beside their most frequent translation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from mmbert.api.front_door import MMBert
from mmbert.data.lexicon import Answers
from mmbert.data.records import Record
from mmbert.evaluation.examples import Examples, spread
from mmbert.evaluation.lexical import (
    COLUMNS,
    WITH_IMAGE,
    WITHOUT_IMAGE,
    LexicalResult,
    evaluate_lexical,
    target_words,
)
from mmbert.evaluation.measures import Measured


class Options(BaseModel):
    """What is measured.

    Attributes:
        images: choose with the image where there is one; that accuracy then decides.
        answers: which translations are right; None: those that the model was trained on.
        as_given: see :func:`~mmbert.evaluation.lexical.evaluate_lexical`.
        whole_list: choose among all target words.
    """

    model_config = ConfigDict(extra="forbid")
    images: bool = True
    answers: Answers | None = None
    as_given: bool = False
    whole_list: bool = False


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """Accuracy, with the image where it is seen."""
    target = target_words(model)
    result = evaluate_lexical(
        model,
        records,
        target=target,
        images=options.images,
        answers=options.answers or target.answers,
        as_given=options.as_given,
        whole_list=options.whole_list,
    )
    report = result.report()
    decides = report[WITH_IMAGE] if report[WITH_IMAGE] is not None else report[WITHOUT_IMAGE]
    known = {way: float(report[way]) for way in COLUMNS if report[way] is not None}
    return Measured(report, {"accuracy": decides, **known}, partial(_examples, result))


def _examples(result: LexicalResult) -> Examples:
    """Words in their sentences, what each way chose, and what is right."""
    chosen = [result.choices[i] for i in spread(len(result.choices))]
    rows = [
        (
            choice.item.word,
            choice.item.sentence,
            *(choice.chosen.get(way) or "" for way in result.ways),
            ", ".join(sorted(choice.right)),
        )
        for choice in chosen
    ]
    return Examples(("word", "in", *(way.replace("_", " ") for way in result.ways), "right"), rows)


def how(options: Options) -> str:
    """What was chosen among."""
    return "among all target words" if options.whole_list else "among the translations of each word in training"


def table(report: dict[str, Any]) -> list[str]:
    """Accuracies in percent."""
    cells = [f"{100 * report[way]:.1f}" if report[way] is not None else "" for way in COLUMNS]
    return [
        "| items | with image | without image | most frequent translation |",
        "|---|---|---|---|",
        f"| {report['items']} | " + " | ".join(cells) + " |",
    ]
