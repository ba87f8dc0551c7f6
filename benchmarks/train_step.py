"""How long is one training step, and how much memory does it take, against transformers' VisualBERT?

BERT-base size, vocabulary 119,547, fp32 and (where the processor is faster with it) bf16 autocast. The samples of a
step: 8 pairs of an image (37 regions with 2,048 numbers) and a text of 24 tokens, and 8 texts of 96 tokens; 15 % of the
tokens are to be predicted. A step is forward, losses, backward, clipping and fused AdamW, with dropout 0.1. Ours packs
all sixteen samples into one batch and also predicts the classes of 15 % of the regions; VisualBERT, which pads, gets
the pairs and the texts as two batches, so that it pads nothing here.

Each side lives in a process of its own; they step in turn. Ours keeps the memory that it frees, as `mmbert train` does,
and in a second process returns it (`freed_memory=returned`); VisualBERT has what the C library does by itself, and in
another process keeps memory too. Memory is the peak of that process over its size before the first step (weights
loaded): gradients, optimiser state, activations; and the same without the gradients and optimiser state that have to be
there. The operations per second of our step (counted by PyTorch) stand against those of a large matrix product,
measured before and after the steps in the same process.

`--device cuda --samples 256` measures a GPU with a batch that fills it; memory is then what PyTorch allocated on it,
which the C library has no part in.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Literal

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
from mmbert.training.allocator import freed_memory
from mmbert.training.module import TrainingModule
from mmbert.training.precision import bf16_is_faster
from mmbert.training.profiling import gemm_peak

PEER = "transformers VisualBertForPreTraining"
REGIONS, TOKENS, TEXT_TOKENS = 37, 24, 96
SHARE = 0.15
MASK = 103

Loss = Callable[[], Tensor]
Build = Callable[[int, int, torch.device], tuple[nn.Module, list[Loss]]]
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


def build_ours(pairs: int, texts: int, device: torch.device) -> tuple[nn.Module, list[Loss]]:
    """Our module, and the losses whose gradients make one step."""
    with_image, alone, images = samples(pairs, texts)
    batch = collate([*with_image, *alone], images).to(device)
    model = MMBertForPreTraining(base_config(match_outputs=0))
    module = TrainingModule(model, {"step/mlm": {}, "step/mvrc": {}}).to(device)
    return module, [lambda: module(batch)["loss"]]


def build_peer(pairs: int, texts: int, device: torch.device) -> tuple[nn.Module, list[Loss]]:
    """VisualBERT, and its two batches' losses."""
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

    return model, [loss_of(with_image), loss_of(alone)]


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
    module, losses = build(*size, device)
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
            connection.send(gemm_peak("fp32", device, repeats=3))
            continue
        if request == "flop":
            with FlopCounterMode(display=False) as counter:
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
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        finish(device)
        connection.send(time.perf_counter() - start)


SIDES: list[tuple[str, Build, Freed]] = [("ours", build_ours, "kept"), ("peer", build_peer, None)]
SIDES_ON_CPU: list[tuple[str, Build, Freed]] = [
    ("returned", build_ours, "returned"),
    ("peer kept", build_peer, "kept"),
]


def main() -> None:
    given = arguments(__doc__, "half of the samples and fewer steps", devices=True)
    device, rounds = torch.device(given.device), 2 if given.quick else 5
    half = (given.samples // 2 if given.samples else 8) // (2 if given.quick else 1)
    size = (half, half)
    context = multiprocessing.get_context("spawn")
    sides, processes = {}, []
    for name, build, freed in SIDES + (SIDES_ON_CPU if device.type == "cpu" else []):
        sides[name], theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, build, freed, size, device), daemon=True)
        process.start()
        processes.append(process)
    for connection in sides.values():
        connection.recv()

    def ask(name: str, request: str) -> float:
        sides[name].send(request)
        return float(sides[name].recv())

    def compare(precision: str) -> float:
        median = in_turn(rounds, {name: lambda name=name: ask(name, precision) for name in sides})
        report(f"train_step_{precision}", median["ours"], "s", PEER, median["peer"])
        if device.type == "cpu":
            alike = f"{PEER}, our setting"
            report(f"train_step_{precision}_same_allocator", median["ours"], "s", alike, median["peer kept"])
            report(f"train_step_{precision}_returned", median["returned"], "s", PEER, median["peer"])
        return median["ours"]

    products = [ask("ours", "peak")]
    seconds = compare("fp32")
    products.append(ask("ours", "peak"))
    peak = {name: ask(name, "memory") / 2**30 for name in sides}
    report("train_memory", peak["ours"], "GiB", PEER, peak["peer"])
    beyond = {name: peak[name] - ask(name, "states") / 2**30 for name in sides}
    report("train_memory_beyond_states", beyond["ours"], "GiB", PEER, beyond["peer"])
    if device.type == "cpu":
        report("train_memory_beyond_states_returned", beyond["returned"], "GiB", PEER, beyond["peer"])
    rate = ask("ours", "flop") / seconds / 1e9
    report("train_step_rate", rate, "GFLOP/s", "a matrix product", max(products) / 1e9, more_is_better=True)
    if bf16_is_faster():
        compare("bf16")
    else:
        print("bf16 is not faster than fp32 on this processor: train_step_bf16 left out", file=sys.stderr)
    for name, process in zip(sides, processes, strict=True):
        sides[name].send("stop")
        process.join()


if __name__ == "__main__":
    main()
