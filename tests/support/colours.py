"""A small deterministic stand-in for the front door: it knows colours and their names in four languages.

Its cosine sees the hue alone, its match score the brightness too, so that re-ranking has something to repair. Tests of
evaluation and search use it where the real model would only cost time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmbert.api.front_door import KeptRegions
from mmbert.vision.images import load_image

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "yellow": (230, 230, 20),
    "white": (250, 250, 250),
    "purple": (160, 20, 200),
}
NAMES = {
    "red": {"en": "red", "de": "rot", "fr": "rouge", "ar": "أحمر"},
    "green": {"en": "green", "de": "grün", "fr": "vert", "ar": "أخضر"},
    "blue": {"en": "blue", "de": "blau", "fr": "bleu", "ar": "أزرق"},
    "yellow": {"en": "yellow", "de": "gelb", "fr": "jaune", "ar": "أصفر"},
    "white": {"en": "white", "de": "weiß", "fr": "blanc", "ar": "أبيض"},
    "purple": {"en": "purple", "de": "lila", "fr": "violet", "ar": "بنفسجي"},
}
DARK = ("dark", "dunkel", "foncé", "غامق")
_SAID = {word: COLOURS[colour] for colour, words in NAMES.items() for word in words.values()}


def rgb(colour: str) -> tuple[int, int, int]:
    """Pixel value of ``"red"`` or ``"dark red"``."""
    *dark, name = colour.split()
    r, g, b = COLOURS[name]
    return (r // 3, g // 3, b // 3) if dark else (r, g, b)


def picture(colour: str, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """An image of one colour."""
    return Image.new("RGB", size, rgb(colour))


def save_picture(path: Path, colour: str, size: tuple[int, int] = (24, 24)) -> Path:
    """Write an image of one colour; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(colour, size).save(path)
    return path


def write_metadata(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``metadata.jsonl``, one row a line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def save_folder(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """A folder of plain and dark pictures with captions in four languages; gives its rows."""
    rows: list[dict[str, Any]] = []
    for name, words in NAMES.items():
        for shade in ("", "dark "):
            file = f"{shade}{name}.png".replace(" ", "-")
            rows.append({"file_name": file, **{f"caption_{code}": shade + word for code, word in words.items()}})
            save_picture(folder / file, f"{shade}{name}", (32, 32))
            if len(rows) == count:
                write_metadata(folder, rows)
                return rows
    raise ValueError(f"there are {len(rows)} pictures, not {count}")


class ColourModel:
    """Has the interface of ``MMBert``; counts what it is asked to encode."""

    embedding_size = 4
    logit_scale = 10.0
    rerank_weight = 1.0
    rerank_views = 1
    hub_weight = 0.0

    def __init__(self, fingerprint: str = "colours-1", name_or_path: str = "colours") -> None:
        self.fingerprint = fingerprint
        self.name_or_path = name_or_path
        self.images_encoded = 0
        self.texts_encoded: list[str] = []
        self.pairs_matched = 0
        self.images_looked_at = 0

    def encode_text(self, texts: str | Sequence[str], *, batch_tokens: int = 8192, progress: bool = False) -> Any:
        texts = [texts] if isinstance(texts, str) else list(texts)
        self.texts_encoded += texts
        return _unit(np.stack([_text_rgb(text) for text in texts]))

    def encode_images(self, images: Any, *, batch_size: int = 64, progress: bool = False) -> Any:
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        pixels = [_image_rgb(image) for image in images]
        self.images_encoded += len(images)
        return _unit(np.stack(pixels))

    def hubness(self, image_vectors: Any) -> Any:
        return np.zeros(len(image_vectors), dtype=np.float32)

    def region_vectors(self, images: Sequence[Any], *, exact: bool = False) -> list[KeptRegions]:
        """A single region, the mean colour."""
        self.images_looked_at += len(images)
        return [KeptRegions(np.asarray(_image_rgb(i))[None].astype("f4" if exact else "f2")) for i in images]

    def match_pairs(self, images: Any, texts: Sequence[str], pairs: Any, *, progress: bool = False) -> Any:
        pairs = np.asarray(pairs)
        assert pairs.ndim == 2
        assert pairs.shape[1] == 2
        self.pairs_matched += len(pairs)
        shown = np.stack([i.vectors[0] if isinstance(i, KeptRegions) else _image_rgb(i) for i in images])
        said = np.stack([_text_rgb(text) for text in texts])
        distance = np.abs(shown[pairs[:, 0]] - said[pairs[:, 1]]).sum(axis=1)
        return (6 - 20 * distance).astype(np.float32)

    def match(self, images: Any, texts: Sequence[str], *, progress: bool = False) -> Any:
        pairs = np.stack(np.meshgrid(np.arange(len(images)), np.arange(len(texts)), indexing="ij"), -1).reshape(-1, 2)
        return 1 / (1 + np.exp(-self.match_pairs(images, texts, pairs).reshape(len(images), len(texts))))


def _image_rgb(image: Any) -> Any:
    return np.asarray(load_image(image), dtype=np.float64).mean(axis=(0, 1)) / 255


def _text_rgb(text: str) -> Any:
    words = text.lower().replace(",", " ").split()
    known = [_SAID[word] for word in words if word in _SAID]
    if not known:  # a grey that depends on the letters
        return np.full(3, 0.3 + sum(map(ord, text)) % 100 / 400)
    colour = np.mean(np.asarray(known, dtype=np.float64), axis=0) / 255
    return colour / 3 if any(word in DARK for word in words) else colour


def _unit(colours: Any) -> Any:
    centred = np.concatenate(
        [colours / colours.max(axis=1, keepdims=True).clip(1 / 255) - 0.4, np.full((len(colours), 1), 0.1)], 1
    )
    return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)
