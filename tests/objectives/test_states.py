"""An objective gets the states it asks for, or an error: never those of another position."""

from __future__ import annotations

import importlib

import pytest
import torch
from tiny import tiny_network

from mmbert.model.packed import SequenceSpec, pack
from mmbert.objectives.base import StepContext
from mmbert.plugins import names

torch.set_num_threads(1)
MODEL = tiny_network()
BATCH = pack([SequenceSpec(torch.arange(1, 6).numpy()), SequenceSpec(torch.arange(7, 10).numpy())])


def test_states_are_found_among_those_computed() -> None:
    chosen = torch.tensor([0, 3, 6, 8])
    step = StepContext(MODEL, BATCH, MODEL(BATCH, positions=chosen), chosen)
    whole = StepContext(MODEL, BATCH, MODEL(BATCH))
    for asked in ([8, 0, 3, 3], [], [6]):
        positions = torch.tensor(asked, dtype=torch.long)
        torch.testing.assert_close(step.states(positions), whole.states(positions), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        step.first_states(torch.tensor([1, 0])), whole.first_states(torch.tensor([1, 0])), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("position", [1, 7, 9])
def test_a_state_that_was_not_computed_is_an_error(position: int) -> None:
    chosen = torch.tensor([0, 3, 6, 8])
    step = StepContext(MODEL, BATCH, MODEL(BATCH, positions=chosen), chosen)
    with pytest.raises(ValueError, match="READS"):
        step.states(torch.tensor([3, position]))


@pytest.mark.parametrize("name", names("mmbert.objectives"))
def test_every_objective_says_what_it_reads(name: str) -> None:
    module = importlib.import_module(f"mmbert.objectives.{name}")
    assert callable(getattr(module, "reads", None)) or module.READS in ("positions", "sequences", "regions")
