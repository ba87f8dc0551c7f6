"""Searching an index: a text in any language, or an image, goes in; the nearest images come out, best first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert.data.records import ImageRef
from mmbert.errors import IndexStoreError, UsageError
from mmbert.search import store
from mmbert.search.build import IndexSummary, build_index
from mmbert.search.rerank import rerank as rerank_hits

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.vision.images import ImageSource

__all__ = ["Hit", "IndexSummary", "SearchIndex", "build_index"]

PROBES = 64
"""Parts of an IVF index that are looked at; more finds more and takes longer."""


@dataclass(frozen=True)
class Hit:
    """One image found.

    Args:
        path: of the image file; the key of an image in a corpus without files.
        id: of its record.
        score: cosine of query and image, at most 1.
        match: probability that query and image belong together; None where it was not re-ranked.
        captions: language -> captions.
        rank: from 1.
        extra: metadata columns and size (width and height in pixels, bytes).
        image: for ``load_image``.
        vector: [D] the image's unit vector.
    """

    path: str
    id: str
    score: float
    match: float | None
    captions: Mapping[str, tuple[str, ...]]
    rank: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    image: ImageRef | None = field(default=None, repr=False, compare=False)
    vector: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), repr=False, compare=False)


class SearchIndex:
    """An index opened for searching; made by ``build_index``. Open with ``SearchIndex.open``."""

    def __init__(self, path: Path, table: Any, about: store.About, model: MMBert | None) -> None:
        self.path, self.about = path, about
        self._table, self._model = table, model

    @classmethod
    def open(cls, path: str | Path, model: MMBert | None = None) -> SearchIndex:
        """Open an index.

        Args:
            path: its folder.
            model: the one that made it; where None, it is loaded by the name noted in the index, at the first search.

        Raises:
            IndexStoreError: no index there, damaged, unfinished, or made by another model.
        """
        path = Path(path)
        about = store.read_about(path)
        table = store.open_complete(path)
        if model is not None:
            _check_model(path, about, model)
        return cls(path, table, about, model)

    @property
    def model(self) -> MMBert:
        """The model that made the index.

        Raises:
            UsageError: it was not given and the index does not know its name.
            IndexStoreError: what has that name now is another model.
        """
        if self._model is None:
            if self.about.model is None:
                raise UsageError("the index does not say which model made it", hint="open it with model=MMBert...")
            from mmbert.api.front_door import MMBert

            model = MMBert.from_pretrained(self.about.model)
            _check_model(self.path, self.about, model)
            self._model = model
        return self._model

    def count(self, where: str | None = None) -> int:
        """Number of images, or of those that ``where`` lets through.

        Raises:
            UsageError: ``where`` is not understood.
        """
        try:
            return int(self._table.count_rows(where))
        except store.FAULTS as error:
            raise self._explain(error, where) from error

    @property
    def columns(self) -> dict[str, str]:
        """Columns that ``where`` may name, and their types."""
        hidden = {"vector", "image", *(name for name in self._table.schema.names if name.startswith(store.PRIVATE))}
        return {column.name: str(column.type) for column in self._table.schema if column.name not in hidden}

    def search(self, query: str | ImageSource, *, k: int = 10, rerank: int = 0, where: str | None = None) -> list[Hit]:
        """The ``k`` nearest images.

        Args:
            query: a text in any language; or an image as a ``Path``, PIL image, array or encoded bytes.
            k: how many; fewer come back where the index holds fewer.
            rerank: so many of the nearest are read together with the text and put in a better order; 0 for none.
            where: condition on columns in SQL, e.g. ``"year >= 2020 AND split = 'train'"``; see ``columns``.

        Raises:
            UsageError: empty text, ``k`` below 1, re-ranking an image query, or ``where`` not understood.
            ImageError: the image cannot be opened.
            IndexStoreError: the index is damaged, or the model another.
        """
        self._check(query, k, rerank)
        model = self.model
        if isinstance(query, str):
            vector = model.encode_text([query])[0]
        else:
            vector = model.encode_images([query])[0]
        hits = self._nearest(vector, max(k, rerank), where)
        if rerank and hits:
            hits = rerank_hits(model, str(query), hits, rerank)
        return hits[:k]

    def _nearest(self, vector: Any, count: int, where: str | None) -> list[Hit]:
        wanted = [name for name in self._table.schema.names if not name.startswith(store.PRIVATE)]
        try:
            ask = self._table.search(vector, vector_column_name="vector").distance_type("cosine")
            ask = ask.select([*wanted, "_distance"]).limit(count)
            if where is not None:
                ask = ask.where(where, prefilter=True)
            ask = ask.nprobes(PROBES) if self._table.count_rows() >= store.EXACT_BELOW else ask.bypass_vector_index()
            rows = ask.to_list()
        except store.FAULTS as error:
            raise self._explain(error, where) from error
        rows.sort(key=lambda row: (row["_distance"], row["path"]))
        return [self._hit(row, rank) for rank, row in enumerate(rows, 1)]

    def _hit(self, row: dict[str, Any], rank: int) -> Hit:
        key, data, vector = row.pop("path"), row.pop("image"), row.pop("vector")
        path = key if self.about.root is None else str(Path(self.about.root) / key)
        captions = {language: tuple(said) for language, said in json.loads(row.pop("captions")).items()}
        return Hit(
            path=path,
            id=row.pop("id"),
            score=1.0 - row.pop("_distance"),
            match=None,
            captions=captions,
            rank=rank,
            extra={name: value for name, value in row.items() if value is not None},
            image=ImageRef(data=data, key=key) if data is not None else ImageRef(path=path, key=key),
            vector=np.asarray(vector, dtype=np.float32),
        )

    @staticmethod
    def _check(query: Any, k: int, rerank: int) -> None:
        if isinstance(query, str) and not query.strip():
            raise UsageError("the query is empty", hint="say what to look for, in any language")
        if k < 1:
            raise UsageError(f"cannot find {k} images", hint="k is at least 1")
        if rerank < 0:
            raise UsageError(f"cannot re-rank {rerank} images", hint="0 is none")
        if rerank and not isinstance(query, str):
            raise UsageError("only a text query can be re-ranked", hint="leave rerank out for an image")

    def _explain(self, error: Exception, where: str | None) -> UsageError | IndexStoreError:
        """Tell a condition that makes no sense from an index that is damaged."""
        if where is not None:
            try:
                self._table.search().limit(1).to_list()
            except store.FAULTS:
                pass
            else:
                names = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
                return UsageError(
                    f"cannot filter by {where!r}: {store.first_line(error)}",
                    hint=f"SQL, text in single quotes, odd names in `backticks`; columns: {names}",
                )
        return IndexStoreError(
            f"damaged: {store.first_line(error)}", where=str(self.path), hint=f"delete {self.path} and index again"
        )


def _check_model(path: Path, about: store.About, model: MMBert) -> None:
    if model.fingerprint != about.fingerprint:
        made_by = about.model or about.fingerprint
        raise IndexStoreError(
            f"made by another model ({made_by})", where=str(path), hint="use that one, or index again with --out"
        )
