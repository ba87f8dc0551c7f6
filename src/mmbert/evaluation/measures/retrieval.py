"""Finding images by captions and captions by images; the figures are text-to-image means over languages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.evaluation.examples import retrieval_examples
from mmbert.evaluation.measures import Measured
from mmbert.evaluation.retrieval import Retrieval
from mmbert.evaluation.tuning import best_rerank_weights


class Options(BaseModel):
    """``mode``: embed, match or rerank."""

    model_config = ConfigDict(extra="forbid")
    mode: Literal["embed", "match", "rerank"] = "embed"


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """R@k and median rank."""
    found = Retrieval(model, records, mode=options.mode)
    report = dict(found.report())
    figures = {k: float(v) for k, v in report["text_to_image"]["mean"].items()}
    return Measured(report, figures, partial(retrieval_examples, found))


def tune(model: MMBert, records: Sequence[Record], options: Options) -> tuple[float, float]:
    """Weights of match logit and hubness in re-ranking."""
    return best_rerank_weights(model, records)[0]


def how(options: Options) -> str:
    """The mode."""
    return options.mode


def table(report: dict[str, Any]) -> list[str]:
    """R@k by language and direction."""
    rows = [
        "| language | text to image R@1 | R@5 | R@10 | image to text R@1 | R@5 | R@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for language, to_image in report["text_to_image"].items():
        to_text = report["image_to_text"].get(language, {})
        figures = [row.get(k) for row in (to_image, to_text) for k in ("R@1", "R@5", "R@10")]
        rows.append(f"| {language} | " + " | ".join("" if f is None else f"{100 * f:.1f}" for f in figures) + " |")
    return rows
