"""Which way to compute attention over sequences of different lengths is quickest?

Forward and backward of 12 heads of 64, ours (dense products over groups of equal length, `mmbert/model/attention.py`)
against PyTorch's fused `scaled_dot_product_attention`, sequence by sequence and on a padded batch with a mask (whose
input is padded already, as it would be in a padded network). Two batches of 16 sequences: `mixed` of 20 to 100
positions, `equal` of 62 each; fp32, and bf16 where the processor is faster with it.

`--device cuda --samples 256`: on a GPU ours is one kernel (`mmbert/model/fused.py`), and stands against our own groups
and against PyTorch's nested tensors as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from _common import arguments, in_turn, report
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmbert.model import fused
from mmbert.model.attention import AttentionPlan, grouped_attention, plan_attention
from mmbert.training.precision import bf16_is_faster

HEADS, HEAD_SIZE, SEQUENCES = 12, 64, 16
HIDDEN = HEADS * HEAD_SIZE


def per_sequence(qkv: Tensor, lengths: list[int]) -> Tensor:
    """[P, 3 * H] to [P, H], one fused call for each sequence."""
    outputs = []
    for rows in qkv.split(lengths):
        query, key, value = rows.view(1, -1, 3, HEADS, HEAD_SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        outputs.append(scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, HIDDEN))
    return torch.cat(outputs)


def padded(qkv: Tensor, mask: Tensor) -> Tensor:
    """[B, L, 3 * H] and [B, 1, 1, L] (False is padding) to [B, L, H], one fused call."""
    query, key, value = qkv.unflatten(2, (3, HEADS, HEAD_SIZE)).permute(2, 0, 3, 1, 4).unbind(0)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def nested(qkv: Tensor, starts: Tensor) -> Tensor:
    """[P, 3 * H] to [P, H], by nested tensors of all sequences."""
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(part, starts).transpose(1, 2)
        for part in qkv.view(-1, 3, HEADS, HEAD_SIZE).unbind(1)
    )
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).values().reshape(-1, HIDDEN)


def ours(qkv: Tensor, plan: AttentionPlan) -> Tensor:
    """[P, 3 * H] to [P, H], as `PackedSelfAttention` does it where the tensors lie."""
    if not fused.fits(qkv, HEAD_SIZE):
        return grouped_attention(qkv, plan, HEADS)
    query, key, value = qkv.view(-1, 3, HEADS, HEAD_SIZE).unbind(1)
    bounds = fused.Bounds(plan.cu_seqlens, plan.longest)
    return fused.fused_packed_attention(query, key, value, bounds, bounds).reshape(-1, HIDDEN)


def step(attend: Callable[[Tensor], Tensor], qkv: Tensor) -> Callable[[], None]:
    """Forward and backward with a given gradient."""
    gradient = torch.randn_like(attend(qkv))

    def run() -> None:
        torch.autograd.grad(attend(qkv), qkv, gradient)
        if qkv.is_cuda:
            torch.cuda.synchronize()

    return run


def main() -> None:
    given = arguments(__doc__, "fewer rounds", devices=True)
    rounds, device, sequences = 10 if given.quick else 50, torch.device(given.device), given.samples or SEQUENCES
    torch.manual_seed(0)
    mixed = sorted(np.random.default_rng(0).integers(20, 101, sequences).tolist())
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if not bf16_is_faster():
        print("bf16 is not faster than fp32 on this processor: left out", file=sys.stderr)
        del dtypes["bf16"]
    for name, lengths in [("mixed", mixed), ("equal", [62] * sequences)]:
        starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
        plan = plan_attention(lengths, starts)
        for precision, dtype in dtypes.items():
            flat = torch.randn(sum(lengths), 3 * HIDDEN, dtype=dtype, device=device, requires_grad=True)
            square = torch.randn(sequences, max(lengths), 3 * HIDDEN, dtype=dtype, device=device, requires_grad=True)
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None].to(device)
            ways = {
                "ours": step(lambda qkv, plan=plan: ours(qkv, plan), flat),
                "SDPA per sequence": step(lambda qkv, lengths=lengths: per_sequence(qkv, lengths), flat),
                "SDPA padded": step(lambda qkv, mask=mask: padded(qkv, mask), square),
            }
            if device.type == "cuda":
                ways["groups of equal length"] = step(lambda qkv, plan=plan: grouped_attention(qkv, plan, HEADS), flat)
                ways["SDPA of nested tensors"] = step(lambda qkv, starts=starts: nested(qkv, starts.long()), flat)
            median = in_turn(rounds, ways, warm_up=3)
            for peer in list(ways)[1:]:
                report(f"attention_{name}_{precision}", median["ours"] * 1e3, "ms", peer, median[peer] * 1e3)


if __name__ == "__main__":
    main()
