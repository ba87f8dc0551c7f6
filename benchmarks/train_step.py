"""How long is one training step, and how much memory does it take, against transformers' VisualBERT?

BERT-base size, vocabulary 119,547, fp32 and (where the processor is faster with it) bf16 autocast. The samples of a
step: 8 pairs of an image (37 regions with 2,048 numbers) and a text of 24 tokens, and 8 texts of 96 tokens; 15 % of the
tokens are to be predicted. A step is forward, losses, backward, clipping and fused AdamW, with dropout 0.1. Ours packs
all sixteen samples into one batch and also predicts the classes of 15 % of the regions; VisualBERT, which pads, gets
the pairs and the texts as two batches, so that it pads nothing here.

Each side lives in a process of its own; they step in turn. Ours keeps the memory that it frees, as `mmbert train` does
(the environment that this command starts itself in included); VisualBERT has what the C library does by itself. Then
the two change places, in two more processes: ours returns memory (`freed_memory=returned`), VisualBERT keeps it; the
figures of these stand against the first two. Memory is the peak of a process over its size before the first step
(weights loaded): gradients, optimiser state, activations; and the same without the gradients and optimiser state that
have to be there. The operations per second of our step (counted by PyTorch, without what is made again for the backward
pass) stand against those of large matrix products, which take their turn with the steps and as long as one: a shared
machine is faster in one second than in the next. `train_step_rate_highest` has the fastest of these turns.

`--device cuda --samples 256` measures a GPU with a batch that fills it; memory is then what PyTorch allocated on it,
which the C library has no part in.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Literal
from unittest import mock

import numpy as np
import psutil
import torch
from _common import (
    CLASSES,
    arguments,
    base_config,
    image_text_samples,
    in_turn,
    peer_batch,
    peer_config,
    random_tokens,
    report,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import VisualBertForPreTraining

from mmbert.data.packing import Example, Label, collate
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.training.allocator import freed_memory, tuned
from mmbert.training.clipping import clip_gradients
from mmbert.training.module import TrainingModule
from mmbert.training.precision import bf16_is_faster
from mmbert.training.profiling import product_rates

PEER = "transformers VisualBertForPreTraining"
REGIONS, TOKENS, TEXT_TOKENS = 37, 24, 96
SHARE = 0.15
MASK = 103

Loss = Callable[[], Tensor]
Clip = Callable[[Iterable[nn.Parameter], float, torch.optim.Optimizer], Tensor]
Build = Callable[[int, int, torch.device], tuple[nn.Module, list[Loss], Clip]]
Freed = Literal["kept", "returned"] | None


def samples(pairs: int, texts: int) -> tuple[list[Example], list[Example], object]:
    """Pairs, texts and the features of the pairs' images, with labels; the same in every process."""
    rng = np.random.default_rng(0)
    with_image, images = image_text_samples(rng, [TOKENS] * pairs, [REGIONS] * pairs, CLASSES)
    alone = [Example(random_tokens(rng, TEXT_TOKENS)) for _ in range(texts)]
    for example in [*with_image, *alone]:
        length = len(example.token_ids)
        places = np.sort(rng.choice(length, round(SHARE * length), replace=False))
        example.labels["step/mlm"] = Label("mlm", "token", places, example.token_ids[places].copy())
        example.token_ids[places] = MASK
    for example in with_image:
        places = 1 + np.sort(rng.choice(REGIONS - 1, round(SHARE * (REGIONS - 1)), replace=False))
        example.masked = np.isin(np.arange(REGIONS), places)
        example.labels["step/mvrc"] = Label("mvrc", "region", places)
    return with_image, alone, images


def build_ours(pairs: int, texts: int, device: torch.device) -> tuple[nn.Module, list[Loss], Clip]:
    """Our module, the losses whose gradients make one step, and how they are clipped."""
    with_image, alone, images = samples(pairs, texts)
    batch = collate([*with_image, *alone], images).to(device)
    model = MMBertForPreTraining(base_config(match_outputs=0))
    module = TrainingModule(model, {"step/mlm": {}, "step/mvrc": {}}).to(device)
    return module, [lambda: module(batch)["loss"]], clip_gradients


def build_peer(pairs: int, texts: int, device: torch.device) -> tuple[nn.Module, list[Loss], Clip]:
    """VisualBERT, its two batches' losses, and how gradients are clipped."""
    with_image, alone, images = samples(pairs, texts)
    model = VisualBertForPreTraining(peer_config()).to(device)

    def loss_of(examples: list[Example]) -> Loss:
        inputs = peer_batch(examples, images)
        longest = inputs["input_ids"].shape[1]
        labels = torch.full((len(examples), longest + inputs["visual_embeds"].shape[1]), -100)
        for row, example in enumerate(examples):
            label = example.labels["step/mlm"]
            labels[row, torch.from_numpy(label.places)] = torch.from_numpy(label.values)
        given = {name: values.to(device) for name, values in {**inputs, "labels": labels}.items()}
        return lambda: model(**given).loss / 2

    return model, [loss_of(with_image), loss_of(alone)], lambda own, limit, _: nn.utils.clip_grad_norm_(own, limit)


def used_memory(device: torch.device, *, peak: bool) -> int:
    """Bytes of this process on the device, now or at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if peak else psutil.Process().memory_info().rss


def finish(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def serve(connection: Connection, build: Build, freed: Freed, size: tuple[int, int], device: torch.device) -> None:
    """Do what is asked for; freed memory as said, or None: as the C library has it.

    ``"fp32"`` and ``"bf16"``: a step, answered by its seconds. ``"memory"``: peak bytes; ``"states"``: those of
    gradients and optimiser state. ``"peak"``: a matrix product's operations per second; ``"flop"``: those of a step.
    """
    with freed_memory(freed) if freed else nullcontext():
        _serve(connection, build, size, device)


def _serve(connection: Connection, build: Build, size: tuple[int, int], device: torch.device) -> None:
    torch.manual_seed(0)
    module, losses, clip = build(*size, device)
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    baseline = used_memory(device, peak=False)
    connection.send("ready")
    while (request := connection.recv()) != "stop":
        if request == "memory":
            connection.send(used_memory(device, peak=True) - baseline)
            continue
        if request == "states":
            connection.send(3 * sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad))
            continue
        if request == "peak":
            connection.send(statistics.harmonic_mean(product_rates("fp32", device, 30)))  # about as long as a step
            continue
        if request == "flop":
            # What is made again for the backward pass is not counted: it is no part of what a step has to compute.
            with (
                mock.patch("mmbert.model.attention.weights_made_again", return_value=False),
                FlopCounterMode(display=False) as counter,
            ):
                for loss in losses:
                    loss().backward()
            optimizer.zero_grad()
            connection.send(counter.get_total_flops())
            continue
        finish(device)
        start = time.perf_counter()
        for loss in losses:
            with torch.autocast(device.type, torch.bfloat16, enabled=request == "bf16"):
                value = loss()
            value.backward()
            del value
        clip(module.parameters(), 1.0, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        finish(device)
        connection.send(time.perf_counter() - start)


SIDES: list[tuple[str, Build, Freed]] = [("ours", build_ours, "kept"), ("peer", build_peer, None)]
SIDES_ON_CPU: list[tuple[str, Build, Freed]] = [
    ("returned", build_ours, "returned"),
    ("peer kept", build_peer, "kept"),
]


class Sides:
    """Processes that step in turn."""

    def __init__(self, sides: list[tuple[str, Build, Freed]], size: tuple[int, int], device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: dict[str, Connection] = {}
        self._processes = []
        for name, build, freed in sides:
            self._connections[name], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, build, freed, size, device), daemon=True)
            with mock.patch.dict(os.environ, tuned(os.environ) if freed == "kept" else {}):
                process.start()
            self._processes.append(process)
        for connection in self._connections.values():
            connection.recv()

    def ask(self, name: str, request: str) -> float:
        """What a side answers."""
        self._connections[name].send(request)
        return float(self._connections[name].recv())

    def turns(self, precision: str) -> dict[str, Callable[[], float]]:
        """A step of each side, to be timed in turn."""
        return {name: lambda name=name: self.ask(name, precision) for name in self._connections}  # type: ignore[misc]

    def memory(self) -> dict[str, tuple[float, float]]:
        """By side: GiB at the peak, and beyond gradients and optimiser state."""
        peaks = {name: self.ask(name, "memory") / 2**30 for name in self._connections}
        return {name: (peak, peak - self.ask(name, "states") / 2**30) for name, peak in peaks.items()}

    def stop(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections.values(), self._processes, strict=True):
            connection.send("stop")
            process.join()


def main() -> None:
    given = arguments(__doc__, "half of the samples and fewer steps", devices=True)
    device, rounds = torch.device(given.device), 2 if given.quick else 9
    half = (given.samples // 2 if given.samples else 8) // (2 if given.quick else 1)
    precisions = ["fp32", "bf16"] if bf16_is_faster() else ["fp32"]
    if len(precisions) == 1:
        print("bf16 is not faster than fp32 on this processor: train_step_bf16 left out", file=sys.stderr)

    sides = Sides(SIDES, (half, half), device)
    median: dict[str, dict[str, float]] = {}
    products: list[float] = []

    def product() -> float:
        products.append(sides.ask("ours", "peak"))
        return products[-1]

    for precision in precisions:
        turns = sides.turns(precision)
        median[precision] = in_turn(rounds, {**turns, "product": product} if precision == "fp32" else turns)
        report(f"train_step_{precision}", median[precision]["ours"], "s", PEER, median[precision]["peer"])
        if precision == "fp32":
            memory = sides.memory()  # of fp32 steps only
            report("train_memory", memory["ours"][0], "GiB", PEER, memory["peer"][0])
            report("train_memory_beyond_states", memory["ours"][1], "GiB", PEER, memory["peer"][1])
            rate = sides.ask("ours", "flop") / median["fp32"]["ours"] / 1e9
            beside, highest = median["fp32"]["product"] / 1e9, max(products) / 1e9
            report("train_step_rate", rate, "GFLOP/s", "matrix products", beside, more_is_better=True)
            report(
                "train_step_rate_highest",
                rate,
                "GFLOP/s",
                "matrix products, fastest turn",
                highest,
                more_is_better=True,
            )
    sides.stop()
    if device.type != "cpu":
        return
    others = Sides(SIDES_ON_CPU, (half, half), device)
    for precision in precisions:
        other = in_turn(min(rounds, 5), others.turns(precision))
        first, alike = median[precision], f"{PEER}, our setting"
        report(f"train_step_{precision}_same_allocator", first["ours"], "s", alike, other["peer kept"])
        report(f"train_step_{precision}_returned", other["returned"], "s", PEER, first["peer"])
        if precision == "fp32":
            beyond = others.memory()["returned"][1]
            report("train_memory_beyond_states_returned", beyond, "GiB", PEER, memory["peer"][1])
    others.stop()


if __name__ == "__main__":
    main()
