"""A map of embeddings: vectors go in, places on a plane come out, near each other what is alike.

By principal components, which keep great distances, or by t-SNE (van der Maaten and Hinton, 2008) or UMAP (McInnes et
al., 2018), which keep neighbourhoods. The latter are scikit-learn's and umap-learn's, in extras of their own.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmbert import html, plugins
from mmbert.errors import ImageError, UsageError
from mmbert.evaluation.gallery import Gallery
from mmbert.evaluation.ranks import Array
from mmbert.vision.images import load_image

if TYPE_CHECKING:
    from mmbert.api.front_door import MMBert

NEEDED = {"pca": None, "tsne": ("sklearn", "report"), "umap": ("umap", "umap")}
"""The package that each method is from, and the extra that has it."""
METHODS = tuple(NEEDED)
TITLES = {"pca": "principal components", "tsne": "t-SNE", "umap": "UMAP"}
IMAGES, IMAGES_WITH_CAPTIONS = 250, 60
"""Most images of a map, alone and with their captions in every language."""
SIDE = 96
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class Placed:
    """An image or a caption on the map.

    Args:
        x, y: 0..1, from the top left.
        name: English caption of the image; the caption.
        language: of the caption; None: this is an image.
        picture: the image, small.
    """

    x: float
    y: float
    name: str
    language: str | None = None
    picture: Image.Image | None = None

    @property
    def url(self) -> str | None:
        """The picture, for a page."""
        return None if self.picture is None else html.as_url(self.picture)


@dataclass(frozen=True)
class EmbeddingMap:
    """What lies where.

    Args:
        method: ``pca``, ``tsne`` or ``umap``.
        images, captions: placed.
    """

    method: str
    images: Sequence[Placed]
    captions: Sequence[Placed] = ()

    @property
    def title(self) -> str:
        """The method's name."""
        return TITLES[self.method]

    @property
    def languages(self) -> dict[str, str]:
        """Language -> its colour (CSS and Matplotlib read it alike)."""
        names = sorted({one.language for one in self.captions if one.language is not None})
        return {name: _colour(number / len(names)) for number, name in enumerate(names)}


def usable_method(asked: str | None) -> str:
    """The method that was asked for; t-SNE where it is installed, else principal components, if none was.

    Raises:
        UsageError: unknown, or its package is not installed.
    """
    if asked is None:
        return "tsne" if importlib.util.find_spec("sklearn") else "pca"
    if asked not in NEEDED:
        close = plugins.nearest(asked, METHODS)
        raise UsageError(
            f"unknown map {asked!r}", hint=f"did you mean {close!r}?" if close else f"known: {', '.join(METHODS)}"
        )
    needed = NEEDED[asked]
    if needed is not None and importlib.util.find_spec(needed[0]) is None:
        raise UsageError(f"{TITLES[asked]} is not installed", hint=f"pip install 'mm-bert[{needed[1]}]', or --map pca")
    return asked


def lay_out(vectors: Array, method: str = "pca", seed: int = 0) -> Array:
    """[n, D] vectors to [n, 2] places in 0..1, the same for the same seed.

    Args:
        vectors: unit rows, so that their distances go with their cosines.
        method: as ``usable_method`` gives it. Fewer than four vectors have no neighbourhoods: theirs are components.
        seed: of what t-SNE and UMAP draw.
    """
    if method == "tsne" and len(vectors) > 3:
        plane = _tsne(vectors, seed)
    elif method == "umap" and len(vectors) > 3:
        plane = _umap(vectors, seed)
    else:
        plane = _principal_plane(vectors)
    low, high = plane.min(axis=0), plane.max(axis=0)
    return (plane - low) / np.where(high > low, high - low, 1)


def _principal_plane(vectors: Array) -> Array:
    """Along the two directions of greatest spread."""
    centred = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1]))) if plane.shape[1] < 2 else plane


def _tsne(vectors: Array, seed: int) -> Array:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)  # the authors': 5 to 50, well below the number of points
    start = _principal_plane(vectors)
    start = 1e-4 * start / max(float(start[:, 0].std()), 1e-12)  # scikit-learn's own, but without its random sketch
    plane: Array = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=seed).fit_transform(vectors)
    return plane


def _umap(vectors: Array, seed: int) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed takes away its threads
        from umap import UMAP

        made = UMAP(n_neighbors=min(15, len(vectors) - 1), random_state=seed, init="pca", n_jobs=1)
        plane: Array = made.fit_transform(vectors)
    return plane


def embedding_map(
    model: MMBert, gallery: Gallery, *, method: str = "pca", captions: bool = False, seed: int = 0
) -> EmbeddingMap | None:
    """Some images of a gallery, drawn at random, where their vectors lie; None where fewer than three can be opened.

    Args:
        captions: place a caption of each language of these images, too.
    """
    pictures = _thumbnails(gallery, IMAGES_WITH_CAPTIONS if captions else IMAGES, seed)
    if len(pictures) < 3:
        return None
    vectors = model.encode_images([gallery.images[i] for i in pictures])
    rows = _caption_rows(gallery, list(pictures)) if captions else []
    if rows:
        vectors = np.concatenate([vectors, model.encode_text([gallery.texts[row] for row in rows])])
    places = lay_out(vectors, method, seed).tolist()
    images = [
        Placed(x, y, gallery.gloss.get(int(gallery.image_group[i]), ""), picture=picture)
        for (i, picture), (x, y) in zip(pictures.items(), places, strict=False)
    ]
    said = [
        Placed(x, y, gallery.texts[row], gallery.language_of(row))
        for row, (x, y) in zip(rows, places[len(images) :], strict=True)
    ]
    return EmbeddingMap(method, images, said)


def _thumbnails(gallery: Gallery, most: int, seed: int) -> dict[int, Image.Image]:
    """Images drawn at random, small (they may be hundreds of photographs), by their place in the gallery."""
    found: dict[int, Image.Image] = {}
    for i in np.random.default_rng(seed).permutation(len(gallery.images))[:most].tolist():
        try:
            found[i] = html.shrunk(load_image(gallery.images[i]), SIDE)
        except ImageError:  # gone since it was evaluated
            continue
    return found


def _caption_rows(gallery: Gallery, images: Sequence[int]) -> list[int]:
    """The first caption of each language of these images."""
    groups = set(gallery.image_group[list(images)].tolist())
    rows = []
    for span in gallery.languages.values():
        first: dict[Any, int] = {}
        for row in range(span.start, span.stop):
            first.setdefault(int(gallery.text_group[row]), row)
        rows += [row for group, row in first.items() if group in groups]
    return rows


def _colour(hue: float) -> str:
    """A colour of a hue in 0..1, dark enough on white."""
    import colorsys

    red, green, blue = colorsys.hls_to_rgb(hue, 0.42, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
