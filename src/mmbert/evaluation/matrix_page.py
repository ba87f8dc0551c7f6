"""A model measured in every pair of languages, and the page with the heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmbert import __version__, html
from mmbert.data.records import BadRecords, Record
from mmbert.evaluation.gallery import Gallery, build_gallery
from mmbert.evaluation.matrix import Matrix, as_cells, retrieval_matrix
from mmbert.evaluation.report import COLUMNS, Facts
from mmbert.evaluation.retrieval import encode_gallery

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert


def measure_matrix(
    model: MMBert,
    records: Sequence[Record],
    languages: Sequence[str] | None = None,
    *,
    images: bool = True,
    bad: BadRecords | None = None,
    progress: bool = False,
) -> tuple[Matrix, Gallery]:
    """Encode each distinct text and image once, and compare all.

    Args:
        languages: which ones; all that have captions where None.
        images: have a row and a column for them, where there are any.
        bad: decides about images that cannot be opened.

    Raises:
        UsageError: unknown language.
        DataError: there is no caption; an image cannot be opened; the model gives NaN.
    """
    gallery = build_gallery(records, languages, texts_alone=True)
    vectors = None
    if not images:
        gallery = replace(gallery, images=[], image_group=gallery.image_group[:0], image_origin=[])
    elif gallery.images:
        gallery, vectors = encode_gallery(model, gallery, bad or BadRecords(), progress)
    distinct, _ = gallery.distinct_texts
    return retrieval_matrix(gallery, model.encode_text(distinct, progress=progress), vectors), gallery


def write_matrix_page(path: Path, matrix: Matrix, *, title: str, facts: Facts = ()) -> None:
    """A page with a heat map for each cutoff."""
    tables = [(metric, as_cells(matrix, metric)) for metric in COLUMNS]
    page = html.render(
        "matrix.html", title=title, facts=list(facts), version=__version__, names=matrix.names, tables=tables
    )
    html.write_page(path, page)
