"""What saves memory or time computes the same; what is shown of a run; profiling."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from ranks import batch_of, drop_out, gradients, module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import KnownRegions, picture, tiny_network
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmbert.cli.main import run
from mmbert.data.packing import Example, collate
from mmbert.errors import ConfigError
from mmbert.model.recompute import checkpoint_layers, recomputing
from mmbert.training.module import TrainingModule
from mmbert.training.precision import arithmetic, choose
from mmbert.training.profiling import KINDS, convolution_backward_flop, kind_of, profile_step
from mmbert.training.recipe import Recipe
from mmbert.training.run import train
from mmbert.training.setup import arguments, naming_services

torch.set_num_threads(1)
MakeRecipe = Callable[..., Recipe]


def test_activation_checkpointing_changes_nothing_not_even_dropout() -> None:
    found = []
    for less_memory in (False, True):
        made = module()
        drop_out(made)
        if less_memory:
            checkpoint_layers(made.model)
        made.train()
        torch.manual_seed(1)
        loss = made(batch_of((0, 0), (1, 1)))["loss"]
        loss.backward()
        found.append((loss, gradients(made)))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("decoder_layers", "calls"), [(0, 4), (2, 4)])
def test_activation_checkpointing_of_what_writes_changes_nothing_either(decoder_layers: int, calls: int) -> None:
    """Of the trunk that writes, each of two layers is run on the sequences and on the text."""
    rng, image = np.random.default_rng(1), picture("p", 3, np.random.default_rng(0))
    examples = [
        Example(np.array([2, 5, 3]), image=image.ref, written=rng.integers(3, 60, n), labels={}) for n in (2, 5, 5, 3)
    ]
    batch = collate(examples, KnownRegions([image]))
    found = []
    for less_memory in (False, True):
        model = tiny_network(
            3, num_decoder_layers=decoder_layers, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3
        )
        model = model.double().train()
        again = Mock(wraps=checkpoint)
        if less_memory:
            checkpoint_layers(model)
            for stack in (model.trunk.encoder, model.decoder):
                if stack is not None:
                    stack._gradient_checkpointing_func = partial(again, use_reentrant=False)
        torch.manual_seed(1)
        with recomputing():
            loss = model(batch).last_hidden_state.pow(3).sum()
        loss.backward()
        assert again.call_count == (calls if less_memory else 0)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dropping", [False, True])
def test_compiled_layers_compute_the_same_with_few_programs_for_batches_of_any_size(dropping: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    plain, compiled = module(), module()
    if dropping:
        for made in (plain, compiled):
            drop_out(made)
            made.train()
    compiled.model.trunk.encoder.compile_layers(backend=counter)
    for parts in (((0, 0),), ((0, 1),), ((0, 0), (1, 1)), ((1, 0), (1, 2)), ((0, 2),)):
        losses = []
        for made in (plain, compiled):
            torch.manual_seed(1)
            losses.append(made(batch_of(*parts))["loss"])
        losses[1].backward()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-9)
    assert 1 <= counter.frame_count <= (12 if dropping else 4)  # a program ends where something is dropped


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="fp16 needs a CUDA GPU"):
        choose("fp16")
    assert [choose(name) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def settings_of_gpus() -> tuple[str, bool, bool]:
    return (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def test_how_gpus_compute_is_as_before_when_a_run_ends_however_it_ends() -> None:
    before = settings_of_gpus()
    with arithmetic():
        assert settings_of_gpus() == before
    inside = []
    with contextlib.suppress(ZeroDivisionError), arithmetic(tf32=True, deterministic=True):
        inside.append(settings_of_gpus())
        raise ZeroDivisionError
    assert inside == [("high", True, True)]
    assert settings_of_gpus() == before


def test_a_run_and_a_profile_compute_as_their_recipe_says(
    recipe_of: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = TrainingModule.forward

    def watched(self: TrainingModule, *args: Any, **kwargs: Any) -> dict[str, Any]:
        seen.append(settings_of_gpus())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(TrainingModule, "forward", watched)
    before = settings_of_gpus()
    recipe = recipe_of(steps=1, tf32=True, deterministic=True)
    train(recipe, tmp_path / "out")
    ran = len(seen)
    profile_step(recipe, 1)
    assert 0 < ran < len(seen)
    assert set(seen) == {("high", True, True)}
    assert settings_of_gpus() == before


def test_a_service_that_is_not_installed_is_told(
    recipe_of: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbert.training.setup.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(recipe_of(report_to=["wandb"]), tmp_path / "out")


def test_what_a_service_complains_about_is_told_as_its_own(recipe_of: MakeRecipe) -> None:
    complaint = type("UsageError", (Exception,), {"__module__": "wandb.errors"})
    recipe = recipe_of(report_to=["wandb"])
    with pytest.raises(ConfigError, match=r"report_to wandb: No key.*report_to=\[\]"), naming_services(recipe):
        raise complaint("No key")
    with pytest.raises(complaint), naming_services(recipe_of()):
        raise complaint("No key")


def test_a_run_is_called_by_its_folder_in_services(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    assert arguments(recipe_of(), tmp_path / "first", 3, watched=False).run_name == "first"


def test_curves_are_shown_and_taken_back(recipe_of: MakeRecipe, photos: Path, tmp_path: Path) -> None:
    recipe = recipe_of(steps=2, activation_checkpointing=True, evaluation={"data": str(photos), "every": 1})
    train(recipe, tmp_path / "out")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    curves = set(events.Tags()["scalars"])
    assert {
        "train/loss", "train/grad_norm", "train/learning_rate", "main/itc", "masked/mlm", "masked/mlm/accuracy",
        "rate/rest", "rate/table", "speed/positions_per_second", "speed/padding_saved", "speed/memory_gib", "eval/R_1",
    } <= curves  # fmt: skip
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert 0 < events.Scalars("speed/padding_saved")[0].value < 1
    assert [event.step for event in events.Tensors("examples/table/text_summary")] == [1, 2]
    assert [event.step for event in events.Images("examples/text_to_image")] == [1, 2]


def test_a_step_is_profiled(recipe_of: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_of().model_dump(mode="json")))
    assert run(["profile", str(path), "--steps", "2", "--json", "accumulation=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["phases"]) == {"data", "trunk", "losses", "backward", "optimiser"}
    assert 0.5 < sum(found["phases"].values()) / found["seconds"] <= 1, "the parts of one and the same step"
    assert sum(found["operators"].values()) == pytest.approx(1)
    assert found["operators"]["matrix products"] > 0
    assert 0 < found["share_of_peak"] < 1
    assert found["flop"] > 2 * found["positions"] * 64 * 48
    assert list(tmp_path.iterdir()) == [path], "nothing is written"
    assert run(["profile", str(path), "--steps", "1"]) == 0
    assert "machine's peak" in capsys.readouterr().out


def test_operators_are_told_apart() -> None:
    names = {
        "aten::addmm": "matrix products", "aten::bmm": "attention", "aten::_softmax": "attention",
        "aten::gelu": "activations", "aten::_log_softmax": "losses", "aten::_fused_adamw_": "optimiser",
        "aten::index_select": "rows in and out", "aten::native_layer_norm": "norms", "aten::mul": "everything else",
        "_DroppedBackward": "dropout", "aten::mkldnn_convolution": "convolutions", "aten::_foreach_lerp_": "optimiser",
    }  # fmt: skip
    assert {name: kind_of(name) for name in names} == names


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("values_too", [True, False])
def test_operations_of_grouped_convolutions_are_counted_once(groups: int, transposed: bool, values_too: bool) -> None:
    """Each of the two gradients takes what the convolution takes: 2 for each output and weight that meet."""
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    layer, values = kind(8, 8, 3, padding=1, groups=groups), torch.randn(2, 8, 6, 6, requires_grad=values_too)
    total = layer(values).sum()
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_flop}
    )
    with counter:
        total.backward()
    forward = 2 * (2 * 8 * 6 * 6) * (8 // groups * 3 * 3)
    assert counter.get_total_flops() == forward * (1 + values_too)


def test_operators_of_our_own_are_known_by_the_names_they_have() -> None:
    """A class that gets another name would be counted with everything else."""
    known = {name for names in KINDS.values() for name in names if name[:1] == "_" and name[1:2].isupper()}
    assert len(known) == 5
    assert known <= {function.__name__ for function in torch.autograd.Function.__subclasses__()}
