"""Translations (or captions) of validation data, scored with BLEU and chrF."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mmbert.api.front_door import MMBert
from mmbert.api.writer import MOST_PENALTY
from mmbert.data.records import Record
from mmbert.evaluation.examples import Examples, spread
from mmbert.evaluation.measures import Measured
from mmbert.evaluation.translation import TranslationResult, evaluate_translation


class Options(BaseModel):
    """What is translated.

    Attributes:
        source: language that is read; None captions images.
        target: language that is written.
        images: the record's image is read too.
        beam: hypotheses kept; 1 is greedy, and quick.
        length_penalty: see :meth:`~mmbert.api.writer.Writer.write`.
        limit: so many records only, from the first.
    """

    model_config = ConfigDict(extra="forbid")
    source: str | None = "en"
    target: str = "de"
    images: bool = False
    beam: int = Field(default=1, ge=1)
    length_penalty: float = Field(default=1.0, ge=-MOST_PENALTY, le=MOST_PENALTY, allow_inf_nan=False)
    limit: int | None = Field(default=200, ge=1)


def measure(model: MMBert, records: Sequence[Record], options: Options) -> Measured:
    """BLEU and chrF."""
    result = evaluate_translation(
        model,
        records,
        source=options.source,
        target=options.target,
        images=options.images,
        beam=options.beam,
        length_penalty=options.length_penalty,
        limit=options.limit,
    )
    return Measured(result.report, {name: result.report[name] for name in ("BLEU", "chrF")}, partial(_examples, result))


def _examples(result: TranslationResult) -> Examples:
    """What was read, written and expected."""
    chosen = spread(len(result.hypotheses))
    rows = [(result.sources[i] or "(image)", result.hypotheses[i], " / ".join(result.references[i])) for i in chosen]
    return Examples(("read", "written", "right"), rows)


def how(options: Options) -> str:
    """How texts were chosen and found."""
    part = "all texts" if options.limit is None else f"the first {options.limit} texts"
    return f"{part}, {'greedy' if options.beam == 1 else f'beam {options.beam}'}"


def table(report: dict[str, Any]) -> list[str]:
    """The figures with the signatures by which others can repeat them."""
    read = report["source"] or "image"
    lines = [
        "| from | to | texts | BLEU | chrF |",
        "|---|---|---|---|---|",
        f"| {read} | {report['target']} | {report['texts']} | {report['BLEU']:.2f} | {report['chrF']:.2f} |",
        "",
        f"sacreBLEU `{report['BLEU_signature']}`, chrF `{report['chrF_signature']}`.",
    ]
    if "BLEU_folded" in report:
        folded, how_folded = report["BLEU_folded"], report["BLEU_folded_signature"]
        lines += ["", f"BLEU without accents, ß as ss, as MM-BERT is scored: {folded:.2f} (`{how_folded}`)."]
    return lines
