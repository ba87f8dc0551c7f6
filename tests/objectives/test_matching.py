"""Image-text matching: labelled pairs, and pairs chosen from the step itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import KnownRegions, picture, step_of, tiny_network
from torch import Tensor

import mmbert.objectives.itm_hard
from mmbert.data.packing import Example, Label, collate
from mmbert.objectives import itc, itm, itm_hard
from mmbert.objectives.base import LossTerm, StepContext
from mmbert.objectives.itc import Embedded

torch.set_num_threads(1)
RNG = np.random.default_rng(0)
PICTURES = [picture(f"p{i}", 3, RNG) for i in range(5)]
IMAGES = KnownRegions(PICTURES)
HERE = np.zeros(1, dtype=np.int64)


def binary_cross_entropy(logit: float, label: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if label else 1 - probability)


def pair_logit(model: Any, words: list[int], shown: int) -> float:
    """The match logit of one pair, encoded directly."""
    with torch.no_grad():
        batch = collate([Example(np.array(words), image=PICTURES[shown].ref)], IMAGES)
        return float(model.match_logits(model(batch).pooled))


@pytest.mark.parametrize("outputs", [1, 2])
def test_itm_is_the_binary_cross_entropy_of_the_pairs(outputs: int) -> None:
    model = tiny_network(3, match_outputs=outputs)
    pairs = [([2, 5, 3], 0, 1), ([2, 6, 7, 3], 1, 0), ([2, 8, 3], 2, 1), ([2, 9, 3], 3, 0)]
    examples = [
        Example(np.array(w), image=PICTURES[i].ref, labels={"m/itm": Label("itm", "sequence", HERE, np.array([label]))})
        for w, i, label in pairs
    ]
    examples.insert(1, Example(np.array([2, 3])))  # not a pair of this component
    step = step_of(model, examples, IMAGES)
    term = itm.compute(step, step.batch.targets["m/itm"], itm.Options(), "m/itm")
    logits = [pair_logit(model, w, i) for w, i, _ in pairs]
    expected = sum(binary_cross_entropy(x, label) for x, (_, _, label) in zip(logits, pairs, strict=True))
    right = sum((x > 0) == bool(label) for x, (_, _, label) in zip(logits, pairs, strict=True))
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert [x.item() for x in (term.count, *term.metrics["accuracy"])] == [4, right, 4]


WORDS = [[2, 5, 6, 3], [2, 7, 3], [2, 8, 9, 10, 3], [2, 11, 3], [2, 12, 13, 3], [2, 14, 3]]
GROUPS = [100, 100, 200, 300, 400, 500]
SHOWN = [100, 200, 300, 400, 400]


def hard_step(model: Any, texts: list[int] = GROUPS, images: list[int] = SHOWN) -> StepContext:
    def labels(group: int, is_image: bool) -> dict[str, Label]:
        extra = {"is_image": np.array([is_image])}
        return {
            "m/itc": Label("itc", "sequence", HERE, np.array([group]), extra),
            "m/itm_hard": Label("itm_hard", "sequence", HERE, np.array([group])),
        }

    examples = [Example(np.array(WORDS[i]), labels=labels(g, False)) for i, g in enumerate(texts)]
    examples += [Example(np.array([2, 3]), image=PICTURES[i].ref, labels=labels(g, True)) for i, g in enumerate(images)]
    return step_of(model, examples, IMAGES)


def hard(step: StepContext, **options: Any) -> LossTerm:
    itc.compute(step, step.batch.targets["m/itc"], itc.Options(), "m/itc")
    return itm_hard.compute(step, step.batch.targets["m/itm_hard"], itm_hard.Options(**options), "m/itm_hard")


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["visible", "some regions hidden"])
def test_the_second_pass_is_the_pairs_encoded_directly(
    negatives: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_network(4)
    chosen = []
    choose = itm_hard._choose
    monkeypatch.setattr(mmbert.objectives.itm_hard, "_choose", lambda *a: chosen.append(choose(*a)) or chosen[-1])
    torch.manual_seed(0)
    term = hard(hard_step(model), negatives=negatives)
    texts, images, labels = (x.tolist() for x in chosen[0])
    total = weight = right = 0.0
    for text, image, label in zip(texts, images, labels, strict=True):
        logit = pair_logit(model, WORDS[text], image)
        own = 2 * negatives if label else 1  # right pairs weigh as much as the wrong ones they brought
        total += own * binary_cross_entropy(logit, label)
        right += own * ((logit > 0) == bool(label))
        weight += own
    assert term.total.item() == pytest.approx(total, rel=1e-4)
    assert term.count.item() == weight
    assert [x.item() for x in term.metrics["accuracy"]] == pytest.approx([right, weight])


def embedded(texts: Tensor, text_groups: list[int], images: Tensor, image_groups: list[int]) -> Embedded:
    return Embedded(
        torch.arange(len(texts)), texts, torch.tensor(text_groups),
        torch.arange(len(images)), images, torch.tensor(image_groups),
    )  # fmt: skip


def random_embedded(seed: int) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(11, 8, generator=generator), dim=1)
    return embedded(unit[:6], GROUPS, unit[6:], SHOWN)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("negatives", [1, 2])
def test_wrong_pairs_are_never_of_one_group(seed: int, negatives: int) -> None:
    torch.manual_seed(seed)
    texts, images, labels = itm_hard._choose(random_embedded(seed), itm_hard.Options(negatives=negatives))
    for text, image, label in zip(texts.tolist(), images.tolist(), labels.tolist(), strict=True):
        assert (GROUPS[text] == SHOWN[image]) == bool(label)
    right = [(t, i) for t, i, label in zip(texts.tolist(), images.tolist(), labels.tolist(), strict=True) if label]
    assert sorted(right) == [(t, i) for t in range(6) for i in range(5) if GROUPS[t] == SHOWN[i]]
    assert len(labels) == len(right) * (1 + 2 * negatives)


def test_each_right_pair_brings_wrong_images_for_its_text_and_wrong_texts_for_its_image() -> None:
    torch.manual_seed(0)
    texts, images, labels = itm_hard._choose(random_embedded(0), itm_hard.Options(negatives=2))
    k = int(labels.sum())
    assert labels.tolist() == [1.0] * k + [0.0] * 4 * k
    assert texts[k : 3 * k].tolist() == texts[:k].repeat_interleave(2).tolist()
    assert images[3 * k :].tolist() == images[:k].repeat_interleave(2).tolist()


def test_the_number_of_right_pairs_is_limited_and_drawn() -> None:
    drawn = set()
    for seed in range(30):
        torch.manual_seed(seed)
        texts, images, labels = itm_hard._choose(random_embedded(0), itm_hard.Options(pairs=2))
        assert labels.tolist() == [1, 1, 0, 0, 0, 0]
        drawn |= set(zip(texts[:2].tolist(), images[:2].tolist(), strict=True))
    assert len(drawn) == 6


def test_similar_ones_are_chosen_more_often() -> None:
    """In proportion to exp(10 x cosine), the softmax of the similarities."""
    angles = torch.tensor([0.0, 0.3, 0.6, 2.0])
    images = torch.stack([angles.cos(), angles.sin()], 1)
    found = embedded(images[:1], [0], images, [0, 1, 2, 3])
    counts = torch.zeros(4)
    for seed in range(400):
        torch.manual_seed(seed)
        _, chosen, labels = itm_hard._choose(found, itm_hard.Options(negatives=4))
        counts += torch.bincount(chosen[labels == 0][:4], minlength=4)
    odds = (10 * angles.cos()).exp()
    odds[0] = 0
    torch.testing.assert_close(counts / counts.sum(), odds / odds.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("texts", "images", "weight"),
    [([1, 1], [1], 0), ([1, 2], [3], 0), ([1], [1], 0), ([1, 2], [1], 3), ([1], [1, 2], 3)],
    ids=["all right", "none right", "one pair", "one image", "one text"],
)
def test_steps_with_little_choice_work(texts: list[int], images: list[int], weight: float) -> None:
    """A right pair weighs 2; it brings a wrong image or a wrong text where there is one, and else counts nothing."""
    term = hard(hard_step(tiny_network(5), texts, images))
    assert torch.isfinite(term.total)
    assert term.count.item() == weight
    term.total.backward()


def test_a_step_without_images_works() -> None:
    term = hard(hard_step(tiny_network(5), [1, 2], []))
    assert term.total.item() == 0


def test_hard_matching_needs_the_contrast_before_it() -> None:
    step = hard_step(tiny_network(5))
    with pytest.raises(ValueError, match="needs itc in the same component"):
        itm_hard.compute(step, step.batch.targets["m/itm_hard"], itm_hard.Options(), "m/itm_hard")


def test_gradients_reach_the_trunk_through_the_second_pass_and_the_regions() -> None:
    model = tiny_network(6)
    torch.manual_seed(0)
    hard(hard_step(model)).total.backward()
    for name in ("match_head.weight", "trunk.region_embedding.projection.weight", "trunk.embeddings.words.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    assert model.embedding_head.text.weight.grad is None, "choosing is not differentiated"


def test_an_even_share_of_wrong_ones_ignores_similarity() -> None:
    similarity = torch.tensor([[50.0, 0.0, 0.0, 9.0]]).expand(4000, 4)
    positive = torch.tensor([[False, False, False, True]]).expand(4000, 4)
    for even, expected in ((0.0, [1.0, 0.0, 0.0, 0.0]), (0.6, [0.6, 0.2, 0.2, 0.0]), (1.0, [1 / 3, 1 / 3, 1 / 3, 0.0])):
        torch.manual_seed(0)
        drawn = itm_hard._draw(similarity, positive, itm_hard.Options(even=even))
        shares = torch.bincount(drawn.flatten(), minlength=4) / 4000
        assert shares.tolist() == pytest.approx(expected, abs=0.03)
