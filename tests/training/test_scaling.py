"""The page about scaling shows what its tool computes, and the tool counts what is there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import tiny_network
from torch.utils.flop_counter import FlopCounterMode

from mmbert.model import attention

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "tools" / "scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_tools_table(tool: ModuleType) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    shown = page.partition("<!-- table -->")[2].partition("<!-- end -->")[0].strip()
    assert shown == tool.table(tool.Work(), tool.Hardware())


def test_one_gpu_sends_nothing_and_more_never_help_each_other(tool: ModuleType) -> None:
    net, work = tool.Network(int(110e6), int(7e6), 12, 768, 12), tool.Work()
    for sharded in (False, True):
        shares = [tool.efficiency(net, work, gpus, sharded, tool.Hardware())[1] for gpus in tool.GPUS]
        assert shares[0] == 1.0
        assert shares == sorted(shares, reverse=True)
        assert tool.gradient_bytes(net, 1, sharded) == 0
    assert tool.gradient_bytes(net, 2, False) == 4 * net.parameters
    assert tool.memory(net, work, 64, True) < tool.memory(net, work, 64, False)


def test_operations_are_those_that_pytorch_counts(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of one layer's step on a batch of equal lengths, counted while it runs, but for what is made again."""
    monkeypatch.setattr(attention, "weights_made_again", lambda qkv: False)
    model = tiny_network(hidden_size=64, intermediate_size=128, num_hidden_layers=1).train()
    layer = sum(p.numel() for p in model.trunk.encoder.layers[0].parameters() if p.dim() > 1)
    hidden = torch.randn(10 * 8, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        bounds = torch.arange(0, 88, 8, dtype=torch.int32)
        model.trunk.encoder(hidden, [8] * 10, bounds).sum().backward()
    net = tool.Network(0, layer, 1, 64, 2)
    expected = tool.operations(net, tool.Work(positions=80, length=8, labels=0.0))
    assert counter.get_total_flops() == pytest.approx(expected)


def test_a_step_is_measured_against_the_matrix_product_of_the_same_run(tool: ModuleType) -> None:
    gemm, step, share = tool.measure_step(layers=1, positions=32, length=8, repeats=1)
    layer = tool.network("base").layer
    needed = tool.operations(tool.Network(0, layer, 1, 768, 12), tool.Work(positions=32, length=8, labels=0.0))
    for precision in ("fp32", "bf16"):
        assert share[precision] * gemm[precision] * step[precision] == pytest.approx(needed)
    found = tool.Constants(1, 32, 8, 1, gemm, step, share, 4 * 10**6, 2e9)
    lines = found.lines()
    assert lines[-2] == "all-reduce between two processes (gloo): 2.00 GB/s"
    assert "--fast 2.00" in lines[-1]


@pytest.mark.slow
def test_an_all_reduce_is_measured(tool: ModuleType) -> None:
    assert 1e5 < tool.measure_all_reduce(count=10_000, rounds=5) < 1e12


def test_hardware_that_cannot_be_is_told(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--peak", "0"])
    with pytest.raises(SystemExit):
        tool.main()
    assert "--peak has to be more than 0" in capsys.readouterr().err
