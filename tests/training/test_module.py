"""The step's loss: a weighted sum of means over all labelled places, on however many processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import BATCHES, INVARIANT, OBJECTIVES, WORLD, batch_of, gradients, module, run_rank, step
from tiny import tiny_network

from mmbert.errors import ConfigError
from mmbert.objectives import itm, mlm, mvfr, mvrc
from mmbert.objectives.base import StepContext
from mmbert.training.module import TrainingModule

torch.set_num_threads(1)


def test_the_loss_is_the_weighted_sum_of_means() -> None:
    made, batch = module(), batch_of((0, 0), (1, 1))
    output = made(batch)
    context = StepContext(made.model, batch, made.model(batch))
    wanted = 0.0
    for objective, weight in ((mlm, 0.7), (itm, 1.0), (mvfr, 2.0), (mvrc, 1.0)):
        name = "m/" + objective.__name__.rsplit(".", 1)[1]
        target = batch.targets[name]
        term = objective.compute(context, target, objective.Options(), name)
        assert term.count.item() == len(target.positions)
        wanted += weight * term.total.item() / len(target.positions)
        total, count = output["terms"][name]
        assert (total.item(), count.item()) == pytest.approx((term.total.item(), term.count.item()))
        assert not total.requires_grad
    others = [n for n in OBJECTIVES if n not in ("m/mlm", "m/itm", "m/mvfr", "m/mvrc")]
    for name in others:
        total, count = output["terms"][name]
        wanted += OBJECTIVES[name].get("weight", 1.0) * float(total / count)
    assert output["loss"].item() == pytest.approx(wanted, rel=1e-5)
    assert "m/mlm/accuracy" in output["terms"]


def test_objectives_without_labels_in_a_batch_count_nothing_but_keep_the_graph() -> None:
    """On several processes every parameter must be reached, whatever the batch holds."""
    made, batch = module(), batch_of((0, 2))
    assert "m/itm" not in batch.targets
    output = made(batch)
    assert [x.item() for x in output["terms"]["m/itm"]] == [0, 0]
    batch.targets.clear()
    empty = made(batch)["loss"]
    assert empty.item() == 0
    empty.backward()


def test_unknown_objectives_and_options_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mlm'"):
        TrainingModule(tiny_network(), {"m/mml": {}})
    with pytest.raises(ConfigError, match=r"objective m/mlm: unknown key 'wieght'.*did you mean 'weight'"):
        TrainingModule(tiny_network(), {"m/mlm": {"wieght": 1}})
    with pytest.raises(ConfigError, match="weight"):
        TrainingModule(tiny_network(), {"m/mlm": {"weight": "much"}})


def test_components_share_the_table_of_proxies() -> None:
    groups = torch.tensor([1, 2, 3])
    made = TrainingModule(tiny_network(), {"a/proxy": {}, "b/proxy": {"scale": 8.0}}, groups)
    assert list(made.states) == ["proxy"]
    assert made.states["proxy"].table.shape == (3, 8)
    assert any("states.proxy" in n for n, _ in made.named_parameters())


def expected(objectives: dict[str, dict[str, Any]], batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    made = module(objectives)
    loss = step(made, batches, made)
    return loss, gradients(made)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert sum(float(g.abs().sum()) > 0 for g in wanted.values()) > 20
    for name, gradient in wanted.items():
        other = found.get(name, torch.zeros_like(gradient))
        scale = float(gradient.abs().max()) + 1e-30
        assert float((other - gradient).abs().max()) <= 1e-6 * scale, name


def test_accumulated_batches_have_the_gradient_of_one_batch() -> None:
    """However unevenly the labels fall; contrast, whose others are those of its batch, is left out."""
    parts = [(rank, number) for number in range(BATCHES) for rank in range(WORLD)]
    loss, wanted = expected(INVARIANT, [batch_of(*parts)])
    cut_loss, found = expected(INVARIANT, [batch_of(part) for part in parts])
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    assert_same(found, wanted)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(run_rank, args=(WORLD, str(folder)), nprocs=WORLD, start_method="spawn")
    found: dict[str, Any] = torch.load(folder / "result.pt", weights_only=True)
    return found


@pytest.mark.slow
def test_processes_have_the_gradient_of_the_global_batch(results: dict[str, Any]) -> None:
    """All objectives, an image-text and a text part, one and three batches per step, DDP and FSDP2.

    Under FSDP2 also where the layers, gathered once more, are computed again in the backward pass.
    """
    for count in (1, BATCHES):
        whole = [batch_of(*((rank, number) for rank in range(WORLD))) for number in range(count)]
        loss, wanted = expected(OBJECTIVES, whole)
        for kind in ("ddp", "fsdp", "fsdp again"):
            found = results[f"{kind}{count}"]
            assert found["loss"].item() == pytest.approx(loss, rel=1e-6), (kind, count)
            assert_same(found["gradients"], wanted)
            assert bool(found["again"]) is ("again" in kind)


@pytest.mark.slow
def test_what_is_computed_again_over_shards_drops_out_the_same(results: dict[str, Any]) -> None:
    once, again, without = (results[f"fsdp{kind}1"] for kind in (" dropped", " dropped again", ""))
    assert again["again"]
    assert torch.equal(again["loss"], once["loss"])
    assert not torch.equal(without["loss"], once["loss"])
    assert_same(again["gradients"], once["gradients"])
