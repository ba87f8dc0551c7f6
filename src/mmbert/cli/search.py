"""`mmbert search`: find images by a text in any language, by an image, or by both."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbert.cli._tables import print_table
from mmbert.cli.common import (
    DeviceOption,
    Int8Option,
    JsonOption,
    human_count,
    load_model,
    note,
    output_path,
    print_json,
    show_progress,
)
from mmbert.errors import UsageError

if TYPE_CHECKING:
    from mmbert.search.index import Hit, SearchIndex

RERANK = 50


def search(
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="What to look for, or an image file.", show_default=False)
    ] = None,
    index: Annotated[str, typer.Option("--index", "-i", help="Folder or URI of the index.")] = "mmbert-index",
    image: Annotated[
        Path | None, typer.Option("--image", help="Find images like this one; with QUERY, like both together.")
    ] = None,
    image_weight: Annotated[
        float, typer.Option("--image-weight", help="Weight of the image beside a text, 0 to 1.")
    ] = 0.5,
    k: Annotated[int, typer.Option("--k", "-k", help="How many images.")] = 10,
    offset: Annotated[int, typer.Option("--offset", help="Leave out the first so many (the next page).")] = 0,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank", help=f"So many of the nearest are matched with the text and re-ordered; 0: none. [{RERANK}]"
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help='Condition on metadata columns, in SQL: "year >= 2020".')
    ] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="List images of the index that look the same, instead of searching.")
    ] = False,
    threshold: Annotated[float, typer.Option("--threshold", help="Cosine from which images look the same.")] = 0.97,
    html: Annotated[Path | None, typer.Option("--html", help="Write the results as a page with pictures.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model that made the index. Default: the one it names.")
    ] = None,
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Find images by a text in any language, by an image, or by both.

    Make the index first: mmbert index FOLDER. The score is the cosine of query and image; match is the probability that
    they belong together, for those that were re-ranked.

    Examples:

      mmbert search "two dogs in the snow"
      mmbert search "ein Hund am Strand" --k 20 --where "split = 'test'" --html found.html
      mmbert search --image dog.jpg --index photos-index
      mmbert search "at night" --image street.jpg --image-weight 0.6
      mmbert search --duplicates
    """
    from mmbert.search.index import SearchIndex

    if duplicates:
        if query is not None or image is not None or html is not None or where is not None:
            raise UsageError("--duplicates goes with --index, --threshold and --json alone")
        _duplicates(SearchIndex.open(index), threshold, as_json)
        return
    text, picture = what_is_asked(query, image)
    if text is None and rerank:
        raise UsageError("only a text query can be re-ranked", hint="leave --rerank out for an image")
    page = None if html is None else output_path(html)
    opened = SearchIndex.open(index)
    name = model or opened.about.model
    if name is None:
        raise UsageError("the index does not say which model made it", where=index, hint="add --model")
    opened = SearchIndex.open(index, load_model(name, device, int8=int8))
    asked: Any = picture if text is None else text
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        first = 0 if text is None else RERANK if rerank is None else rerank
        both = picture if text is not None else None
        hits = opened.search(
            asked, k=k, rerank=first, where=where, offset=offset, image=both, image_weight=image_weight
        )
    for warning in caught:
        note(f"warning: {warning.message}")
    if page is not None:
        _write_page(page, asked, hits, opened, where)
    if as_json:
        print_json({"query": str(asked), "index": index, "model": name, "hits": [_plain(hit) for hit in hits]})
    elif hits:
        _print(hits)
    else:
        note("nothing found")
    if page is not None:
        note(f"page: {page}")


def _duplicates(index: SearchIndex, threshold: float, as_json: bool) -> None:
    from mmbert.search.duplicates import find_duplicates

    groups = find_duplicates(index, threshold=threshold, progress=show_progress())
    if as_json:
        print_json({"index": index.path, "threshold": threshold, "groups": [[asdict(d) for d in g] for g in groups]})
        return
    for group in groups:
        for number, one in enumerate(group):
            size = f"{one.width}x{one.height}" if one.width else "?"
            said = "" if not number else "same file" if one.same_file else f"{one.score:.3f}"
            print(f"{'  ' if number else ''}{one.path}  {size}  {said}".rstrip())
    extra = sum(len(group) - 1 for group in groups)
    note(f"{human_count(len(groups))} groups, {human_count(extra)} images more than needed" if groups else "none found")


def what_is_asked(query: str | None, image: Path | None) -> tuple[str | None, Path | None]:
    """Text and image of the query; a QUERY alone that names an image file is that image.

    One that is named like an image file and is none is a text, which is said, unless it is a path: nobody writes texts
    so.

    Raises:
        UsageError: neither is given, or the image does not exist.
    """
    from mmbert.vision.images import IMAGE_SUFFIXES

    if query is None and image is None:
        raise UsageError("give a text or an image", hint='mmbert search "a dog", or mmbert search --image dog.jpg')
    if image is not None:
        if not image.is_file():
            raise UsageError(f"no image file {image}")
        return query, image
    assert query is not None
    named = Path(query)
    if named.suffix.lower() not in IMAGE_SUFFIXES or len(query) >= 1024 or "\0" in query:
        return query, None
    if named.is_file():
        return None, named
    if len(named.parts) > 1:
        raise UsageError(f"no image file {query}", hint=f"to look for these words, leave {named.suffix} out")
    note(f"no image file {query}: searched as a text")
    return query, None


def _plain(hit: Hit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "path": hit.path,
        "id": hit.id,
        "score": round(hit.score, 6),
        "match": None if hit.match is None else round(hit.match, 6),
        "probability": None if hit.probability is None else round(hit.probability, 6),
        "captions": {language: list(said) for language, said in hit.captions.items()},
        "extra": dict(hit.extra),
    }


def _write_page(page: Path, asked: Any, hits: list[Hit], opened: SearchIndex, where: str | None) -> None:
    from mmbert.search.page import write_search_page

    facts = [("Index", str(opened.path)), ("Images", human_count(opened.count()))]
    if where is not None:
        facts.append(("Where", where))
    write_search_page(page, asked, hits, facts=facts)


def _print(hits: list[Hit]) -> None:
    from mmbert.search.page import first_caption

    rows = [
        [
            str(hit.rank),
            f"{hit.score:.3f}",
            "" if hit.match is None else f"{100 * hit.match:.1f} %",
            hit.image.key if hit.image else hit.path,
            first_caption(hit),
        ]
        for hit in hits
    ]
    print_table("", ("", "score", "match", "image", "caption"), rows, left=(3, 4))
