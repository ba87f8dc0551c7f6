"""The part of a recipe that says how weights change: optimiser, schedule, adapters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a recipe; keys that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class LoraRecipe(Section):
    """Low-rank adapters in a frozen trunk (Hu et al., 2022), by the library peft; merged where a model is saved.

    Attributes:
        rank, alpha, dropout: of the adapters; what they add is scaled by alpha / rank.
        modules: names of the linear layers that get one, as they end (``qkv``, ``attention_output``, ``intermediate``,
            ``output``, ``projection``; not those of the vision encoder), or patterns of whole names
            (``trunk.vision.*.qkv``). Layers that are frozen get none.
        train: further parameters that are trained, by pattern.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    modules: list[str] = Field(default_factory=lambda: ["qkv", "attention_output"], min_length=1)
    train: list[str] = Field(default_factory=lambda: ["*head*"])


class OptimizerRecipe(Section):
    """The optimiser, with a warm-up and a decay.

    Attributes:
        name: ``adamw``, ``adam``, ``sgd``, ``adafactor``, ``muon`` (matrices of the encoder's layers; the rest by AdamW
            at the same rate) or ``adamw8bit`` (library bitsandbytes, on a GPU).
        lr: peak rate of the trunk and heads (effective, not per sample).
        lr_per_sample: instead of ``lr``: it is this times the records of a step (of all components, accumulated
            batches and processes; each component then says its ``records``). VL-BERT's ``TRAIN.LR``.
        vision_lr: peak rate of the vision encoder; None takes ``lr``, 0 freezes it.
        table_lr: peak rate of the word table and of tables that objectives own; None takes ``lr`` (for the word table
            with ``layer_decay`` the embeddings' rate).
        weight_decay: not applied to biases, norms and single vectors.
        betas: of the Adams.
        momentum, nesterov: of SGD (and the momentum of Muon).
        layer_decay: the rate of each encoder layer is this times that of the layer above it; embeddings come last,
            heads and what objectives own keep the full rate (Clark et al., 2020, ELECTRA).
        schedule: after the warm-up. ``linear`` and ``triangle`` (VL-BERT's name for it) fall to zero, ``cosine`` too;
            ``multistep`` drops at the milestones, ``plateau`` when evaluations have not got better for a while.
        milestones: of ``multistep``, as shares of all steps.
        factor: of a drop.
        patience: of ``plateau``: evaluations without a better result that are put up with.
        warmup: share of all steps.
        warmup_steps: instead of ``warmup``, the number of steps.
        clip: largest gradient norm; 0 turns clipping off.
        ema: decay of an exponential moving average of the weights that is evaluated and saved; 0 turns it off.
        frozen: patterns of parameter names that are not trained (``trunk.embeddings.*``).
        lora: adapters; the rest of the trunk is frozen.
    """

    name: Literal["adamw", "adam", "sgd", "adafactor", "muon", "adamw8bit"] = "adamw"
    lr: float = Field(default=5e-4, gt=0)
    lr_per_sample: float | None = Field(default=None, gt=0)
    vision_lr: float | None = Field(default=None, ge=0)
    table_lr: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    schedule: Literal["cosine", "linear", "triangle", "constant", "multistep", "plateau"] = "cosine"
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=list)
    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=2, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    warmup_steps: int | None = Field(default=None, ge=0)
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    frozen: list[str] = Field(default_factory=list)
    lora: LoraRecipe | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("schedule multistep and milestones belong together")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum")
        return self
