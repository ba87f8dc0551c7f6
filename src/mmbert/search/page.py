"""The results of a search as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmbert import __version__, html
from mmbert.errors import ImageError
from mmbert.search.index import Hit
from mmbert.vision.images import ImageSource, load_image


def search_page(
    query: str | ImageSource, hits: Sequence[Hit], *, title: str | None = None, facts: Iterable[tuple[str, Any]] = ()
) -> str:
    """A page with the images found, their scores and captions.

    Args:
        query: what was searched for: a text, or an image in any form but a string.
        hits: as ``SearchIndex.search`` gives them.
        title: of the page.
        facts: name and value of what a reader should know (index, number of images).
    """
    text = query if isinstance(query, str) else None
    return html.render(
        "search.html",
        title=title or "Search results",
        facts=list(facts),
        version=__version__,
        query=text,
        query_image=None if isinstance(query, str) else html.thumbnail(load_image(query)),
        tiles=[_tile(hit) for hit in hits],
    )


def write_search_page(path: Path, query: str | ImageSource, hits: Sequence[Hit], **options: Any) -> None:
    """``search_page`` into a file."""
    html.write_page(path, search_page(query, hits, **options))


def _tile(hit: Hit) -> dict[str, Any]:
    try:
        image = html.thumbnail(load_image(hit.image or hit.path))
    except ImageError:  # gone since it was indexed; the page says so
        image = None
    captions = _captions(hit)
    return {
        "image": image,
        "name": captions[0][1] if captions else hit.id,
        "rank": hit.rank,
        "cosine": hit.score,
        "match": hit.match,
        "captions": captions,
        "file": hit.image.key if hit.image else hit.path,
    }


def first_caption(hit: Hit) -> str:
    """One caption to show beside an image, English where there is one; "" where there is none."""
    return next((text for _, text in _captions(hit)), "")


def _captions(hit: Hit) -> list[tuple[str, str]]:
    captions = [(language, text) for language, said in hit.captions.items() for text in said]
    return sorted(captions, key=lambda caption: caption[0] != "en")  # stable: the others as they come
