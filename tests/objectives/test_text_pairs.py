"""Contrast of two sides of texts, and pairs of texts chosen from the step and read together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import KnownRegions, picture, projected, states_alone, step_of, tiny_network

from mmbert.data.packing import Example, Label, collate
from mmbert.model.packed import RegionTable, SequenceSpec, pack
from mmbert.objectives import itm_hard, ttc, ttm_hard
from mmbert.objectives.base import LossTerm, StepContext

torch.set_num_threads(1)
HERE = np.zeros(1, dtype=np.int64)
FIRST = [(1, [2, 5, 6, 3]), (2, [2, 7, 3]), (3, [2, 8, 9, 10, 3]), (4, [2, 20, 3])]
SECOND = [(1, [2, 11, 3]), (2, [2, 12, 13, 3]), (3, [2, 14, 3]), (1, [2, 15, 16, 3])]
PICTURES = [picture(f"p{i}", 3, np.random.default_rng(i)) for i in range(4)]
IMAGES = KnownRegions(PICTURES)


def labelled(group: int, words: list[int], second: bool, image: Any = None) -> Example:
    extra = {"second": np.array([second])}
    labels = {f"m/{n}": Label(n, "sequence", HERE, np.array([group]), extra) for n in ("ttc", "ttm_hard")}
    return Example(np.array(words), image=image, labels=labels)


def pairs_step(model: Any, *, seeing: bool = False) -> StepContext:
    refs = [p.ref if seeing else None for p in PICTURES]
    made = [labelled(g, w, False, refs[i]) for i, (g, w) in enumerate(FIRST)]
    made += [labelled(g, w, True, refs[3 - i]) for i, (g, w) in enumerate(SECOND)]
    return step_of(model, made, IMAGES if seeing else None)


def matched(step: StepContext, **options: Any) -> LossTerm:
    ttc.compute(step, step.batch.targets["m/ttc"], ttc.Options(), "m/ttc")
    return ttm_hard.compute(step, step.batch.targets["m/ttm_hard"], ttm_hard.Options(**options), "m/ttm_hard")


@pytest.mark.parametrize("across", [False, True])
def test_each_text_is_set_against_all_others_or_against_the_other_side(across: bool) -> None:
    model = tiny_network(2)
    step = pairs_step(model)
    term = ttc.compute(step, step.batch.targets["m/ttc"], ttc.Options(across=across), "m/ttc")
    rows = [(g, side, Example(np.array(w))) for side, part in enumerate((FIRST, SECOND)) for g, w in part]
    vectors = [projected(model.embedding_head.text, states_alone(model, e)[0]) for _, _, e in rows]
    scale, total, count = model.embedding_head.scale.item(), 0.0, 0
    for i, (group, side, _) in enumerate(rows):
        others = [j for j, (_, s, _) in enumerate(rows) if j != i and (s != side or not across)]
        right = [j for j in others if rows[j][0] == group]
        logits = np.array([scale * vectors[i] @ vectors[j] for j in others])
        logs = dict(zip(others, logits - np.log(np.exp(logits).sum()), strict=True))
        total -= sum(logs[j] for j in right) / max(len(right), 1)
        count += bool(right)
    assert count == 7, "the fourth has no translation"
    assert term.count.item() == count
    assert term.total.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("seeing", [False, True], ids=["texts", "with images"])
@pytest.mark.parametrize("wrong", ["both", "second"])
def test_pairs_are_read_together_and_right_ones_weigh_as_much_as_wrong_ones(
    seeing: bool, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_network(4, pooling="product")
    chosen: list[Any] = []
    choose = itm_hard._choose
    monkeypatch.setattr(itm_hard, "_choose", lambda *a: chosen.append(choose(*a)) or chosen[-1])
    torch.manual_seed(0)
    term = matched(pairs_step(model, seeing=seeing), negatives=2, wrong=wrong)
    ones, twos, labels = (x.tolist() for x in chosen[0])
    bring = 4 if wrong == "both" else 2
    total = weight = 0.0
    for one, two, label in zip(ones, twos, labels, strict=True):
        assert (FIRST[one][0] == SECOND[two][0]) == bool(label)
        image = PICTURES[one].ref if seeing else None
        with torch.no_grad():
            together = collate([Example(np.array(FIRST[one][1] + SECOND[two][1][1:]), image=image)], IMAGES)
            logit = float(model.match_logits(model(together).pooled))
        probability = 1 / (1 + math.exp(-logit))
        own = bring if label else 1
        total -= own * math.log(probability if label else 1 - probability)
        weight += own
    assert labels.count(1.0) == 4, "a sentence may have two translations"
    assert labels.count(0.0) == 4 * bring
    assert weight == 2 * 4 * bring == term.count.item()
    assert term.total.item() == pytest.approx(total, rel=1e-4)


def test_only_second_sides_are_exchanged_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    choose = itm_hard._choose
    monkeypatch.setattr(itm_hard, "_choose", lambda *a: chosen.append(choose(*a)) or chosen[-1])
    matched(pairs_step(tiny_network(4)), wrong="second")
    ones, _, labels = (x.tolist() for x in chosen[0])
    assert ones[4:] == ones[:4]
    assert labels == [1.0] * 4 + [0.0] * 4


def test_the_plan_counts_what_is_computed_and_gradients_reach_the_trunk() -> None:
    model = tiny_network(6)
    step = pairs_step(model)
    for wrong in ("both", "second"):
        options = ttm_hard.Options(wrong=wrong, negatives=3)
        planned = ttm_hard.plan(step.batch, step.batch.targets["m/ttm_hard"], options, "m/ttm_hard", {})
        assert float(planned.counts[0]) == matched(step, wrong=wrong, negatives=3).count.item()
    matched(pairs_step(model)).total.backward()
    assert model.get_parameter("match_head.weight").grad.abs().sum() > 0
    assert model.get_parameter("trunk.embeddings.words.weight").grad.abs().sum() > 0


def test_a_region_table_without_rows_changes_nothing() -> None:
    """What a process makes pairs of when none of them has an image."""
    model = tiny_network(7)
    specs = [SequenceSpec(np.array(words)) for _, words in FIRST]
    empty = RegionTable(boxes=torch.zeros(0, 4), sizes=torch.ones(0, 2))
    with torch.no_grad():
        with_table = model(pack(specs, regions=empty), region_vectors=torch.zeros(0, model.config.visual_size))
        torch.testing.assert_close(with_table.last_hidden_state, model(pack(specs)).last_hidden_state)


def test_sides_are_needed_to_look_across() -> None:
    step = pairs_step(tiny_network(2))
    del step.batch.targets["m/ttc"].extra["second"]
    with pytest.raises(ValueError, match="which side"):
        ttc.compute(step, step.batch.targets["m/ttc"], ttc.Options(across=True), "m/ttc")


def test_pairs_need_the_contrast_before_them() -> None:
    step = pairs_step(tiny_network(5))
    with pytest.raises(ValueError, match="ttm_hard needs ttc in the same component"):
        ttm_hard.compute(step, step.batch.targets["m/ttm_hard"], ttm_hard.Options(), "m/ttm_hard")
