"""A model and records in which nothing is in a convenient order: vectors, match scores, groups, captions by chance."""

from __future__ import annotations

import numpy as np
from colours import ColourModel

from mmbert.data.records import ImageRef, Record


class RandomModel(ColourModel):
    """Vectors and match scores drawn at random: nothing is in a convenient order."""

    rerank_weight = 0.7
    rerank_views = 2
    hub_weight = 0.4

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _vectors(self, things: list[object], kind: int) -> np.ndarray:
        rows = [np.random.default_rng([self.seed, kind, *repr(thing).encode()]).normal(size=4) for thing in things]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)

    def encode_text(self, texts, **_: object):  # type: ignore[no-untyped-def]
        return self._vectors(list(texts), 0)

    def encode_images(self, images, *, views: int = 1, **_: object):  # type: ignore[no-untyped-def]
        return self._vectors([image.key for image in images], 10 + views)

    def match_pairs(self, images, texts, pairs, **_: object):  # type: ignore[no-untyped-def]
        assert len(np.unique(pairs, axis=0)) == len(pairs), "a pair is asked for once"
        return np.array([self.logit(images[i].key, texts[t]) for i, t in pairs], dtype=np.float32)

    def hubness(self, image_vectors):  # type: ignore[no-untyped-def]
        return 5 * np.abs(np.asarray(image_vectors)[:, 0])

    def logit(self, image: str, text: str) -> float:
        return float(np.random.default_rng([self.seed, 2, *f"{image}|{text}".encode()]).normal() * 4)


def random_records(seed: int, count: int) -> list[Record]:
    random = np.random.default_rng(seed)
    return [
        Record(
            id=f"r{i}",
            image=ImageRef(data=b"unread", key=f"image {random.integers(count)}"),
            captions={
                lang: tuple(f"{lang} {random.integers(30)}" for _ in range(random.integers(0, 3)))
                for lang in ("en", "de", "sw")
            },
            group=f"g{random.integers(count)}",
        )
        for i in range(count)
    ]
