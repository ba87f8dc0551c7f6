"""Expected memory, communication and efficiency of base and large on 1 to 64 GPUs: the table of docs/scaling.md.

A model on paper, with the formulas of that page. The networks' sizes are counted from the real modules (without
memory); what the hardware does is an argument. ``--measure`` prints this machine's own constants instead: a matrix
product's rate, the share of it that a small training step reaches, and the rate of gloo between two processes.

    python tools/scaling.py                       # the table
    python tools/scaling.py --positions 8192 --peak 312 --node 8 --fast 300 --slow 25
    python tools/scaling.py --measure
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import time
from dataclasses import dataclass

import torch

SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
GPUS = (1, 2, 4, 8, 16, 32, 64)
VOCABULARY, FEATURES, CLASSES, EMBEDDING = 119_547, 2048, 1601, 512


@dataclass(frozen=True)
class Network:
    """Counts of one network.

    Attributes:
        parameters: all.
        layer: those of one encoder layer.
        layers, hidden, heads: of the encoder.
    """

    parameters: int
    layer: int
    layers: int
    hidden: int
    heads: int


@dataclass(frozen=True)
class Hardware:
    """What GPUs and links do.

    Attributes:
        peak: bf16 operations per second of one GPU.
        share: of the peak that a step alone on one GPU reaches.
        node: GPUs of one machine.
        fast, slow: bytes per second and GPU in a ring within a machine and between machines.
        latency: seconds per message.
        overlap: share of the backward pass under which communication can hide.
    """

    peak: float = 989e12
    share: float = 0.40
    node: int = 8
    fast: float = 450e9
    slow: float = 50e9
    latency: float = 10e-6
    overlap: float = 0.9


@dataclass(frozen=True)
class Work:
    """What one GPU does in one step.

    Attributes:
        positions: of its batch.
        length: mean positions of a sequence.
        labels: share of positions with a masked word.
        contrasted: sequences of its batch that are embedded for contrast (half texts, half images).
        regions: of an image, for hard pairs.
    """

    positions: int = 16384
    length: int = 64
    labels: float = 0.10
    contrasted: int = 256
    regions: int = 37


def network(size: str) -> Network:
    """Count a network's parameters."""
    from mmbert.model.configuration import MMBertConfig
    from mmbert.model.modeling import MMBertForPreTraining

    options = {"vocab_size": VOCABULARY, "region_feature_size": FEATURES, "num_region_classes": CLASSES}
    sizes = SIZES[size]
    with torch.device("meta"):
        model = MMBertForPreTraining(
            MMBertConfig(**options, **sizes, visual_size=sizes["hidden_size"], embedding_size=EMBEDDING)
        )
    layer = sum(p.numel() for p in model.trunk.encoder.layers[0].parameters())
    total = sum(p.numel() for p in model.parameters())
    return Network(total, layer, sizes["num_hidden_layers"], sizes["hidden_size"], sizes["num_attention_heads"])


def operations(net: Network, work: Work) -> float:
    """Forward and backward of one GPU's batch: 6 per parameter and position, attention, the vocabulary."""
    layers = 6 * net.layers * net.layer * work.positions
    attention = 12 * net.layers * net.hidden * work.length * work.positions
    vocabulary = 6 * VOCABULARY * net.hidden * work.labels * work.positions
    return layers + attention + vocabulary


def activations(net: Network, work: Work) -> float:
    """Bytes kept for the backward pass in bf16 (Korthikanti et al., 2022: 34 H + 5 heads x length per position)."""
    return net.layers * work.positions * (34 * net.hidden + 5 * net.heads * work.length)


def memory(net: Network, work: Work, gpus: int, sharded: bool) -> float:
    """Bytes on one GPU: weights, gradients and Adam's two in fp32 (16 a parameter), and activations."""
    states = 16 * net.parameters
    if sharded:
        outside = net.parameters - net.layers * net.layer
        states = states / gpus + 2 * (outside + 2 * net.layer)  # gathered in bf16: the root, two layers
    return states + activations(net, work)


def gradient_bytes(net: Network, gpus: int, sharded: bool) -> float:
    """Bytes that one GPU sends in a step: a ring's all-reduce, or two gathers in bf16 and a reduce-scatter in fp32."""
    ring = (gpus - 1) / gpus
    return ring * net.parameters * (2 + 2 + 4 if sharded else 2 * 4)


def contrast_bytes(net: Network, work: Work, gpus: int) -> float:
    """Bytes that one GPU sends for contrast (fp32): embeddings and regions to all, the gradients of all as a sum."""
    rows = work.contrasted * EMBEDDING + work.contrasted / 2 * work.regions * net.hidden
    return (1 + 2) * (gpus - 1) * rows * 4


def seconds(sent: float, gpus: int, hardware: Hardware) -> float:
    """Of a ring over so many GPUs; the slowest link sets the pace."""
    if gpus == 1:
        return 0.0
    rate = hardware.fast if gpus <= hardware.node else hardware.slow
    return sent / rate + 2 * math.log2(gpus) * hardware.latency


def efficiency(net: Network, work: Work, gpus: int, sharded: bool, hardware: Hardware) -> tuple[float, float]:
    """Seconds of a step, and the share of them that one GPU alone would take."""
    alone = operations(net, work) / (hardware.peak * hardware.share)
    hidden = hardware.overlap * alone * (1.0 if sharded else 2 / 3)  # all-reduce hides under the backward pass alone
    exposed = max(0.0, seconds(gradient_bytes(net, gpus, sharded), gpus, hardware) - hidden)
    exposed += seconds(contrast_bytes(net, work, gpus), gpus, hardware)  # nothing to hide under
    return alone + exposed, alone / (alone + exposed)


def table(work: Work, hardware: Hardware) -> str:
    """The table in Markdown."""
    lines = [
        "| model | GPUs | DDP: GB | sent MB | step ms | efficiency | FSDP2: GB | sent MB | step ms | efficiency |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for size in SIZES:
        net = network(size)
        for gpus in GPUS:
            cells = []
            for sharded in (False, True):
                step, share = efficiency(net, work, gpus, sharded, hardware)
                sent = gradient_bytes(net, gpus, sharded) + contrast_bytes(net, work, gpus)
                cells += [f"{memory(net, work, gpus, sharded) / 1e9:.1f}", f"{sent / 1e6:,.0f}"]
                cells += [f"{1000 * step:.0f}", f"{100 * share:.0f} %"]
            lines.append(f"| {size} | {gpus} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _reduce(rank: int, port: int, count: int, rounds: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    values = torch.ones(count)
    torch.distributed.all_reduce(values)
    start = time.perf_counter()
    for _ in range(rounds):
        torch.distributed.all_reduce(values)
    if rank == 0:
        sent = rounds * count * 4  # 2 (W - 1) / W of the values, W = 2
        print(f"gloo between two processes: {sent / (time.perf_counter() - start) / 1e9:.2f} GB/s")
    torch.distributed.destroy_process_group()


def measure() -> None:
    """This machine's constants."""
    from mmbert.training.profiling import gemm_peak

    cpu = torch.device("cpu")
    for precision in ("fp32", "bf16"):
        print(f"matrix products in {precision}: {gemm_peak(precision, cpu) / 1e9:,.1f} GFLOP/s")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.start_processes(_reduce, args=(port, 10_000_000, 5), nprocs=2, start_method="spawn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="this machine's constants instead of the table")
    parser.add_argument("--positions", type=int, default=Work.positions, help="per GPU and step")
    parser.add_argument("--peak", type=float, default=Hardware.peak / 1e12, help="bf16 TFLOP/s of a GPU")
    parser.add_argument("--share", type=float, default=Hardware.share, help="of it that a step reaches")
    parser.add_argument("--node", type=int, default=Hardware.node, help="GPUs of a machine")
    parser.add_argument("--fast", type=float, default=Hardware.fast / 1e9, help="GB/s per GPU in a machine")
    parser.add_argument("--slow", type=float, default=Hardware.slow / 1e9, help="GB/s per GPU between machines")
    args = parser.parse_args()
    if args.measure:
        measure()
        return
    hardware = Hardware(args.peak * 1e12, args.share, args.node, args.fast * 1e9, args.slow * 1e9)
    print(table(Work(positions=args.positions), hardware))


if __name__ == "__main__":
    main()
