"""Pages about an evaluation: a report (and the answers behind it) go in, one self-contained HTML file comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbert import __version__, html
from mmbert.data.records import ImageRef
from mmbert.errors import ImageError, UsageError
from mmbert.evaluation.gallery import Gallery
from mmbert.evaluation.ranks import CUTOFFS, Report
from mmbert.evaluation.retrieval import Answer, Found, Retrieval
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
    at_random: bool = False,
) -> str:
    """A page with recall by language as tables and bars.

    Args:
        after: as ``recall_report`` gives it.
        before: an earlier report to compare with; languages that only it has are left out.
        facts: name and value of what a reader should know (model, data, counts).
        names: what to call ``before`` and ``after``.
        answers: the gallery below, as ``retrieval_page`` makes it.
        at_random: whether these were drawn at random.

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
        at_random=at_random,
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
    chosen = retrieval.sample(per_language) if shown_answers is None else shown_answers
    return recall_page(
        retrieval.report(),
        before,
        title=title,
        facts=facts,
        names=names,
        answers=as_shown(retrieval.gallery, chosen),
        at_random=shown_answers is None,
    )


def as_shown(gallery: Gallery, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as the template wants them; each image is opened once."""
    used = sorted({found.image for answer in answers for found in answer.found})
    pictures = {image: _picture(gallery.images[image]) for image in used}

    def tile(found: Found) -> dict[str, Any]:
        name = gallery.names.get(int(gallery.image_group[found.image]), "")
        return asdict(found) | {"image": pictures[found.image], "name": name}

    return [
        {
            "text": answer.text,
            "language": answer.language,
            "gloss": answer.gloss,
            "rank": answer.rank,
            "tiles": [tile(found) for found in answer.found],
            "any_right": any(found.right for found in answer.found),
        }
        for answer in answers
    ]


def _picture(image: ImageRef) -> str | None:
    try:
        return html.thumbnail(load_image(image))
    except ImageError:  # it was there when it was encoded; the page says that it is not any more
        return None


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
