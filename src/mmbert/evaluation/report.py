"""Pages about an evaluation: a report (and the answers behind it) go in, one self-contained HTML file comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbert import __version__, html
from mmbert.errors import ImageError, UsageError
from mmbert.evaluation.gallery import Gallery
from mmbert.evaluation.ranks import CUTOFFS, Report
from mmbert.evaluation.retrieval import Answer, Description, Found, Retrieval
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
    described: Sequence[Mapping[str, Any]] = (),
    at_random: bool = False,
) -> str:
    """A page with recall by language as tables and bars.

    Args:
        after: as ``recall_report`` gives it.
        before: an earlier report to compare with; languages that only it has are left out.
        facts: name and value of what a reader should know (model, data, counts).
        names: what to call ``before`` and ``after``.
        answers, described: the galleries below, of captions and of images, as ``retrieval_page`` makes them.
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
        described=described,
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
    """A page with recall by language and galleries: some captions of each language with their best five images, and
    some images with their best five captions of each language.

    Args:
        retrieval: a finished evaluation.
        per_language: queries of each kind shown for each language, drawn at random (the same every time).
        shown_answers: show these captions instead, and no images.
        before, title, facts, names: as for ``recall_page``.
    """
    at_random = shown_answers is None
    chosen = retrieval.sample(per_language) if shown_answers is None else shown_answers
    return recall_page(
        retrieval.report(),
        before,
        title=title,
        facts=facts,
        names=names,
        answers=as_shown(retrieval.gallery, chosen),
        described=as_described(retrieval.gallery, retrieval.sample_images(per_language) if at_random else ()),
        at_random=at_random,
    )


def as_shown(gallery: Gallery, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as the template and the pictures want them; each image is opened once."""
    pictures = _pictures(gallery, (found.image for answer in answers for found in answer.found))

    def tile(found: Found) -> dict[str, Any]:
        return asdict(found) | pictures[found.image] | {"name": _name(gallery, found.image)}

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


def as_described(gallery: Gallery, descriptions: Sequence[Description]) -> list[dict[str, Any]]:
    """The other direction, likewise."""
    pictures = _pictures(gallery, (one.image for one in descriptions))
    return [
        pictures[one.image]
        | {
            "name": _name(gallery, one.image),
            "language": one.language,
            "said": [asdict(said) for said in one.said],
            "rank": one.rank,
            "any_right": any(said.right for said in one.said),
        }
        for one in descriptions
    ]


def _name(gallery: Gallery, image: int) -> str:
    return gallery.names.get(int(gallery.image_group[image]), "")


def _pictures(gallery: Gallery, used: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Each image small, as it is (``picture``) and for a page (``image``); None where it cannot be opened any more."""
    found: dict[int, dict[str, Any]] = {}
    for image in sorted(set(used)):
        try:
            picture = html.shrunk(load_image(gallery.images[image]))
        except ImageError:  # it was there when it was encoded; the page says that it is not any more
            found[image] = {"picture": None, "image": None}
            continue
        found[image] = {"picture": picture, "image": html.as_url(picture)}
    return found


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
