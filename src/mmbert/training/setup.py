"""From a recipe to the trainer's settings: which parameters learn, how long, in which precision, with whom."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainingArguments

import mmbert
from mmbert.api.front_door import MMBert
from mmbert.errors import ConfigError
from mmbert.model.recompute import checkpoint_layers
from mmbert.training.checkpoints import Manifest
from mmbert.training.lora import add_lora
from mmbert.training.optimizers import freeze
from mmbert.training.precision import choose
from mmbert.training.recipe import Recipe


def choose_trained(recipe: Recipe, bert: MMBert) -> None:
    """Say which parameters learn, and how their layers run.

    Raises:
        ConfigError: none is left to learn, a name of ``frozen`` or ``lora`` fits nothing, or peft is not installed.
    """
    optimizer, trunk = recipe.optimizer, bert.model.trunk
    if optimizer.vision_lr == 0 and trunk.vision is not None:
        trunk.vision.requires_grad_(False)
    freeze(bert.model, optimizer.frozen)
    if optimizer.lora is not None:
        add_lora(bert.model, optimizer.lora)
    if not any(parameter.requires_grad for parameter in bert.model.parameters()):
        raise ConfigError("no parameter of the model is trained", hint="leave something out of optimizer.frozen")
    if recipe.activation_checkpointing:
        checkpoint_layers(bert.model)
    if recipe.compile:
        trunk.encoder.compile_layers()
    bert.model.train()


def run_length(recipe: Recipe, steps: int, start: Manifest | None) -> tuple[int, int]:
    """Steps of the run, and how far its batch numbers are ahead of what its processes would have used up.

    The two matter to a run that goes on with another number of processes (or batches per step): it begins with the
    first batch that was not used, and epochs end where they would have ended.
    """
    if start is None:
        return steps, 0
    per_step = recipe.accumulation * world_size()
    shift = start.batches - start.step * per_step
    if recipe.epochs is not None:
        steps = max(start.step + math.ceil((start.planned - start.batches) / per_step), start.step)
    return steps, shift


@contextmanager
def naming_services(recipe: Recipe) -> Iterator[None]:
    """Turn what a service of ``report_to`` complains about into an error that names it.

    Raises:
        ConfigError: one of them did.
    """
    try:
        yield
    except Exception as error:
        service = type(error).__module__.partition(".")[0]
        if service not in recipe.report_to:
            raise
        hint = "set it up as its makers say, or leave it out: report_to=[]"
        raise ConfigError(f"report_to {service}: {error}", hint=hint) from error


def package_versions() -> dict[str, str]:
    """Of whatever takes part in a run."""
    packages = ("torch", "torchvision", "transformers", "accelerate", "tokenizers", "timm", "numpy", "pillow")
    found = {name: version(name) for name in packages}
    return {"mm-bert": mmbert.__version__, "python": platform.python_version(), **found}


def world_size() -> int:
    """Processes of this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_rank() -> int:
    """Number of this process among them."""
    return int(os.environ.get("RANK", "0"))


def arguments(recipe: Recipe, out: Path, steps: int, *, watched: bool) -> TrainingArguments:
    """Trainer's arguments; making them starts the communication between processes.

    Raises:
        ConfigError: fp16 without a GPU, a service's package is not installed, or a schedule hears of no evaluation.
    """
    for service in recipe.report_to:
        if find_spec(service) is None:
            raise ConfigError(f"report_to {service} needs its package", hint=f"pip install {service}")
    every = recipe.evaluation.every
    watched = watched and every is not None
    if recipe.optimizer.schedule == "plateau" and not watched:
        raise ConfigError(
            "optimizer.schedule plateau: the rate drops by evaluations on the way, and there are none",
            hint="set evaluation.every" if every is None else "name evaluation.data, or data with a split validation",
        )
    if world_size() > 1:
        PartialState(cpu=not torch.cuda.is_available())
    precision = choose(recipe.precision)
    return TrainingArguments(
        output_dir=str(out / "state"),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.accumulation,
        max_grad_norm=recipe.optimizer.clip,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=recipe.log_every,
        logging_first_step=True,
        eval_strategy="steps" if watched else "no",
        eval_steps=every if watched else None,
        save_strategy="steps" if recipe.save_every else "no",
        save_steps=recipe.save_every or 500,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=[str(service) for service in recipe.report_to],
        run_name=out.name or recipe.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=True,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        average_tokens_across_devices=False,
    )
