"""Finding the translation of a sentence among others; the figures are means over both directions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record, Source
from mmbert.data.sources import open_data
from mmbert.evaluation.examples import MOST, Examples, spread
from mmbert.evaluation.measures import Measured
from mmbert.evaluation.translation_retrieval import TranslationRetrieval, best_pair_weights


class Options(BaseModel):
    """What is asked.

    Attributes:
        source, target: the two languages; pairs are read in this order.
        mode: embed, match or rerank.
        rerank: how many of the best are re-ordered.
        images: read each sentence with its image.
        tune: re-rank with the weight of the match logit that is best here, not with the model's.
        distractors: data whose sentences stand among the candidates, such as the training data.
    """

    model_config = ConfigDict(extra="forbid")
    source: str = "en"
    target: str = "de"
    mode: Literal["embed", "match", "rerank"] = "embed"
    rerank: int = Field(default=10, ge=1)
    images: bool = False
    tune: bool = False
    distractors: str | dict[str, Any] | None = None


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """R@k, mean reciprocal and median rank."""
    found = _found(model, records, options, options.mode)
    if options.tune and options.mode == "rerank":
        found.weights = best_pair_weights(found)[0]
    report = found.report()
    return Measured(report, dict(report["mean"]), partial(_examples, found))


def _examples(found: TranslationRetrieval) -> Examples:
    """Sentences of either language, the one that was found first, and a right one."""
    rows = []
    for way, side in enumerate(found.sides):
        other = found.sides[1 - way]
        for i in spread(side.asked, MOST // 2):
            answer = int(found.scores(way, i, i + 1)[0].argmax())
            right = np.flatnonzero(other.group == side.group[i])
            expected = other.texts[int(right[0])] if len(right) else ""
            hit = "yes" if answer in right else "no"
            rows.append((side.language, side.texts[i], other.texts[answer], expected, hit))
    return Examples(("language", "sentence", "first one found", "right one", "right"), rows)


def tune(model: MMBert, records: Sequence[Record], options: Options) -> tuple[float, float]:
    """Weights of match logit and hubness in re-ranking."""
    found = _found(model, records, options, "rerank")
    return best_pair_weights(found, hubs=bool(model.config.query_bank))[0]


def _found(
    model: MMBert, records: Sequence[Record], options: Options, mode: Literal["embed", "match", "rerank"]
) -> TranslationRetrieval:
    further = [] if options.distractors is None else _records(open_data(options.distractors))
    return TranslationRetrieval(
        model,
        records,
        source=options.source,
        target=options.target,
        mode=mode,
        rerank=options.rerank,
        images=options.images,
        distractors=further,
    )


def _records(source: Source) -> list[Record]:
    return [source[i] for i in range(len(source))]


def how(options: Options) -> str:
    """The mode, and whether there are distractors."""
    return options.mode + ("" if options.distractors is None else " among distractors")


def table(report: dict[str, Any]) -> list[str]:
    """R@k by direction."""
    rows = ["| from | to | candidates | R@1 | R@5 | R@10 | median rank |", "|---|---|---|---|---|---|---|"]
    pair = report["source"], report["target"]
    for (one, other), candidates in zip((pair, pair[::-1]), report["candidates"][::-1], strict=True):
        found = report[f"{one}_to_{other}"]
        figures = " | ".join(f"{100 * found[k]:.1f}" for k in ("R@1", "R@5", "R@10"))
        rows.append(f"| {one} | {other} | {candidates} | {figures} | {found['median_rank']:.1f} |")
    return rows
