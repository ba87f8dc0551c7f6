"""Pages about an evaluation: a report (and the answers behind it) go in, one self-contained HTML file comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbert import __version__, html
from mmbert.errors import ImageError, UsageError
from mmbert.evaluation.ranks import CUTOFFS, Report
from mmbert.evaluation.retrieval import Answer, Retrieval
from mmbert.vision.images import load_image

COLUMNS = tuple(f"R@{k}" for k in CUTOFFS)
DIRECTIONS = ("text_to_image", "image_to_text")

Facts = Iterable[tuple[str, Any]]


def recall_page(
    after: Report,
    before: Report | None = None,
    *,
    title: str = "Retrieval",
    facts: Facts = (),
    names: tuple[str, str] = ("before", "after"),
    answers: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A page with recall by language as tables and bars.

    Args:
        after: as ``recall_report`` gives it.
        before: an earlier report to compare with; languages that only it has are left out.
        facts: name and value of what a reader should know (model, data, counts).
        names: what to call ``before`` and ``after``.
        answers: the gallery below, see ``retrieval_page``.

    Raises:
        UsageError: ``before`` is no such report.
    """
    if before is not None:
        check_report(before)
    return html.render(
        "retrieval.html",
        title=title,
        facts=list(facts),
        version=__version__,
        columns=COLUMNS,
        after=after,
        before=before,
        before_name=names[0],
        after_name=names[1],
        answers=answers,
    )


def retrieval_page(
    retrieval: Retrieval,
    *,
    before: Report | None = None,
    title: str = "Retrieval",
    facts: Facts = (),
    names: tuple[str, str] = ("before", "after"),
    per_language: int = 3,
    shown_answers: Sequence[Answer] | None = None,
) -> str:
    """A page with recall by language and a gallery: some queries of each language with their best five images.

    Args:
        retrieval: a finished evaluation.
        per_language: queries shown for each language, drawn at random (the same every time).
        shown_answers: show these instead.
        before, title, facts, names: as for ``recall_page``.
    """
    gallery = retrieval.gallery
    names_of = dict(zip(gallery.text_group[::-1].tolist(), gallery.texts[::-1], strict=True)) | gallery.gloss
    shown: dict[int, str | None] = {}

    def picture(image: int) -> str | None:
        if image not in shown:
            try:
                shown[image] = html.thumbnail(load_image(gallery.images[image]))
            except ImageError:  # it was there when it was encoded; the page says that it is not any more
                shown[image] = None
        return shown[image]

    def as_shown(answer: Answer) -> dict[str, Any]:
        tiles = [
            {
                "image": picture(found.image),
                "name": names_of.get(int(gallery.image_group[found.image]), ""),
                "cosine": found.cosine,
                "match": found.match,
                "right": found.right,
            }
            for found in answer.found
        ]
        return {
            "text": answer.text,
            "language": answer.language,
            "gloss": answer.gloss,
            "rank": answer.rank,
            "tiles": tiles,
            "any_right": any(found.right for found in answer.found),
        }

    chosen = retrieval.sample(per_language) if shown_answers is None else shown_answers
    answers = [as_shown(answer) for answer in chosen]
    return recall_page(retrieval.report(), before, title=title, facts=facts, names=names, answers=answers)


def write_recall_page(path: Path, after: Report, before: Report | None = None, **options: Any) -> None:
    """``recall_page`` into a file."""
    html.write_page(path, recall_page(after, before, **options))


def write_retrieval_page(path: Path, retrieval: Retrieval, **options: Any) -> None:
    """``retrieval_page`` into a file."""
    html.write_page(path, retrieval_page(retrieval, **options))


def check_report(report: Any) -> None:
    """Make sure that ``report`` has the form of ``recall_report``'s answer.

    Raises:
        UsageError: it has not.
    """
    wanted = {*COLUMNS, "median_rank"}
    try:
        fits = all(
            isinstance(values[name], (int, float))
            for direction in DIRECTIONS
            for values in (report[direction]["mean"], *report[direction].values())
            for name in wanted
        )
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UsageError(
            "not a retrieval report", hint="make one with: mmbert evaluate retrieval … --json > before.json"
        )
