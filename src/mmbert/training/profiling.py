"""Where the time of a training step goes, and how far it is from what the machine's matrix products could do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import set_seed

from mmbert.data.mixture import StepDataset
from mmbert.training.allocator import freed_memory
from mmbert.training.build import build_components, build_model, open_sources
from mmbert.training.clipping import clip_gradients
from mmbert.training.heads import with_task_heads
from mmbert.training.optimizers import build_optimizer
from mmbert.training.precision import arithmetic, choose
from mmbert.training.recipe import Recipe, load_recipe
from mmbert.training.run import FIRST_STAGE, training_module
from mmbert.training.setup import choose_trained
from mmbert.training.trainer import peak_memory
from mmbert.vision.augment import build_augmentation

KINDS = {
    "matrix products": ("mm", "addmm", "linear", "mkldnn_linear", "addmm_", "matmul"),
    "attention": (
        "bmm",
        "baddbmm",
        "_softmax",
        "_softmax_backward_data",
        "_flash_attention",
        "_efficient_attention",
        "_RecomputingAttention",
    ),
    "convolutions": ("convolution", "mkldnn_convolution", "convolution_backward", "cudnn_convolution", "_conv"),
    "norms": ("native_layer_norm", "native_layer_norm_backward", "native_batch_norm", "batch_norm"),
    "dropout": ("random_", "native_dropout", "bernoulli_", "_Dropped"),
    "activations": ("gelu", "relu", "tanh"),
    "optimiser": ("_fused_adamw_", "_fused_adam_", "_fused_sgd_", "_foreach", "linalg_vector_norm"),
    "losses": (
        "_log_softmax",
        "nll_loss",
        "binary_cross_entropy_with_logits",
        "exp_",
        "argmax",
        "logsumexp",
        "log_sigmoid",
        "_Loss",
    ),
    "rows in and out": (
        "index",
        "index_select",
        "gather",
        "scatter",
        "cat",
        "embedding",
        "copy_",
        "split",
        "_Rows",
        "_Whole",
    ),
}
"""Kinds of operators by how their names (behind ``aten::``) begin; the longest fitting beginning decides. Our own have
the names of their classes."""


@dataclass
class StepProfile:
    """What was measured.

    Attributes:
        seconds: of one step, the median: data and optimiser included.
        phases: name to seconds of that step.
        operators: kind to its share of all operators' own time, in one step under PyTorch's profiler.
        top: name, share and calls of the operators that take longest.
        flop: of one step (products and convolutions, forward and backward).
        peak_flops: of a large matrix product in the run's precision, per second, here and now.
        positions: of one step.
        padding_saved: share of positions that a padded batch would have had on top.
        memory: most bytes held.
        precision: that it ran in.
    """

    seconds: float
    phases: dict[str, float]
    operators: dict[str, float]
    top: list[tuple[str, float, int]]
    flop: int
    peak_flops: float
    positions: int
    padding_saved: float
    memory: int
    precision: str

    @property
    def share_of_peak(self) -> float:
        """Achieved by the whole step, data and all."""
        return self.flop / self.seconds / self.peak_flops


class _Clock:
    """Sums of seconds by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.sums[name] = self.sums.get(name, 0.0) + self.now() - start

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass
class _Step:
    """One optimiser step of a recipe, outside the trainer."""

    module: nn.Module
    dataset: StepDataset
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    precision: str
    device: torch.device
    positions: int = 0
    padded: int = 0
    clock: _Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = _Clock(self.device)
        model = self.module.model
        model.register_forward_pre_hook(lambda *_: self._trunk_began())  # type: ignore[union-attr, operator]
        model.register_forward_hook(lambda *_: self._trunk_ended())  # type: ignore[union-attr, operator]
        self._began = 0.0

    def _trunk_began(self) -> None:
        self._began = self.clock.now()

    def _trunk_ended(self) -> None:
        self.clock.sums["trunk"] = self.clock.sums.get("trunk", 0.0) + self.clock.now() - self._began

    def __call__(self, number: int) -> None:
        parts = self.recipe.accumulation
        with self.clock.phase("data"):
            batches = [self.dataset[number * parts + part].to(self.device) for part in range(parts)]
        self.positions = sum(batch.num_positions for batch in batches)
        self.padded = sum(batch.num_sequences * max(batch.lengths) for batch in batches)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        for batch, plans in zip(batches, self.module.plan(batches), strict=True):  # type: ignore[operator]
            with self.clock.phase("forward"), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                loss = self.module(batch, plans)["loss"]
            with self.clock.phase("backward"):
                loss.backward()
        with self.clock.phase("optimiser"):
            if self.recipe.optimizer.clip:
                clip_gradients(self.module.parameters(), self.recipe.optimizer.clip, self.optimizer)
            self.optimizer.step()
            self.optimizer.zero_grad()


def convolution_backward_flop(
    grad_out: Sequence[int], values: Sequence[int], weight: Sequence[int], *rest: Any, **named: Any
) -> int:
    """Operations of ``aten::convolution_backward``, given the shapes of its tensors and its other arguments.

    Each gradient that is wanted, of values and of weight, takes as many as the convolution. PyTorch's own count has the
    groups of a grouped convolution too often: of a depthwise one, as mobile networks have, as often as it has channels.
    """
    transposed, wanted = rest[4], rest[7]
    forward = 2 * math.prod(values if transposed else grad_out) * math.prod(weight[1:])
    return forward * (int(wanted[0]) + int(wanted[1]))


def profile_step(recipe: Recipe, steps: int = 5, tell: Callable[[str], None] = lambda _: None) -> StepProfile:
    """Measure ``steps`` steps of a recipe after one that warms up; nothing is written.

    Args:
        recipe: of a training run.
        steps: whose median counts.
        tell: is told what is being done.

    Raises:
        MMBertError: as in training.
    """
    with freed_memory(recipe.freed_memory), arithmetic(tf32=recipe.tf32, deterministic=recipe.deterministic):
        return _profile_step(recipe, steps, tell)


def _profile_step(recipe: Recipe, steps: int, tell: Callable[[str], None]) -> StepProfile:
    tell("building the model and the mixture")
    step = _prepare(recipe, steps + 3)
    step(0)
    tell(f"measuring {steps} steps")
    taken = []
    for number in range(1, steps + 1):
        step.clock.sums = {}
        start = step.clock.now()
        step(number)
        taken.append((step.clock.now() - start, step.clock.sums))
    seconds, sums = sorted(taken, key=lambda one: one[0])[len(taken) // 2]
    trunk = sums.pop("trunk")
    losses = max(0.0, sums.pop("forward") - trunk)
    phases = {"data": sums["data"], "trunk": trunk, "losses": losses}
    phases |= {"backward": sums["backward"], "optimiser": sums["optimiser"]}
    memory = peak_memory()
    tell("one step under the profiler, one to count operations")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if step.device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        step(steps + 1)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_flop}
    )
    with counter:
        step(steps + 2)
    operators, top = _operators(found, step.device)
    return StepProfile(
        seconds=seconds,
        phases=phases,
        operators=operators,
        top=top,
        flop=counter.get_total_flops(),
        peak_flops=max(product_rates(step.precision, step.device, 5)),
        positions=step.positions,
        padding_saved=1 - step.positions / step.padded,
        memory=memory,
        precision=step.precision,
    )


def _prepare(recipe: Recipe, steps: int) -> _Step:
    set_seed(recipe.seed)
    sources = open_sources(recipe)
    model = recipe.model
    while isinstance(model.init, str) and model.init.startswith(FIRST_STAGE):
        model = load_recipe(model.init.removeprefix(FIRST_STAGE)).model  # as large, whatever its weights
    bert = build_model(with_task_heads(model, recipe, sources), sources, recipe.seed)
    choose_trained(recipe, bert)
    components = build_components(recipe, sources, bert.processor)
    images = bert.processor.augmented_images(build_augmentation(recipe.augment))
    dataset = StepDataset(components, batches=steps * recipe.accumulation, images=images, seed=recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = training_module(recipe, bert, sources).to(device)
    optimizer = build_optimizer(module, recipe.effective_optimizer(1))
    return _Step(module, dataset, optimizer, recipe, choose(recipe.precision), device)


def product_rates(precision: str, device: torch.device, count: int) -> list[float]:
    """Operations per second of each of ``count`` products of square matrices, as large as it takes, after a first."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    size = 8192 if device.type == "cuda" else 2048
    values = torch.rand(size, size, dtype=dtype, device=device)  # of zeros or ones a GPU makes more
    clock, rates = _Clock(device), []
    for _ in range(count + 1):
        start = clock.now()
        values @ values
        rates.append(2 * size**3 / (clock.now() - start))
    return rates[1:]


def _operators(found: Any, device: torch.device) -> tuple[dict[str, float], list[tuple[str, float, int]]]:
    """Shares by kind and the ten longest, by each operator's own time on the device."""
    on = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [(event.key, float(getattr(event, on)), int(event.count)) for event in found.key_averages()]
    total = sum(spent for _, spent, _ in events) or 1.0
    kinds: dict[str, float] = {}
    for key, spent, _ in events:
        kind = kind_of(key)
        kinds[kind] = kinds.get(kind, 0.0) + spent / total
    longest = sorted(events, key=lambda event: -event[1])[:10]
    ordered = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    return ordered, [(key, spent / total, count) for key, spent, count in longest]


def kind_of(operator: str) -> str:
    """The kind of an operator by its name; ``everything else`` where it fits none."""
    name = operator.rpartition("::")[2]
    fits = [(len(start), kind) for kind, starts in KINDS.items() for start in starts if name.startswith(start)]
    return max(fits)[1] if fits else "everything else"
