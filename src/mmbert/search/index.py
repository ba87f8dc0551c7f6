"""Searching an index: a text in any language, an image, or both go in; the nearest images come out, best first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert.data.records import ImageRef
from mmbert.errors import IndexStoreError, MMBertError, UsageError
from mmbert.search import store
from mmbert.search.build import IndexSummary, build_index
from mmbert.search.place import Place
from mmbert.search.rerank import Found, rerank_many
from mmbert.search.second_look import SecondLooks

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert
    from mmbert.vision.images import ImageSource

__all__ = ["Ask", "Hit", "IndexSummary", "SearchIndex", "build_index"]

DEEPEST = 10_000
"""``offset + k`` at most: whoever wants more wants a filter."""


@dataclass(frozen=True)
class Hit:
    """One image found.

    Args:
        path: of the image file; the key of an image in a corpus without files.
        id: of its record.
        score: cosine of query and image, at most 1.
        match: probability that query and image belong together; None where it was not re-ranked.
        captions: language -> captions.
        rank: from 1, counted over all pages.
        extra: metadata columns and size (width and height in pixels, bytes).
        image: for ``load_image``.
        vector: [D] the image's unit vector.
        probability: that the image is right, judged by the score of a text query alone; None where the index has no
            calibration.
        regions, region_count: the image's embedded regions (fp16) and their number, where the index keeps them.
    """

    path: str
    id: str
    score: float
    match: float | None
    captions: Mapping[str, tuple[str, ...]]
    rank: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    image: ImageRef | None = field(default=None, repr=False, compare=False)
    probability: float | None = None
    vector: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), repr=False, compare=False)
    regions: bytes | None = field(default=None, repr=False, compare=False)
    region_count: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True)
class Ask:
    """One question to an index: a text, an image, both together, or an image of the index (``like``).

    Args:
        text: in any language.
        image: a path, PIL image, array or encoded bytes.
        like: path of an image in the index, as it is stored there; the image itself is no answer.
        image_weight: of the image beside a text, 0 to 1; their unit vectors are averaged with it.
        k, offset: so many hits, after the first ``offset``.
        rerank: so many of the nearest are read together with the text and put in a better order.
        where: condition on columns in SQL.
    """

    text: str | None = None
    image: ImageSource | None = None
    like: str | None = None
    image_weight: float = 0.5
    k: int = 10
    offset: int = 0
    rerank: int = 0
    where: str | None = None

    @property
    def depth(self) -> int:
        """So many of the nearest have to be known; an image is itself the one that is most like it."""
        return max(self.offset + self.k, self.rerank) + (self.like is not None)

    def check(self) -> None:
        """Raises: UsageError: it makes no sense."""
        if self.like is not None and (self.text is not None or self.image is not None):
            raise UsageError("'like' goes neither with a text nor with an image")
        if self.text is None and self.image is None and self.like is None:
            raise UsageError("nothing is asked", hint="give a text, an image, or both")
        if self.text is not None and not self.text.strip():
            raise UsageError("the query is empty", hint="say what to look for, in any language")
        if self.k < 1:
            raise UsageError(f"cannot find {self.k} images", hint="k is at least 1")
        if self.offset < 0 or self.offset + self.k > DEEPEST:
            raise UsageError(f"offset {self.offset} and k {self.k} do not go", hint=f"together 1 to {DEEPEST:,}")
        if not 0 <= self.image_weight <= 1:
            raise UsageError(f"image_weight {self.image_weight} does not go", hint="0 is the text alone, 1 the image")
        if not 0 <= self.rerank <= DEEPEST:
            raise UsageError(f"cannot re-rank {self.rerank} images", hint=f"0 is none, {DEEPEST:,} the most")
        if self.rerank and self.text is None:
            raise UsageError("only a text query can be re-ranked", hint="leave rerank out for an image")


def _one_condition(where: str | None) -> None:
    """Whether a filter is one condition: LanceDB reads up to a semicolon, and leaves out what follows.

    Raises:
        UsageError: it is not.
    """
    if where is not None and ";" in _QUOTED.sub("", where):
        raise UsageError(f"cannot filter by {where!r}: a semicolon", hint="join conditions by AND or OR")


_QUOTED = re.compile(r"'[^']*'|`[^`]*`")
NUMBER = "query_index"
"""In answers of LanceDB to several vectors: of which one a row is."""


class SearchIndex:
    """An index opened for searching; made by ``build_index``. Open with ``SearchIndex.open``.

    May be used by several threads.
    """

    def __init__(self, place: Place, table: Any, about: store.About, model: MMBert | None) -> None:
        self.place, self.about = place, about
        self._table, self._model = table, model
        names = [name for name in table.schema.names if not name.startswith(store.PRIVATE)]
        self._looks = SecondLooks()
        self._shown = [*names, store.REGIONS] if about.regions else names

    @classmethod
    def open(cls, path: str | Path, model: MMBert | None = None) -> SearchIndex:
        """Open an index.

        Args:
            path: its folder, or URI of an object store.
            model: the one that made it; where None, it is loaded by the name noted in the index, at the first search.

        Raises:
            IndexStoreError: no index there, damaged, unfinished, or made by another model.
        """
        place = Place(path)
        about = store.read_about(place)
        table = store.open_complete(place)
        if model is not None:
            _check_model(place, about, model)
        return cls(place, table, about, model)

    @property
    def path(self) -> str:
        """Folder or URI."""
        return str(self.place)

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
            _check_model(self.place, self.about, model)
            self._model = model
        return self._model

    def count(self, where: str | None = None) -> int:
        """Number of images, or of those that ``where`` lets through.

        Raises:
            UsageError: ``where`` is not understood.
        """
        _one_condition(where)
        try:
            return int(self._table.count_rows(where))
        except store.FAULTS as error:
            raise self._explain(error, where) from error

    def is_current(self) -> bool:
        """Whether no later build has finished since it was opened (an hour after one, this state's files may go)."""
        return store.complete_version(self.place) in (None, int(self._table.version))

    @property
    def columns(self) -> dict[str, str]:
        """Columns that ``where`` may name, and their types."""
        hidden = {"vector", "image", *(name for name in self._table.schema.names if name.startswith(store.PRIVATE))}
        return {column.name: str(column.type) for column in self._table.schema if column.name not in hidden}

    def search(
        self,
        query: str | ImageSource,
        *,
        k: int = 10,
        rerank: int = 0,
        where: str | None = None,
        offset: int = 0,
        image: ImageSource | None = None,
        image_weight: float = 0.5,
    ) -> list[Hit]:
        """The ``k`` nearest images.

        Args:
            query: a text in any language; or an image as a ``Path``, PIL image, array or encoded bytes.
            k: how many; fewer come back where the index holds fewer.
            rerank: so many of the nearest are read together with the text and put in a better order; 0 for none.
            where: condition on columns in SQL, e.g. ``"year >= 2020 AND split = 'train'"``; see ``columns``.
            offset: leave out the first so many (the next page).
            image: an image to look for together with the text.
            image_weight: of that image, 0 to 1.

        Raises:
            UsageError: empty text, ``k`` below 1, re-ranking an image query, or ``where`` not understood.
            ImageError: the image cannot be opened.
            IndexStoreError: the index is damaged, or the model another.
        """
        if isinstance(query, str):
            ask = Ask(query, image, None, image_weight, k, offset, rerank, where)
        elif image is not None:
            raise UsageError("two images and no text", hint="give one image, or a text and an image")
        else:
            ask = Ask(None, query, None, image_weight, k, offset, rerank, where)
        (found,) = self.search_many([ask])
        if isinstance(found, MMBertError):
            raise found
        return found

    def search_many(self, asks: Sequence[Ask]) -> list[list[Hit] | MMBertError]:
        """Answers to several questions; the model encodes and re-ranks them together.

        Returns:
            For each its hits, or what is wrong with it (that one alone: a filter, say, or its image).
        """
        answers: dict[int, list[Hit] | MMBertError] = {}
        good: list[int] = []
        for number, ask in enumerate(asks):
            try:
                ask.check()
                good.append(number)
            except UsageError as error:
                answers[number] = error
        vectors = dict(zip(good, self._vectors([asks[number] for number in good]), strict=True))
        together: dict[tuple[int, str | None], list[int]] = {}
        for number, vector in vectors.items():
            if isinstance(vector, MMBertError):
                answers[number] = vector
            else:
                together.setdefault((asks[number].depth, asks[number].where), []).append(number)
        for (depth, where), members in together.items():
            try:
                rows = self._rows(np.stack([vectors[number] for number in members]), depth, where, self._shown)
            except MMBertError as error:
                answers |= dict.fromkeys(members, error)
                continue
            for number, found in zip(members, rows, strict=True):
                answers[number] = self._hits(found, asks[number])
        again: dict[int, Found] = {}
        for number in good:
            ask, hits = asks[number], answers[number]
            share = 1.0 if ask.image is None else 1 - ask.image_weight
            # Beside an image that has all the weight the text says nothing.
            if isinstance(hits, list) and ask.rerank and ask.text is not None and share:
                again[number] = Found(ask.text, vectors[number], share, hits, ask.rerank)
        reranked = rerank_many(self.model, list(again.values()), self._looks)
        for number, order in zip(again, reranked, strict=True):
            answers[number] = order
        return [
            answer[ask.offset : ask.offset + ask.k] if isinstance(answer, list) else answer
            for ask, answer in zip(asks, (answers[number] for number in range(len(asks))), strict=True)
        ]

    def nearest(
        self, vector: Any, *, k: int = 10, where: str | None = None, offset: int = 0, text: bool = False
    ) -> list[Hit]:
        """The ``k`` images nearest to a vector ``[D]``; ``text`` says that a text's, so that scores are calibrated.

        Raises:
            UsageError: ``where`` not understood.
            IndexStoreError: the index is damaged.
        """
        (rows,) = self._rows(np.asarray(vector)[None], offset + k, where, self._shown)
        return [self._hit(row, rank, text) for rank, row in enumerate(rows, 1)][offset:]

    def image_of(self, key: str) -> ImageRef:
        """An image of the index by its path as stored there (``Hit.image.key``); nothing else can be reached.

        Raises:
            UsageError: the index has no such image.
        """
        (row,) = self._by_key(key, ["image"])
        return self._reference(key, row["image"])

    def languages(self, sample: int = 1000) -> list[str]:
        """Languages that captions of the first ``sample`` images are in."""
        try:
            rows = self._table.search().select(["captions"]).limit(sample).to_list()
        except store.FAULTS as error:
            raise self._explain(error, None) from error
        return sorted({language for row in rows for language in json.loads(row["captions"])})

    def everything(self) -> tuple[dict[str, list[Any]], Any]:
        """Path, hash, size and row id of each image, and the [n, D] unit vectors."""
        columns = ["path", "mmbert_content", "width", "height", "vector"]
        try:
            rows = self._table.search().select(columns).with_row_id(True).limit(max(1, self.count())).to_arrow()
        except store.FAULTS as error:
            raise self._explain(error, None) from error
        vectors = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        return {name: rows[name].to_pylist() for name in rows.schema.names if name != "vector"}, vectors

    def rows_near(self, vector: Any, count: int) -> tuple[list[int], Any]:
        """Row ids and cosines of the nearest."""
        (rows,) = self._rows(np.asarray(vector)[None], count, None, ["path"], row_ids=True)
        return [row["_rowid"] for row in rows], np.array([1.0 - row["_distance"] for row in rows])

    def full_path(self, key: str) -> str:
        """Where the image stored as ``key`` is."""
        return key if self.about.root is None else str(Path(self.about.root) / key)

    def _vectors(self, asks: list[Ask]) -> list[Any]:
        """A vector for each question, or what is wrong with it; texts are encoded together, and so are images."""
        texts = [ask.text for ask in asks if ask.text is not None]
        of_text = iter(list(self.model.encode_text(texts)) if texts else [])
        images = [ask.image for ask in asks if ask.image is not None]
        of_image = iter(self._image_vectors(images))
        found: list[Any] = []
        for ask in asks:
            text = next(of_text) if ask.text is not None else None
            image = next(of_image) if ask.image is not None else None
            if ask.like is not None:
                try:
                    (row,) = self._by_key(ask.like, ["vector"])
                    found.append(np.asarray(row["vector"], dtype=np.float32))
                except MMBertError as error:
                    found.append(error)
            elif text is None or image is None or isinstance(image, MMBertError):
                found.append(text if ask.image is None else image)
            else:
                found.append((1 - ask.image_weight) * text + ask.image_weight * image)
        return found

    def _image_vectors(self, images: list[ImageSource]) -> list[Any]:
        if not images:
            return []
        try:
            return list(self.model.encode_images(images))
        except MMBertError as error:
            if len(images) == 1:
                return [error]
            return [vector for image in images for vector in self._image_vectors([image])]

    def _hits(self, rows: list[dict[str, Any]], ask: Ask) -> list[Hit]:
        """All hits that the answer may be made of; re-ranking and cutting come later."""
        hits = [self._hit(row, rank, ask.text is not None and ask.image is None) for rank, row in enumerate(rows, 1)]
        if ask.like is None:
            return hits
        others = [hit for hit in hits if hit.image is None or hit.image.key != ask.like][: ask.depth - 1]
        return [replace(hit, rank=rank) for rank, hit in enumerate(others, 1)]

    def _rows(
        self, vectors: Any, count: int, where: str | None, columns: list[str], row_ids: bool = False
    ) -> list[list[dict[str, Any]]]:
        """The nearest rows to each of [n, D] vectors, best first; all vectors in one question to the table."""
        _one_condition(where)
        if len(vectors) > 1 and NUMBER in self._table.schema.names:  # a column of the metadata has that name
            return [row for vector in vectors for row in self._rows(vector[None], count, where, columns, row_ids)]
        try:
            ask = self._table.search(vectors if len(vectors) > 1 else vectors[0], vector_column_name="vector")
            ask = ask.distance_type("cosine").select([*columns, "_distance"]).limit(count)
            if row_ids:
                ask = ask.with_row_id(True)
            if where is not None:
                ask = ask.where(where, prefilter=True)
            neighbours = self.about.neighbours
            ask = ask.bypass_vector_index() if neighbours is None else neighbours.ask(ask, count)
            answer = ask.to_arrow()
        except store.FAULTS as error:
            raise self._explain(error, where) from error
        found: list[list[dict[str, Any]]] = [[] for _ in vectors]
        for row in _as_dicts(answer):
            found[row.pop(NUMBER, 0) if len(vectors) > 1 else 0].append(row)
        return [sorted(rows, key=lambda row: (row["_distance"], row["path"])) for rows in found]

    def _by_key(self, key: str, columns: list[str]) -> list[dict[str, Any]]:
        quoted = key.replace("'", "''")
        try:
            rows = list(self._table.search().where(f"path = '{quoted}'").select(columns).limit(1).to_list())
        except store.FAULTS as error:
            raise self._explain(error, None) from error
        if not rows:
            raise UsageError(f"the index has no image {key!r}")
        return rows

    def _reference(self, key: str, data: bytes | None) -> ImageRef:
        return ImageRef(data=data, key=key) if data is not None else ImageRef(path=self.full_path(key), key=key)

    def _hit(self, row: dict[str, Any], rank: int, text: bool) -> Hit:
        key, data, score = row.pop("path"), row.pop("image"), 1.0 - row.pop("_distance")
        vector = row.pop("vector")
        captions = {language: tuple(said) for language, said in json.loads(row.pop("captions")).items()}
        calibration = self.about.calibration if text else None
        return Hit(
            path=self.full_path(key),
            id=row.pop("id"),
            score=score,
            match=None,
            captions=captions,
            rank=rank,
            regions=row.pop(store.REGIONS, None),
            region_count=self.about.regions,
            extra={name: value for name, value in row.items() if value is not None},
            image=self._reference(key, data),
            probability=None if calibration is None else calibration.probability(score),
            vector=vector,
        )

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
                    f"cannot filter by {where!r}: {store.against_condition(error)}",
                    hint=f"SQL, text in single quotes, odd names in `backticks`; columns: {names}",
                )
        return IndexStoreError(
            f"damaged: {store.first_line(error)}", where=self.path, hint=f"delete {self.path} and index again"
        )


def _as_dicts(answer: Any) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow table; vectors, which as lists of Python numbers would take longest, as arrays."""
    if "vector" not in answer.schema.names:
        yield from answer.to_pylist()
        return
    column = answer["vector"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    vectors = flat.reshape(len(answer), column.type.list_size)
    for row, vector in zip(answer.drop_columns(["vector"]).to_pylist(), vectors, strict=True):
        yield {**row, "vector": vector}


def _check_model(place: Place, about: store.About, model: MMBert) -> None:
    if model.fingerprint != about.fingerprint:
        made_by = about.model or about.fingerprint
        raise IndexStoreError(
            f"made by another model ({made_by})", where=str(place), hint="use that one, or index again with --out"
        )
