"""One optimiser step of a converted network against a plain, padded re-computation in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from originals import SMALL, pretraining_shapes, random_state, write_checkpoint
from padded import PaddedBatch, PaddedNetwork, random_batch
from torch import Tensor
from transformers import TrainingArguments

from mmbert.compat.batches import pack_padded
from mmbert.compat.convert import convert
from mmbert.compat.keys import rules_for, their_tensors
from mmbert.model.packed import PackedBatch
from mmbert.training.build import build_model
from mmbert.training.module import TrainingModule
from mmbert.training.recipe import ModelRecipe, OptimizerRecipe
from mmbert.training.trainer import PackedTrainer

OPTIMIZER = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.98), "clip": 0.5, "warmup": 0.0}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "region_dropout": 0.0}


def packed(batch: PaddedBatch) -> PackedBatch:
    made = pack_padded(
        batch.text,
        boxes=batch.boxes,
        sizes=batch.sizes,
        masked=batch.masked,
        region_classes=batch.classes,
        token_labels={"captions/mlm": batch.token_labels},
    )
    made.targets["captions/mvrc"] = made.targets.pop("mvrc")
    return made


def decays(key: str, weight: Tensor) -> bool:
    """Matrices do, but for the word table; single vectors (tables of one row among them) and biases do not."""
    return weight.dim() > 1 and len(weight) > 1 and key != "vlbert.word_embeddings.weight"


def plain_step(state: dict[str, Tensor], batch: PaddedBatch, first_in_sample: bool) -> dict[str, Any]:
    """Loss, gradient norm, gradients and weights after one step of AdamW with clipping."""
    network = PaddedNetwork(state, SMALL.heads)
    mlm, mvrc = network.losses(batch, first_in_sample=first_in_sample)
    loss = mlm + mvrc
    loss.backward()
    weights = {key: value for key, value in network.weights.items() if value.grad is not None}
    gradients = {key: value.grad.clone() for key, value in weights.items()}
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()]))
    for value in weights.values():
        value.grad *= min(1.0, OPTIMIZER["clip"] / float(norm))
    groups = [
        {
            "params": [value for key, value in weights.items() if decays(key, value) is wanted],
            "weight_decay": OPTIMIZER["weight_decay"] if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    torch.optim.AdamW(groups, lr=OPTIMIZER["lr"], betas=OPTIMIZER["betas"]).step()
    after = {key: value.detach() for key, value in network.weights.items()}
    return {"loss": loss, "mlm": mlm, "mvrc": mvrc, "norm": norm, "gradients": gradients, "after": after}


class OneBatch(torch.utils.data.Dataset[PackedBatch]):
    def __init__(self, batch: PackedBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> PackedBatch:
        return self.batch


def our_step(folder: Path, out: Path, batch: PaddedBatch, first_in_sample: bool) -> tuple[dict[str, float], Any]:
    """What our trainer logs of one step, and the model after it."""
    bert = build_model(ModelRecipe(init=str(folder), config=WITHOUT_DROPOUT), {}, seed=0)
    bert.model.train()
    options = {"per_sequence": first_in_sample}
    trainer = PackedTrainer(
        TrainingModule(bert.model, {"captions/mlm": options, "captions/mvrc": options}),
        TrainingArguments(
            output_dir=str(out), max_steps=1, per_device_train_batch_size=1, max_grad_norm=OPTIMIZER["clip"],
            logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            use_cpu=True,
        ),
        optimizer_recipe=OptimizerRecipe(**OPTIMIZER),
        train_dataset=OneBatch(packed(batch)),
    )  # fmt: skip
    trainer.train()
    return next(line for line in trainer.state.log_history if "grad_norm" in line), bert.model


@pytest.mark.parametrize("first_in_sample", [False, True], ids=["over all", "NORM_IN_BATCH_FIRST"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_is_the_plain_one(words: Path, tmp_path: Path, first_in_sample: bool, seed: int) -> None:
    state = random_state(pretraining_shapes(), seed)
    path = write_checkpoint(tmp_path / "m.model", state)
    convert(path, tmp_path / "m", task="pretraining", tokenizer=words, settings={"num_attention_heads": SMALL.heads})
    batch = random_batch(SMALL.vocabulary, SMALL.features, SMALL.classes, seed)
    wanted = plain_step(state, batch, first_in_sample)
    logged, model = our_step(tmp_path / "m", tmp_path / "run", batch, first_in_sample)
    assert logged["loss"] == pytest.approx(float(wanted["loss"].detach()), rel=1e-5)
    assert logged["captions/mlm"] == pytest.approx(float(wanted["mlm"].detach()), abs=2e-5)
    assert logged["captions/mvrc"] == pytest.approx(float(wanted["mvrc"].detach()), abs=2e-5)
    assert float(wanted["norm"]) > 2 * OPTIMIZER["clip"]  # so the step is a clipped one
    assert float(logged["grad_norm"]) == pytest.approx(float(wanted["norm"]), rel=1e-5)

    ours = {k: v for k, v in model.state_dict().items() if not k.startswith(("embedding_head", "feature_head"))}
    after = their_tensors(rules_for(model.config), ours)
    assert after.keys() == wanted["after"].keys()
    rate, clipped = OPTIMIZER["lr"], OPTIMIZER["clip"] / float(wanted["norm"])
    compared = 0
    for key, value in wanted["after"].items():
        # Adam's first step is rate x gradient / (|gradient| + 1e-8): rounding decides it where the gradient is nothing
        # but rounding, as all of a key's bias is (softmax does not see it). There it may be any step up to the rate.
        gradient = wanted["gradients"].get(key, torch.zeros_like(value)) * clipped
        clear = (gradient.abs() > 2e-6) | (gradient == 0)
        if key.endswith("self.key.bias"):
            clear = torch.zeros_like(clear)
        difference = (after[key] - value).abs()
        assert bool((difference[clear] < 2e-3 * rate).all()), key
        assert bool((difference <= 2.01 * rate).all()), key
        compared += int(clear.sum())
        if key in wanted["gradients"] and bool((gradient != 0).any()):
            assert not torch.equal(after[key], state[key]), key
    assert compared > 0.97 * sum(value.numel() for value in after.values())


def test_the_two_ways_of_averaging_differ(words: Path) -> None:
    """On these batches; else the test above would not tell them apart."""
    state = random_state(pretraining_shapes())
    batch = random_batch(SMALL.vocabulary, SMALL.features, SMALL.classes)
    network = PaddedNetwork(state, SMALL.heads)
    both = [network.losses(batch, first_in_sample=first) for first in (False, True)]
    assert all(abs(float((one - other).detach())) > 1e-3 for one, other in zip(*both, strict=True))
