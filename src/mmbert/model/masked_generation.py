"""Text generation by predicting at ``[MASK]``: the way MM-BERT's "simple encoder" translates and captions.

Each step reads ``prompt prefix [MASK] [SEP]`` (with the image's regions, which are embedded once), takes the best token
at ``[MASK]`` and appends it to the prefix, until ``[STOP]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import RegionTable, SequenceSpec, pack

MAX_STEPS = 49
"""Longest output of the originals."""


@dataclass
class Generated:
    """What greedy generation gave.

    Attributes:
        ids: [B, steps] best token of each step; after a row's ``[STOP]`` it holds ``[STOP]``, or what the network says
            when it goes on being asked (``keep_finished``).
        lengths: [B] tokens before the first ``[STOP]``.
        best: [B, steps] logit of the best token.
        log_probabilities: [B, steps] of the best token; 0 behind a row's end.
        logits: per step [B, K], where they were asked for.
        last_inputs: [B] token ids read in the last step.
    """

    ids: Tensor
    lengths: list[int]
    best: Tensor
    log_probabilities: Tensor
    logits: list[Tensor] = field(default_factory=list)
    last_inputs: list[np.ndarray] = field(default_factory=list)

    def scores(self) -> list[float]:
        """Log probability of each row, its ``[STOP]`` included."""
        rows = zip(self.log_probabilities, self.lengths, strict=True)
        return [float(row[: length + 1].sum()) for row, length in rows]

    def tokens(self) -> list[list[int]]:
        """Ids of each row, up to its ``[STOP]``."""
        return [row[:length].tolist() for row, length in zip(self.ids, self.lengths, strict=True)]


@torch.inference_mode()
def generate_at_mask(
    model: MMBertForPreTraining,
    prompts: Sequence[SequenceSpec],
    *,
    mask_id: int,
    sep_id: int,
    stop_id: int,
    regions: RegionTable | None = None,
    max_steps: int = MAX_STEPS,
    behind_first_mask: int | None = None,
    keep_finished: bool = False,
    keep_logits: int = 0,
    read: Callable[[list[SequenceSpec], list[int], list[int]], Tensor] | None = None,
) -> Generated:
    """Greedy generation.

    Args:
        model: with a masked-token head.
        prompts: B specs whose text is ``[CLS] source [SEP]``; segments and ties are one number for all tokens.
        mask_id, sep_id, stop_id: special tokens.
        regions: the table that the prompts refer to.
        max_steps: at most so many tokens.
        behind_first_mask: a token that stands between ``[MASK]`` and ``[SEP]`` in the first step only (MM-BERT's
            networks without vision were fed ``[STOP]`` there).
        keep_finished: go on asking for rows that have had their ``[STOP]``, as the originals do; the number of steps is
            the same, only ``ids`` behind the end differ.
        keep_logits: return the logits of so many first steps.
        read: gives the [n, K] logits of n sequences, each at its place, for the rows that they belong to; None asks the
            trunk and its token head.

    Returns:
        ids, lengths and logits.
    """
    device = model.device
    vectors = None
    if regions is not None and not model.config.ignore_regions:
        start = pack([replace(p, token_ids=np.asarray(p.token_ids)) for p in prompts], regions=regions, device=device)
        regions, vectors = model.trunk.embed_regions(start)
    rows = len(prompts)
    ids = torch.full((rows, max_steps), stop_id)
    best = torch.zeros(rows, max_steps)
    sure = torch.zeros(rows, max_steps)
    prefixes: list[list[int]] = [[] for _ in prompts]
    finished = np.zeros(rows, dtype=bool)
    logits: list[Tensor] = []
    inputs: list[np.ndarray] = []
    steps = 0
    while steps < max_steps and not finished.all():
        asked = list(range(rows)) if keep_finished else np.flatnonzero(~finished).tolist()
        extra = [behind_first_mask] if steps == 0 and behind_first_mask is not None else []
        texts = [np.array([*prompts[i].token_ids, *prefixes[i], mask_id, *extra, sep_id]) for i in asked]
        specs = [replace(prompts[i], token_ids=t) for i, t in zip(asked, texts, strict=True)]
        offsets = [len(prompts[i].token_ids) + len(prefixes[i]) for i in asked]
        if read is not None:
            found = read(specs, offsets, asked).float().cpu()
        else:
            batch = pack(specs, regions=regions).to(device)
            places = batch.starts + torch.tensor(offsets, device=device)
            states = model.trunk(batch, positions=places, region_vectors=vectors).last_hidden_state
            found = model.token_logits(states).float().cpu()
        top, chosen = found.max(-1)
        ids[asked, steps], best[asked, steps] = chosen, top
        sure[asked, steps] = top - found.logsumexp(-1)
        if len(logits) < keep_logits:
            logits.append(found)
        inputs = texts
        for i, token in zip(asked, chosen.tolist(), strict=True):
            prefixes[i].append(token)
            finished[i] |= token == stop_id
        steps += 1
    ids, best, sure = ids[:, :steps], best[:, :steps], sure[:, :steps]
    ends = [int((row == stop_id).nonzero()[0]) if (row == stop_id).any() else steps for row in ids]
    return Generated(ids, ends, best, sure, logits, inputs)
