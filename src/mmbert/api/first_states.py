"""Vectors of a model that was never trained to compare: the last state of each sequence's first token.

MM-BERT's cosines of texts, of images, and of texts with images. In: any model; out: one whose vectors compare.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbert.api.front_door import MMBert


def comparable(bert: MMBert) -> MMBert:
    """The model itself; one without embedding head as :class:`ByFirstStates`."""
    if bert.embedding_size:
        return bert
    return ByFirstStates(bert.model, bert.processor, bert.name_or_path)


class ByFirstStates(MMBert):
    """A model whose embedding of a text or an image is the last state of its first token, at unit length."""

    @property
    def embedding_size(self) -> int:
        """Width of the vectors: that of the states."""
        return int(self.config.hidden_size)

    def _embedding_head(self) -> Any:
        return _UnitStates


class _UnitStates:
    """States in the place of projections."""

    @staticmethod
    def embed_text(first_states: Tensor) -> Tensor:
        """[n, H] to [n, H] unit rows."""
        return torch.nn.functional.normalize(first_states.float(), dim=-1)

    embed_image = embed_text

    @staticmethod
    def hubness(images: Tensor) -> Tensor:
        """[n] zeros: there is no bank of queries."""
        return images.new_zeros(len(images))
