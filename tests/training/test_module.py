"""The step's loss: a weighted sum of means over all labelled places, on however many processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import OBJECTIVES, batch_of, module, run_rank
from tiny import tiny_network

from mmbert.errors import ConfigError
from mmbert.objectives import itm, mlm, mvfr, mvrc
from mmbert.objectives.base import StepContext
from mmbert.training.module import TrainingModule

torch.set_num_threads(1)


def test_the_loss_is_the_weighted_sum_of_means() -> None:
    made, batch = module(), batch_of(0, 1)
    output = made(batch)
    step = StepContext(made.model, batch, made.model(batch))
    expected = 0.0
    for objective, weight in ((mlm, 0.7), (itm, 1.0), (mvfr, 2.0), (mvrc, 1.0)):
        name = "m/" + objective.__name__.rsplit(".", 1)[1]
        target = batch.targets[name]
        term = objective.compute(step, target, objective.Options(), name)
        assert term.count.item() == len(target.positions)
        expected += weight * term.total.item() / len(target.positions)
        total, count = output["terms"][name]
        assert (total.item(), count.item()) == pytest.approx((term.total.item(), term.count.item()))
        assert not total.requires_grad
    assert output["loss"].item() == pytest.approx(expected)
    assert "m/mlm/accuracy" in output["terms"]


def test_objectives_without_labels_in_a_batch_count_nothing_but_keep_the_graph() -> None:
    """On several processes every parameter must be reached, whatever the batch holds."""
    made, batch = module(), batch_of(0)
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


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_global_batch(tmp_path: Path) -> None:
    """However unevenly the labels fall: rank 0 has one word and no pairs, rank 1 nine words and no regions."""
    torch.multiprocessing.start_processes(run_rank, args=(2, str(tmp_path)), nprocs=2, start_method="spawn")
    found: dict[str, Any] = torch.load(tmp_path / "result.pt", weights_only=True)
    made = module()
    loss = made(batch_of(0, 1))["loss"]
    loss.backward()
    expected = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert sum(float(g.abs().sum()) > 0 for g in expected.values()) > 20
    for name, gradient in expected.items():
        other = found["gradients"].get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert len(OBJECTIVES) == 4
