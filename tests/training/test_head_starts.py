"""Where a pointing head starts: as a grounding or the match head; its answers as the vectors of their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from starts import start
from tiny import shake

from mmbert import MMBert
from mmbert.errors import ConfigError
from mmbert.training.build import build_model
from mmbert.training.initialisation import InitReport
from mmbert.training.recipe import load_recipe

torch.set_num_threads(1)
ANSWERS = ["dog", "yes", "alarm clock"]


@pytest.fixture(scope="module")
def grounding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that grounds expressions: the starter's trunk, its head shaken."""
    bert = build_model(load_recipe("grounding").model, {}, 1)
    shake(bert.model.heads["grounding"], 3)
    folder = tmp_path_factory.mktemp("grounding") / "model"
    bert.save_pretrained(folder)
    return folder


def config(**head: Any) -> dict[str, Any]:
    """A network for questions alone, with such a head."""
    recipe = load_recipe("question-answering").model.config
    options = {"kind": "pointing", "outputs": len(ANSWERS), "labels": ANSWERS, **head}
    return {**recipe, "heads": {"answer": options}}


def test_it_points_as_a_model_that_grounds_expressions(grounding: Path) -> None:
    report = InitReport()
    init = {"model": ["starter", str(grounding)], "heads": {"answer": {"points": "grounding", "vectors": True}}}
    head: Any = start(init, report, config=config()).model.heads["answer"]
    theirs = MMBert.from_pretrained(grounding, device="cpu").model.heads["grounding"].state_dict()
    ours = head.points.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "heads.grounding.predictor.weight" in report.used[str(grounding)]
    assert not any(name.startswith("heads.answer.points") for name in report.fresh)


def test_a_region_that_looks_like_an_answer_is_that_answer(grounding: Path) -> None:
    """Outputs are the texts' vectors less their mean, as the starter has them; regions are seen as images."""
    init = {"model": "starter", "heads": {"answer": {"points": "match", "vectors": True}}}
    report = InitReport()
    head: Any = start(init, report, config=config()).model.heads["answer"]
    starter = MMBert.from_pretrained("starter", device="cpu")
    vectors = torch.as_tensor(starter.encode_text(ANSWERS))
    torch.testing.assert_close(head.predictor.weight.detach(), vectors - vectors.mean(0), rtol=0, atol=1e-4)
    assert torch.equal(head.value.weight, starter.model.embedding_head.image.weight)
    assert torch.equal(head.points.text.weight, starter.model.trunk.pooler.text.weight)
    assert torch.equal(head.points.predictor.weight, starter.model.match_head.weight)
    assert {"heads.answer.further.weight", "heads.answer.predictor.bias"} <= set(report.fresh)


@pytest.mark.parametrize(
    ("given", "head", "message"),
    [
        ({"points": "grounding"}, {}, r"no part has heads\.grounding\.text\.weight"),
        ({"points": "match"}, {"kind": "linear"}, "no part that points at regions"),
        ({"vectors": True}, {"kind": "linear"}, "no part that says what a region is"),
        ({"vectors": True}, {"labels": []}, "no labels to start from"),
        ({"vectors": True, "words": True}, {}, "words and vectors both say where the output starts"),
    ],
)
def test_what_cannot_start_so_is_named(given: dict[str, Any], head: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        start({"model": "starter", "heads": {"answer": given}}, config=config(**head))
