"""Attention of text that is written: to its whole sequence (the memory), and to what is written before it.

Layers of the trunk and of the decoder are run on written text by one of two views. :class:`PackedView` has all
positions of all texts at once (training, scoring); :class:`WritingCache` keeps keys and values, and takes the next
positions of every text (generation). Both say ``attend``; what differs is where keys and values stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache

from mmbert.model import fused
from mmbert.model.attention import better_exact
from mmbert.model.dropout import dropout

Part = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values [c, heads, k, d], and what is added to the scores (broadcast to [c, heads, n, k]), if anything."""


class View(Protocol):
    """What a layer needs to run on written text."""

    def attend(
        self, number: int, query: Tensor, own: Tensor | None, *, memory: bool, heads: int, rate: float = 0.0
    ) -> Tensor:
        """Mix values.

        Args:
            number: of the layer.
            query: [T, H], in the view's order.
            own: [T, 2 * H] keys and values of the same positions, each of which sees itself and those before it.
            memory: the sequence is seen, too.
            heads: number of heads.
            rate: dropout of the weights.

        Returns:
            [T, H].
        """
        ...


def joint_attention(query: Tensor, parts: Sequence[Part], rate: float = 0.0) -> Tensor:
    """Attention of [c, heads, n, d] queries to all parts at once (one softmax over them); returns [c, heads, n, d]."""
    query = query * query.shape[-1] ** -0.5
    scores = []
    for key, _, bias in parts:
        score = query @ key.transpose(-1, -2)
        scores.append(score if bias is None else score + bias)
    weights = torch.softmax(torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0], dim=-1)
    weights = dropout(weights, rate).to(query.dtype)
    mixed = [
        w @ value for w, (_, value, _) in zip(weights.split([p[0].shape[2] for p in parts], -1), parts, strict=True)
    ]
    return mixed[0] if len(mixed) == 1 else mixed[0] + mixed[1]


def fused_attention(query: Tensor, parts: Sequence[Part], rate: float = 0.0) -> Tensor:
    """:func:`joint_attention` to one part, by PyTorch's kernel."""
    ((key, value, bias),) = parts
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)


def causal_bias(new: int, before: int, like: Tensor) -> Tensor | None:
    """[new, before + new]: 0 where a position sees another, else the lowest number; None for a single one."""
    if new == 1:
        return None
    hidden = torch.full((new, before + new), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return hidden.triu(before + 1)


def split_heads(values: Tensor, count: int, heads: int) -> Tensor:
    """[c * n, H] to [c, heads, n, d]."""
    return values.reshape(count, -1, heads, values.shape[-1] // heads).transpose(1, 2)


def split_keys_values(values: Tensor, count: int, heads: int) -> tuple[Tensor, Tensor]:
    """[c * k, 2 * H] to keys and values [c, heads, k, d]."""
    size = values.shape[-1] // (2 * heads)
    return values.reshape(count, -1, 2, heads, size).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[return-value]


@dataclass(frozen=True)
class WrittenTexts:
    """The texts of a batch, in a view's order, and where the sequence stands that each continues.

    Attributes:
        lengths: of the texts.
        memory_starts, memory_lengths: first position in the memory and length of each text's sequence.
        rows: [M] row of each position in the memory; None where they are the same.
        device: of the tensors.
    """

    lengths: Sequence[int]
    memory_starts: Sequence[int]
    memory_lengths: Sequence[int]
    rows: Tensor | None
    device: torch.device

    def memory_index(self, positions: np.ndarray) -> Tensor:
        """Positions in the memory to the rows where they stand."""
        index = torch.from_numpy(positions).to(self.device)
        return index if self.rows is None else self.rows.index_select(0, index)


class FusedTexts:
    """Attention of whole texts by :func:`~mmbert.model.fused.fused_packed_attention`, which takes them as they are.

    Args:
        texts: in the view's order.
    """

    def __init__(self, texts: WrittenTexts) -> None:
        self.texts = texts

    def attend(self, query: Tensor, own: Tensor | None, memory: Tensor | None, heads: int, rate: float) -> Tensor:
        """[T, H] queries to their [T, 2 * H] own keys and values and those of the [M, 2 * H] memory; [T, H]."""
        if own is not None and memory is not None:
            keys, seen = self.both, torch.cat([memory, own]).index_select(0, self._rows_of_both(len(memory)))
        elif memory is not None:
            keys, seen = self.memories, memory.index_select(0, self.memory_rows)
        else:
            assert own is not None
            keys, seen = self.own, own
        key, value = seen.view(len(seen), 2, heads, -1).unbind(1)
        mixed = fused.fused_packed_attention(
            query.view(len(query), heads, -1), key, value, self.own, keys, causal=own is not None, rate=rate
        )
        return mixed.reshape(len(query), -1)

    @cached_property
    def own(self) -> fused.Bounds:
        """Of the texts."""
        return fused.Bounds.of(self.texts.lengths, self.texts.device)

    @cached_property
    def memories(self) -> fused.Bounds:
        """Of their sequences."""
        return fused.Bounds.of(self.texts.memory_lengths, self.texts.device)

    @cached_property
    def both(self) -> fused.Bounds:
        """Of each sequence with its text behind it."""
        lengths = [m + n for m, n in zip(self.texts.memory_lengths, self.texts.lengths, strict=True)]
        return fused.Bounds.of(lengths, self.texts.device)

    @cached_property
    def memory_rows(self) -> Tensor:
        """[sum of the memories' lengths] rows of the memory, text by text."""
        memories = zip(self.texts.memory_starts, self.texts.memory_lengths, strict=True)
        return self.texts.memory_index(np.concatenate([np.arange(start, start + length) for start, length in memories]))

    def _rows_of_both(self, count: int) -> Tensor:
        """Rows of the memory's ``count`` and the own ones behind them: of each text its sequence, then itself."""
        if self._both is None:
            order, read, written = [], 0, sum(self.texts.memory_lengths)
            for memory, length in zip(self.texts.memory_lengths, self.texts.lengths, strict=True):
                order += [np.arange(read, read + memory), np.arange(written, written + length)]
                read, written = read + memory, written + length
            own = torch.arange(count, count + sum(self.texts.lengths), device=self.texts.device)
            index = torch.from_numpy(np.concatenate(order)).to(self.texts.device)
            self._both = torch.cat([self.memory_rows, own]).index_select(0, index)
        return self._both

    _both: Tensor | None = None


class GroupedTexts:
    """Attention of whole texts by groups of equal length, so that none of their positions is padding.

    Their memories differ in length even so: within a group the shorter ones are looked up as wide as the longest, and
    what is too much gets no weight.

    Args:
        texts: in the view's order, equal lengths one behind the other.
    """

    def __init__(self, texts: WrittenTexts) -> None:
        self.groups: list[tuple[int, int, int]] = []  # number of texts, their length, their longest memory
        places, self.hidden = list[np.ndarray](), list[Tensor | None]()
        for length, run in groupby(range(len(texts.lengths)), key=texts.lengths.__getitem__):
            found = list(run)
            sizes = np.array([texts.memory_lengths[i] for i in found])[:, None]
            columns = np.arange(sizes.max())[None]
            self.groups.append((len(found), length, int(sizes.max())))
            begin = np.array([texts.memory_starts[i] for i in found])[:, None]
            places.append((begin + np.minimum(columns, sizes - 1)).ravel())
            outside = torch.from_numpy(columns >= sizes)[:, None, None]
            self.hidden.append(outside.to(texts.device) if bool(outside.any()) else None)
        self.memory_rows = texts.memory_index(np.concatenate(places))

    def attend(self, query: Tensor, own: Tensor | None, memory: Tensor | None, heads: int, rate: float) -> Tensor:
        """As :meth:`FusedTexts.attend`; on a CPU short texts are attended to in single precision."""
        seen = None if memory is None else memory.index_select(0, self.memory_rows)
        if not better_exact(query, max(length + width for _, length, width in self.groups)):
            return self._attend(query, own, seen, heads, rate, joint_attention)
        mix = joint_attention if rate or (own is not None and seen is not None) else fused_attention
        with torch.autocast("cpu", enabled=False):
            own, seen = (None if values is None else values.float() for values in (own, seen))
            return self._attend(query.float(), own, seen, heads, rate, mix)

    def _attend(
        self,
        query: Tensor,
        own: Tensor | None,
        seen: Tensor | None,
        heads: int,
        rate: float,
        mix: Callable[[Tensor, list[Part], float], Tensor],
    ) -> Tensor:
        """With what is looked up in the memory; rows behind the texts belong to none."""
        sizes = [count * length for count, length, _ in self.groups]
        extra = len(query) - sum(sizes)
        *queries, rest = query.split([*sizes, extra])
        owns = own.split([*sizes, extra])[:-1] if own is not None else None
        memories = None
        if seen is not None:
            memories = seen.split([count * width for count, _, width in self.groups])
        outputs = []
        for i, (count, length, _) in enumerate(self.groups):
            parts: list[Part] = []
            if memories is not None:
                outside = self.hidden[i]
                bias = None
                if outside is not None:
                    bias = outside.to(query.dtype) * torch.finfo(query.dtype).min
                parts.append((*split_keys_values(memories[i], count, heads), bias))
            if owns is not None:
                parts.append((*split_keys_values(owns[i], count, heads), causal_bias(length, 0, query)))
            mixed = mix(split_heads(queries[i], count, heads), parts, rate)
            outputs.append(mixed.transpose(1, 2).reshape(count * length, -1))
        return torch.cat([*outputs, rest] if extra else outputs)


class PackedView:
    """Whole texts in one flat row, sorted by length: on a GPU one kernel takes them all, elsewhere they are grouped.

    Args:
        lengths: of the texts.
        memory_starts, memory_lengths: where the sequence of each stands in the memory, and its length.
        memory: per layer [M, 2 * H] keys and values.
        rows: [M] row of each position in ``memory``; None where they are the same.
        device: of the tensors.

    Attributes:
        order: [T] stream positions in the view's order.
        inverse: [T] undoes ``order``.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        memory_starts: Sequence[int],
        memory_lengths: Sequence[int],
        memory: list[Tensor],
        rows: Tensor | None,
        device: torch.device,
    ) -> None:
        by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], memory_lengths[i]))
        starts = np.cumsum([0, *lengths])
        order = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in by_length])
        self.order = torch.from_numpy(order).to(device)
        self.inverse = torch.from_numpy(np.argsort(order)).to(device)
        self.memory = memory
        sorted_lengths, begins, sizes = (
            [values[i] for i in by_length] for values in (lengths, memory_starts, memory_lengths)
        )
        self.texts = WrittenTexts(sorted_lengths, begins, sizes, rows, device)

    @cached_property
    def _in_one_kernel(self) -> FusedTexts:
        return FusedTexts(self.texts)

    @cached_property
    def _by_groups(self) -> GroupedTexts:
        return GroupedTexts(self.texts)

    def attend(
        self, number: int, query: Tensor, own: Tensor | None, *, memory: bool, heads: int, rate: float = 0.0
    ) -> Tensor:
        """See :class:`View`."""
        in_one_kernel = fused.fits(query, query.shape[1] // heads, rate)
        texts = self._in_one_kernel if in_one_kernel else self._by_groups
        return texts.attend(query, own, self.memory[number] if memory else None, heads, rate)


class WritingCache(Cache):
    """Keys and values of R sequences and of what is written behind each, for transformers' ``generate``.

    All texts have the same length at any time: they begin together, and go on together.

    Args:
        memory: per layer [M, 2 * H] keys and values of all sequences.
        places: [R, m] row of each position in ``memory``; what is beyond a sequence may be any row.
        lengths: of the sequences.
        heads: number of heads.
        visual: [R, H] what is added to the word vectors of each text.
    """

    def __init__(
        self, memory: list[Tensor], places: Tensor, lengths: Sequence[int], heads: int, visual: Tensor
    ) -> None:
        super().__init__(layers=[])
        self.rows = len(lengths)
        self.visual = visual
        columns = torch.arange(places.shape[1], device=places.device)
        outside = columns >= torch.tensor(lengths, device=places.device)[:, None]
        self.bias: Tensor | None = None
        if bool(outside.any()):
            self.bias = (outside.to(visual.dtype) * torch.finfo(visual.dtype).min)[:, None, None]
        self.memory = []
        for layer in memory:
            keys, values = split_keys_values(layer.index_select(0, places.reshape(-1)), self.rows, heads)
            self.memory.append((keys.contiguous(), values.contiguous()))
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * len(memory)

    def attend(
        self, number: int, query: Tensor, own: Tensor | None, *, memory: bool, heads: int, rate: float = 0.0
    ) -> Tensor:
        """See :class:`View`; T = R * (number of new positions)."""
        parts: list[Part] = []
        if memory:
            parts.append((*self.memory[number], self.bias))
        if own is not None:
            keys, values = split_keys_values(own, self.rows, heads)
            before = self.own[number]
            if before is not None:
                keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
            self.own[number] = keys, values
            new = len(query) // self.rows
            parts.append((keys, values, causal_bias(new, keys.shape[2] - new, query)))
        mixed = joint_attention(split_heads(query, self.rows, heads), parts, rate)
        return mixed.transpose(1, 2).reshape(len(query), -1)

    def expand(self, times: int) -> None:
        """Repeat every sequence ``times`` times, for beams."""
        if times == 1:
            return
        self.rows *= times
        self.visual = self.visual.repeat_interleave(times, 0)
        self.bias = None if self.bias is None else self.bias.repeat_interleave(times, 0)
        self.memory = [(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in self.memory]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take over the texts of these rows (of the same sequences, so that the memory stays as it is)."""
        self.own = [
            None if o is None else (o[0].index_select(0, beam_idx), o[1].index_select(0, beam_idx)) for o in self.own
        ]

    @property
    def is_compileable(self) -> bool:
        """Lengths grow, so no."""
        return False

    def get_seq_length(self, layer_idx: int = 0, *args: object, **kwargs: object) -> int:
        """Positions written so far."""
        own = self.own[layer_idx]
        return 0 if own is None else int(own[0].shape[2])
