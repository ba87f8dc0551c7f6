"""How good translations and captions are: sacreBLEU (Post, 2018) and chrF (Popović, 2015) of detokenised text.

Last step of the flow: a model and records go in, what it wrote and a report come out.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert.api.front_door import MMBert
from mmbert.compat.writing import writer_of
from mmbert.data.records import Record
from mmbert.errors import DataError
from mmbert.files import whole_file


@dataclass(frozen=True)
class TranslationResult:
    """What was written and how it scores.

    Attributes:
        report: ``BLEU`` and ``chrF`` (of 100) with their signatures, languages and the number of texts; of models that
            read without accents ``BLEU_folded`` too.
        sources, hypotheses: what was read ("" for nothing) and written.
        references: of each, one or more.
    """

    report: dict[str, Any]
    sources: list[str]
    hypotheses: list[str]
    references: list[list[str]]


def write_texts(path: Path, result: TranslationResult) -> None:
    """Write JSON lines with ``src``, ``mt`` and ``ref`` (the first reference), the fields that COMET scores."""
    rows = zip(result.sources, result.hypotheses, result.references, strict=True)
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for src, mt, refs in rows:
            file.write(json.dumps({"src": src, "mt": mt, "ref": refs[0]}, ensure_ascii=False) + "\n")


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """BLEU (tokenizer 13a, cased) and chrF with the signatures that say exactly how they were computed.

    Args:
        hypotheses: detokenised.
        references: of each hypothesis, one or more.

    Raises:
        DataError: there is nothing to score, or a text without a reference.
    """
    from sacrebleu.metrics import BLEU, CHRF

    return _figures({"BLEU": BLEU(tokenize="13a"), "chrF": CHRF()}, hypotheses, references)


def score_folded(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """``BLEU_folded``: as MM-BERT's models are scored, whose texts have no accents: both sides folded, in lower case.

    The signature is sacreBLEU's, which tells of the lower case only. Arguments and errors as of :func:`score`.
    """
    from sacrebleu.metrics import BLEU

    folded = [[fold(text) for text in given] for given in references]
    return _figures({"BLEU_folded": BLEU(tokenize="13a", lowercase=True)}, [fold(text) for text in hypotheses], folded)


def _figures(metrics: dict[str, Any], hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What each metric of sacreBLEU says, and its signature."""
    if not hypotheses or not all(references) or len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} texts to score, {sum(map(bool, references))} of them with a reference")
    most = max(map(len, references))
    # sacreBLEU takes None for a reference that a text has not.
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        found[name] = round(float(metric.corpus_score(list(hypotheses), streams).score), 4)
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


def fold(text: str) -> str:
    """A text as the references of MM-BERT's publications are: without accents, ß written ss."""
    parts = unicodedata.normalize("NFD", text.replace("ß", "ss").replace("ẞ", "SS"))
    return unicodedata.normalize("NFC", "".join(c for c in parts if unicodedata.category(c) != "Mn"))


def reads_folded(tokenizer: Any) -> bool:
    """Whether a tokenizer strips accents, so that what is written with it never has any."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is not None and normalizer.normalize_str("\u00e9") == "e"


def evaluate_translation(
    model: MMBert,
    records: Sequence[Record],
    *,
    source: str | None,
    target: str,
    images: bool = False,
    beam: int | None = None,
    length_penalty: float = 1.0,
    limit: int | None = None,
    progress: bool = False,
) -> TranslationResult:
    """Translate (or caption) records and score what comes out.

    Args:
        model: one that writes.
        records: with captions in both languages; others are left out. The first caption in ``source`` is read, all in
            ``target`` are references.
        source: language that is read; None captions images.
        target: language that is written. A model that writes at ``[MASK]`` writes what it has learned; then this is but
            the language of the references.
        images: read the image, too (always where ``source`` is None).
        beam, length_penalty, progress: see :meth:`~mmbert.api.writer.Writer.write`.
        limit: so many records only, from the first.

    Raises:
        UsageError: the model does not write, or not this language.
        DataError: no record has what is needed.
    """
    seen = images or source is None
    usable = [
        record
        for record in records
        if record.captions.get(target)
        and (source is None or record.captions.get(source))
        and (record.image is not None or not seen)
    ][:limit]
    if not usable:
        read = "an image" if source is None else f"a caption in {source!r}" + (" and an image" if images else "")
        raise DataError(
            f"no record has {read} and a caption in {target!r}",
            hint=f"languages: {', '.join(sorted({code for record in records for code in record.captions}))}",
        )
    texts = [record.captions[source][0] if source is not None else "" for record in usable]
    writer = writer_of(model)
    written = writer.write(
        texts,
        [record.image for record in usable] if seen else None,
        to=target,
        beam=beam,
        length_penalty=length_penalty,
        progress=progress,
    )
    hypotheses = [best[0].text for best in written]
    references = [list(record.captions[target]) for record in usable]
    facts = {"source": source, "target": target, "images": seen, "beam": beam or writer.beam, "texts": len(usable)}
    figures = score(hypotheses, references)
    if reads_folded(model.processor.tokenizer):
        figures |= score_folded(hypotheses, references)
    return TranslationResult(facts | figures, texts, hypotheses, references)
