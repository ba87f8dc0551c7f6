"""Packed batches: many sequences in one flat row of positions, with no padding.

This is what flows from collation into the encoder. A sequence is ``tokens, regions, [END]``; the batch is their
concatenation, and ``cu_seqlens`` says where each starts. Regions live once in a table; sequences refer to its rows,
so that one image may stand in many sequences (captions, candidate answers, re-ranking) and is embedded once.

A sequence may be *continued* by text that the model writes (a translation, a caption): it sees its whole sequence and
what is written before it, and is seen by neither. All continuations form a packed batch of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

NO_IMAGE = -1
"""Row number meaning "this sample has no image": the learned text-only visual vector is used."""
BLANK = -2
"""Row number meaning "nothing": a zero vector."""

TEXT, REGION, MASKED_REGION, END = 0, 1, 2, 3
Pixels = Tensor | list[Tensor]
"""[I, 3, S, S] images of one size, or I images [3, h, w] of several."""
WRITTEN_SEGMENT, REGION_SEGMENT = 1, 2


def _no_ints() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class SequenceSpec:
    """One sequence, before tensors. Row numbers refer to the batch's region table.

    Attributes:
        token_ids: [n] vocabulary ids, special tokens included.
        segments: [n] segment ids, or one id for all.
        text_rows: [n] table row that each token's visual part comes from, or one row for all
            (``NO_IMAGE``: the text-only vector, ``BLANK``: zeros).
        region_rows: [m] table rows of the regions (``BLANK``: zeros in the place of both vectors of a region).
        region_masked: [m] True where the region is masked; None for none.
        end: whether ``[END]`` closes the sequence.
        written: [w] ids of the text that continues the sequence; not counted in its length.
    """

    token_ids: np.ndarray
    segments: np.ndarray | int = 0
    text_rows: np.ndarray | int = NO_IMAGE
    region_rows: np.ndarray = field(default_factory=_no_ints)
    region_masked: np.ndarray | None = None
    end: bool = True
    written: np.ndarray = field(default_factory=_no_ints)

    def __len__(self) -> int:
        return len(self.token_ids) + len(self.region_rows) + int(self.end)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to each tensor in a dataclass, dict, list or bare value; everything else stays."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [map_tensors(v, function) for v in value]
    if isinstance(value, dict):
        return {k: map_tensors(v, function) for k, v in value.items()}
    if isinstance(value, RegionTable | Target | PackedBatch):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


@dataclass
class RegionTable:
    """The regions of a batch, each once.

    The *extended* table, which sequences refer to, is: the N base rows, then K masked copies, then Q pooled rows.

    Attributes:
        boxes: [N, 4] x1, y1, x2, y2 in pixels.
        sizes: [N, 2] width and height of the region's image, pixels.
        image_numbers: [N] number of the region's image among the batch's ``pixels``; needed by vision encoders that
            look into given boxes.
        masks: [N, m, m] share of each cell of the box that the object covers (0..1); None: all of it.
        hidden: [N] True where the pixels inside the box are blanked before the vision encoder sees the image.
        pixel_ratios: [N, 2] pixels of the encoder's input per pixel of the image; None: the input is the whole image,
            resized.
        features: [N, F] RoI features; None until a vision encoder has made them from pixels.
        classes: [N, C] the detector's class distribution, where there is one.
        masked_rows: [K] base rows of which a masked copy is appended.
        pooled_members, pooled_owner: [S] base rows averaged, and the pooled row (0..Q-1) each belongs to.
        pooled_box_rows: [Q] base rows whose boxes the pooled rows take.
    """

    boxes: Tensor
    sizes: Tensor
    features: Tensor | None = None
    classes: Tensor | None = None
    masked_rows: Tensor | None = None
    pooled_members: Tensor | None = None
    pooled_owner: Tensor | None = None
    pooled_box_rows: Tensor | None = None
    image_numbers: Tensor | None = None
    masks: Tensor | None = None
    hidden: Tensor | None = None
    pixel_ratios: Tensor | None = None

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def extended_length(self) -> int:
        """Rows of the extended table."""
        masked = 0 if self.masked_rows is None else len(self.masked_rows)
        pooled = 0 if self.pooled_box_rows is None else len(self.pooled_box_rows)
        return self.boxes.shape[0] + masked + pooled  # len() would fix the number in an exported graph


@dataclass
class Target:
    """Where labels are, and what they are; the objective named ``objective`` reads it.

    Attributes:
        objective: name of the objective (``mlm``, ``mvrc``, ``itm``, ``itc`` ...).
        positions: [M] flat positions (or sequence numbers, as the objective says) that are looked at.
        labels: [M, ...] what should be predicted there.
        extra: more tensors that the objective needs.
    """

    objective: str
    positions: Tensor
    labels: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class PackedBatch:
    """Sequences in one flat row of P positions.

    Attributes:
        cu_seqlens: [B + 1] int32, start of each sequence and the end of the last.
        lengths: the same as a Python list of B lengths (no device round trip).
        token_ids: [T] ids of all text positions, in stream order.
        linguistic_index: [P] row of each position in ``[T tokens | region | masked region | end | zero]``.
        text_visual_rows: [U] distinct extended-table rows (or NO_IMAGE / BLANK) that text is tied to.
        visual_index: [P] row of each position in ``[U text rows | extended region table | zero | blank region]``.
        position_ids, segment_ids: [P].
        kinds: [P] int8, TEXT, REGION, MASKED_REGION or END.
        regions: the region table, or None in a batch of texts.
        pixels: [I, 3, S, S] images for the vision encoder, or a list of I images [3, h, w] where sizes differ, or None
            when features are given.
        blank_regions: whether a sequence has regions without content (row ``BLANK``).
        targets: labelled positions by name.
        sequences: the specs it was packed from (host side), for building further sequences of the same parts.
        continuation: the text that continues sequences, one packed sequence each; its regions are this batch's.
        continued: numbers of the sequences that it continues.
    """

    cu_seqlens: Tensor
    lengths: list[int]
    token_ids: Tensor
    linguistic_index: Tensor
    text_visual_rows: Tensor
    visual_index: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    kinds: Tensor
    regions: RegionTable | None = None
    pixels: Pixels | None = None
    blank_regions: bool = False
    targets: dict[str, Target] = field(default_factory=dict)
    sequences: list[SequenceSpec] = field(default_factory=list)
    continuation: PackedBatch | None = None
    continued: list[int] = field(default_factory=list)

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @property
    def num_positions(self) -> int:
        return int(self.position_ids.shape[0])

    @property
    def starts(self) -> Tensor:
        """[B] flat position of each sequence's first token."""
        return self.cu_seqlens[:-1].long()

    @property
    def after_text(self) -> Tensor:
        """[B] flat position after each sequence's text: its first region (the whole image), or else ``[END]``.

        In a text without ``[END]`` it is the last token.
        """
        lengths = [min(len(spec.token_ids), len(spec) - 1) for spec in self.sequences]
        return self.starts + torch.tensor(lengths, device=self.device)

    def sequences_at(self, positions: Tensor) -> Tensor:
        """[M] flat positions to the number of the sequence that each is in."""
        return torch.searchsorted(self.cu_seqlens.long(), positions, right=True) - 1

    @property
    def device(self) -> torch.device:
        return self.position_ids.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return map_tensors(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory."""
        return map_tensors(self, lambda t: t.pin_memory())


def pack(
    sequences: Sequence[SequenceSpec],
    *,
    regions: RegionTable | None = None,
    pixels: Pixels | None = None,
    targets: dict[str, Target] | None = None,
    device: torch.device | str | None = None,
) -> PackedBatch:
    """Lay sequences one after the other.

    Args:
        sequences: B specs; their row numbers refer to the extended table of ``regions``.
        regions: the table; may be None if no sequence refers to a row.
        pixels: images from which a vision encoder will fill ``regions.features``.
        targets: labelled positions.
        device: where the tensors go.

    Raises:
        ValueError: a row number outside the table, an empty sequence, or no sequence at all.
    """
    if not sequences:
        raise ValueError("a packed batch needs at least one sequence")
    lengths = [len(s) for s in sequences]
    if not all(lengths):
        raise ValueError(f"sequence {lengths.index(0)} is empty")
    cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    stream = _Stream(
        sum(len(s.token_ids) for s in sequences),
        int(cu_seqlens[-1]),
        regions.extended_length if regions is not None else 0,
    )
    for spec, start in zip(sequences, cu_seqlens[:-1].tolist(), strict=True):
        stream.add(spec, start)
    batch = stream.batch(cu_seqlens, lengths)
    batch.targets, batch.sequences = targets or {}, list(sequences)
    batch.continued = [number for number, spec in enumerate(sequences) if len(spec.written)]
    if batch.continued:
        batch.continuation = _pack_written([sequences[number] for number in batch.continued], regions)
    if device is not None:
        batch = batch.to(device)
    return replace(batch, regions=regions, pixels=pixels)


class _Stream:
    """The arrays of a packed batch, filled sequence by sequence.

    Args:
        tokens: T text positions of all sequences.
        positions: P of all sequences.
        table_rows: of the extended region table.
    """

    def __init__(self, tokens: int, positions: int, table_rows: int) -> None:
        self.table_rows = table_rows
        self.token_ids = np.empty(tokens, dtype=np.int64)
        self.text_rows = np.empty(tokens, dtype=np.int64)
        self.linguistic = np.empty(positions, dtype=np.int64)
        self.visual = np.empty(positions, dtype=np.int64)  # of regions: behind the text rows, not counted yet
        self.position_ids = np.empty(positions, dtype=np.int64)
        self.segment_ids = np.full(positions, REGION_SEGMENT, dtype=np.int64)
        self.kinds = np.full(positions, END, dtype=np.int8)
        self.is_text = np.zeros(positions, dtype=bool)
        self.any_blank = False
        self._token_at = 0

    def add(self, spec: SequenceSpec, start: int) -> None:
        """Lay a sequence out from position ``start`` on."""
        tokens, n, m = len(self.token_ids), len(spec.token_ids), len(spec.region_rows)
        text, region = slice(start, start + n), slice(start + n, start + n + m)
        own = slice(self._token_at, self._token_at + n)
        self.token_ids[own] = spec.token_ids
        self.text_rows[own] = spec.text_rows
        self.linguistic[text] = np.arange(own.start, own.stop)
        self.is_text[text] = True
        self.kinds[text] = TEXT
        self.position_ids[text] = np.arange(n)
        self.segment_ids[text] = spec.segments
        if m:
            masked = spec.region_masked
            _check_rows(spec.region_rows, self.table_rows, lowest=0, also=BLANK)
            self.kinds[region] = REGION if masked is None else np.where(masked, MASKED_REGION, REGION)
            self.linguistic[region] = tokens if masked is None else tokens + np.asarray(masked, dtype=np.int64)
            blank = spec.region_rows == BLANK
            self.linguistic[region][blank] = tokens + 3
            self.visual[region] = np.where(blank, self.table_rows + 1, spec.region_rows)
            self.any_blank |= bool(blank.any())
            self.position_ids[region] = n
        if spec.end:
            self.linguistic[region.stop] = tokens + 2
            self.visual[region.stop] = self.table_rows
            self.position_ids[region.stop] = n + 1
        self._token_at += n

    def batch(self, cu_seqlens: np.ndarray, lengths: list[int]) -> PackedBatch:
        """All that has been laid out, with where the sequences start."""
        _check_rows(self.text_rows, self.table_rows, lowest=BLANK)
        distinct, inverse = np.unique(self.text_rows, return_inverse=True)
        self.visual[~self.is_text] += len(distinct)
        self.visual[self.is_text] = inverse
        return PackedBatch(
            cu_seqlens=torch.from_numpy(cu_seqlens),
            lengths=lengths,
            token_ids=torch.from_numpy(self.token_ids),
            linguistic_index=torch.from_numpy(self.linguistic),
            text_visual_rows=torch.from_numpy(distinct),
            visual_index=torch.from_numpy(self.visual),
            position_ids=torch.from_numpy(self.position_ids),
            segment_ids=torch.from_numpy(self.segment_ids),
            kinds=torch.from_numpy(self.kinds),
            blank_regions=self.any_blank,
        )


def _pack_written(sequences: Sequence[SequenceSpec], regions: RegionTable | None) -> PackedBatch:
    """The text that continues sequences: positions from 0, a segment of its own, tied to the image as a whole."""
    written = [
        SequenceSpec(spec.written, WRITTEN_SEGMENT, int(np.asarray(spec.text_rows).reshape(-1)[0]), end=False)
        for spec in sequences
    ]
    return replace(pack(written, regions=regions), regions=None)


def without_regions(batch: PackedBatch) -> PackedBatch:
    """The same sequences for a network that does not see the image.

    Regions keep their positions as zero vectors; text has the visual vector of text alone.
    """
    region = (batch.kinds == REGION) | (batch.kinds == MASKED_REGION)
    tokens, text_rows = len(batch.token_ids), len(batch.text_visual_rows)
    visual = torch.where(batch.kinds == END, text_rows, batch.visual_index)
    return replace(
        batch,
        linguistic_index=torch.where(region, tokens + 3, batch.linguistic_index),
        text_visual_rows=torch.full_like(batch.text_visual_rows, NO_IMAGE),
        visual_index=torch.where(region, text_rows + 1, visual),
        regions=None,
        pixels=None,
        blank_regions=True,
        continuation=None if batch.continuation is None else without_regions(batch.continuation),
    )


def _check_rows(rows: np.ndarray, table_rows: int, *, lowest: int, also: int | None = None) -> None:
    outside = (rows >= table_rows) | (rows < lowest)
    if also is not None:
        outside &= rows != also
    if outside.any():
        raise ValueError(f"row {rows[outside][0]} is outside the region table of {table_rows} rows")


def paired(text: SequenceSpec, image: SequenceSpec) -> SequenceSpec:
    """The sequence that reads ``text``'s tokens together with ``image``'s regions.

    Text is tied to the whole image, which is the row that the image sequence's own tokens are tied to.
    """
    whole = image.text_rows if isinstance(image.text_rows, int) else int(image.text_rows[0])
    return SequenceSpec(text.token_ids, text.segments, whole, image.region_rows, image.region_masked)


def joined(first: SequenceSpec, second: SequenceSpec) -> SequenceSpec:
    """``first``'s text, then ``second``'s, as one sequence ``[CLS] a [SEP] b [SEP]``, with ``first``'s regions.

    Both are of segment 0, as in MM-BERT; the text behind is tied to the whole of the image that stands there.
    """
    whole = int(np.asarray(first.text_rows).reshape(-1)[0])
    tokens = np.concatenate([first.token_ids, second.token_ids[1:]])
    return SequenceSpec(tokens, 0, whole, first.region_rows, first.region_masked)


def region_places(batch: PackedBatch) -> Tensor:
    """[M] flat positions of all regions, ascending."""
    return ((batch.kinds == REGION) | (batch.kinds == MASKED_REGION)).nonzero().squeeze(1)
