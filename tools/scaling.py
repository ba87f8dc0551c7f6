"""Expected memory, communication and efficiency of base and large on 1 to 64 GPUs: the table of docs/scaling.md.

A model on paper, with the formulas of that page. The networks' sizes are counted from the real modules (without
memory); what the hardware does is an argument. ``--measure`` finds this machine's own constants instead: the rate of a
matrix product, time and share of that rate of a packed stack of base-size layers, the bytes of gradients, and the rate of
an all-reduce by gloo between two processes; they are printed, with ``--out`` written as JSON, and as arguments.

    python tools/scaling.py                       # the table
    python tools/scaling.py --positions 8192 --peak 312 --node 8 --fast 300 --slow 25
    python tools/scaling.py --measure --out constants.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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

    @property
    def outside(self) -> int:
        """Parameters that are not in the layers."""
        return self.parameters - self.layers * self.layer


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
    if sharded and gpus > 1:
        # gathered in fp32: what is outside of the layers, with its gradients, and two layers with one's gradients
        states = states / gpus + 4 * (2 * net.outside + 3 * net.layer)
    return states + activations(net, work)


def gradient_bytes(net: Network, gpus: int, sharded: bool) -> float:
    """Bytes that one GPU sends in a step: a ring's all-reduce; or gathers and a reduce-scatter, all in fp32.

    Of shards, layers are gathered twice, and the rest, which stays, once.
    """
    ring = (gpus - 1) / gpus
    return ring * (net.parameters * 2 + (net.layers * net.layer if sharded else 0)) * 4


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


@dataclass(frozen=True)
class Constants:
    """What a machine's CPU does, measured.

    Attributes:
        threads: of the process.
        positions, length: of the batch that was computed, and mean of its sequences.
        layers: of base size, in the stack that computed it.
        gemm: operations per second of a matrix product, by precision.
        step: seconds of the stack's forward and backward pass, by precision.
        share: of the matrix product's rate that the step reaches, by precision.
        gradient_bytes: of the whole base network, in fp32.
        all_reduce: bytes per second that a process sends in an all-reduce between two by gloo.
    """

    threads: int
    positions: int
    length: int
    layers: int
    gemm: dict[str, float]
    step: dict[str, float]
    share: dict[str, float]
    gradient_bytes: int
    all_reduce: float

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"{self.threads} thread(s); {self.layers} layers of base size, {self.positions} positions by {self.length}"
        ]
        for precision, seconds in self.step.items():
            found.append(
                f"{precision}: matrix product {self.gemm[precision] / 1e9:,.1f} GFLOP/s; step {1000 * seconds:,.0f} ms, "
                f"{self.positions / seconds:,.0f} positions/s, {100 * self.share[precision]:.0f} % of the product's rate"
            )
        found.append(f"gradients of base: {self.gradient_bytes / 1e6:,.0f} MB")
        found.append(f"all-reduce between two processes (gloo): {self.all_reduce / 1e9:.2f} GB/s")
        best = max(self.step, key=lambda precision: self.gemm[precision] * self.share[precision])
        return [
            *found,
            "as arguments: "
            f"--peak {self.gemm[best] / 1e12:.4f} --share {self.share[best]:.2f} --node 2 "
            f"--fast {self.all_reduce / 1e9:.2f} --slow 0.1 --positions {self.positions}",
        ]


def busy(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs, by the processor's time: other programs on the machine do not count."""
    work()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found) / torch.get_num_threads()


def measure_step(layers: int, positions: int, length: int, repeats: int) -> tuple[dict[str, float], ...]:
    """Matrix products and forward and backward passes of a packed stack of base-size layers, in fp32 and bf16.

    Returns:
        by precision operations per second of a product, seconds of a pass, and the share of the former's rate.
    """
    from mmbert.model.configuration import MMBertConfig
    from mmbert.model.encoder import Encoder

    torch.manual_seed(0)
    encoder = Encoder(MMBertConfig(vocab_size=100, **SIZES["base"] | {"num_hidden_layers": layers})).train()
    lengths = [length] * (positions // length)
    bounds = torch.arange(0, positions + 1, length, dtype=torch.int32)
    hidden = torch.randn(positions, SIZES["base"]["hidden_size"])
    count = sum(p.numel() for p in encoder.layers[0].parameters())
    net = Network(0, count, layers, SIZES["base"]["hidden_size"], SIZES["base"]["num_attention_heads"])
    needed = operations(net, Work(positions=positions, length=length, labels=0.0))
    gemm, step = {}, {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        square = torch.randn(1024, 1024, dtype=dtype)
        gemm[precision] = 2 * 1024**3 / busy(lambda square=square: square @ square, 2 * repeats)  # type: ignore[misc]

        def one(dtype: torch.dtype = dtype) -> None:
            with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                found = encoder(hidden, lengths, bounds)
            found.float().square().mean().backward()
            encoder.zero_grad()

        step[precision] = busy(one, repeats)
    return gemm, step, {precision: needed / step[precision] / gemm[precision] for precision in step}


def _reduce(rank: int, port: int, count: int, rounds: int, result: str) -> None:
    """One of two processes; the first leaves bytes per second of the fastest round in a file."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    values, found = torch.ones(count), []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.distributed.all_reduce(values)
        found.append(time.perf_counter() - start)
    if rank == 0:
        Path(result).write_text(str(4 * count / min(found)), "utf-8")  # sent: 2 (W - 1) / W of the values, W = 2
    torch.distributed.destroy_process_group()


def measure_all_reduce(count: int = 500_000, rounds: int = 200) -> float:
    """Bytes per second that each of two processes sends in an all-reduce."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = str(Path(folder) / "rate")
        args = (port, count, rounds, result)
        torch.multiprocessing.start_processes(_reduce, args=args, nprocs=2, start_method="spawn")
        return float(Path(result).read_text("utf-8"))


def measure(layers: int = 2, positions: int = 512, length: int = 64, repeats: int = 5) -> Constants:
    """This machine's constants; about a minute of one thread."""
    gemm, step, share = measure_step(layers, positions, length, repeats)
    sent = 4 * network("base").parameters
    return Constants(torch.get_num_threads(), positions, length, layers, gemm, step, share, sent, measure_all_reduce())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="this machine's constants instead of the table")
    parser.add_argument("--out", type=Path, help="with --measure: write the constants here, as JSON")
    parser.add_argument("--positions", type=int, default=Work.positions, help="per GPU and step")
    parser.add_argument("--peak", type=float, default=Hardware.peak / 1e12, help="bf16 TFLOP/s of a GPU")
    parser.add_argument("--share", type=float, default=Hardware.share, help="of it that a step reaches")
    parser.add_argument("--node", type=int, default=Hardware.node, help="GPUs of a machine")
    parser.add_argument("--fast", type=float, default=Hardware.fast / 1e9, help="GB/s per GPU in a machine")
    parser.add_argument("--slow", type=float, default=Hardware.slow / 1e9, help="GB/s per GPU between machines")
    args = parser.parse_args()
    for name in ("positions", "peak", "share", "node", "fast", "slow"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} has to be more than 0")
    if args.measure:
        found = measure()
        print("\n".join(found.lines()))
        if args.out is not None:
            args.out.write_text(json.dumps(asdict(found), indent=1) + "\n", "utf-8")
        return
    hardware = Hardware(args.peak * 1e12, args.share, args.node, args.fast * 1e9, args.slow * 1e9)
    print(table(Work(positions=args.positions), hardware))


if __name__ == "__main__":
    main()
