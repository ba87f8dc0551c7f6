"""Image-text contrast, text-text contrast and proxies, each against loops over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import KnownRegions, picture, projected, states_alone, step_of, tiny_network
from torch.nn import functional as F

from mmbert.data.packing import Example, Label
from mmbert.objectives import class_names, itc, proxy, ttc
from mmbert.objectives._known_groups import rows_of
from mmbert.objectives.base import LossTerm, StartOfRun, StepContext

torch.set_num_threads(1)
MODEL = tiny_network(2)
RNG = np.random.default_rng(0)
PICTURES = [picture(f"p{i}", 3, RNG) for i in range(4)]
IMAGES = KnownRegions(PICTURES)


def example(group: int, *, image: int | None = None, words: tuple[int, ...] = (), names: str = "itc") -> Example:
    place = np.zeros(1, dtype=np.int64)
    labels = {
        f"m/{n}": Label(n, "sequence", place, np.array([group]), {"is_image": np.array([image is not None])})
        for n in names.split()
    }
    shown = None if image is None else PICTURES[image].ref
    return Example(np.array([2, *words, 3]), image=shown, labels=labels)


def mixed(names: str = "itc") -> list[Example]:
    """Texts and images in no order: group 10 has two images and two texts, 40 no image, 30 no text."""
    return [
        example(10, words=(5, 6), names=names),
        example(10, image=0, names=names),
        example(20, words=(7,), names=names),
        example(10, words=(8, 9, 10), names=names),
        example(30, image=1, names=names),
        example(40, words=(11,), names=names),
        example(10, image=2, names=names),
        example(20, image=3, names=names),
        Example(np.array([2, 12, 3])),  # another component's text
    ]


def vectors(examples: list[Example]) -> list[tuple[int, bool, np.ndarray]]:
    """Group, kind and unit vector of each labelled example, encoded one by one."""
    found = []
    for e in examples:
        for label in e.labels.values():
            is_image = bool(label.extra["is_image"][0])
            layer = MODEL.embedding_head.image if is_image else MODEL.embedding_head.text
            found.append((int(label.values[0]), is_image, projected(layer, states_alone(MODEL, e, IMAGES)[0])))
            break
    return found


def spread_cross_entropy(logits: list[float], positive: list[bool], smoothing: float = 0.0) -> float | None:
    """Cross entropy to an even spread over the positives; None without any."""
    if not any(positive):
        return None
    total = math.log(sum(math.exp(x) for x in logits))
    wanted = [(1 - smoothing) * p / sum(positive) + smoothing / len(logits) for p in positive]
    return -sum(w * (x - total) for w, x in zip(wanted, logits, strict=True))


def mean_over_rows(
    rows: list[tuple[int, np.ndarray]], columns: list[tuple[int, np.ndarray]], smoothing: float
) -> float:
    scale = MODEL.embedding_head.scale.item()
    losses = [
        spread_cross_entropy([scale * float(v @ w) for _, w in columns], [g == h for h, _ in columns], smoothing)
        for g, v in rows
    ]
    kept = [x for x in losses if x is not None]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_itc_is_the_mean_of_both_directions_with_all_of_a_group_right(smoothing: float) -> None:
    step = step_of(MODEL, mixed(), IMAGES)
    term = itc.compute(step, step.batch.targets["m/itc"], itc.Options(label_smoothing=smoothing), "m/itc")
    found = vectors(mixed())
    texts = [(g, v) for g, is_image, v in found if not is_image]
    images = [(g, v) for g, is_image, v in found if is_image]
    expected = (mean_over_rows(texts, images, smoothing) + mean_over_rows(images, texts, smoothing)) / 2
    assert (term.total / term.count).item() == pytest.approx(expected, rel=1e-5)
    hits = sum(images[int(np.argmax([v @ w for _, w in images]))][0] == g for g, v in texts)
    assert [x.item() for x in term.metrics["text_to_image"]] == [hits, 3]


def test_itc_leaves_the_embeddings_for_others() -> None:
    step = step_of(MODEL, mixed(), IMAGES)
    itc.compute(step, step.batch.targets["m/itc"], itc.Options(), "m/itc")
    left = step.shared["m/itc"]
    assert left.text_sequences.tolist() == [0, 2, 3, 5]
    assert left.image_sequences.tolist() == [1, 4, 6, 7]
    assert left.text_groups.tolist() == [10, 20, 10, 40]
    assert left.image_groups.tolist() == [10, 30, 10, 20]
    np.testing.assert_allclose(
        left.images.detach().numpy(), [v for _, is_image, v in vectors(mixed()) if is_image], atol=1e-5
    )


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_itc_of_one_kind_alone_is_nothing(kind: str) -> None:
    """A batch may hold records without images only."""
    examples = [e for e in mixed() if (e.image is None) == (kind == "texts")]
    step = step_of(MODEL, examples, IMAGES)
    term = itc.compute(step, step.batch.targets["m/itc"], itc.Options(), "m/itc")
    assert term.total.item() == term.count.item() == 0
    term.total.backward()


def test_itc_where_nothing_belongs_together_is_nothing() -> None:
    step = step_of(MODEL, [example(1, words=(5,)), example(2, image=0)], IMAGES)
    term = itc.compute(step, step.batch.targets["m/itc"], itc.Options(), "m/itc")
    assert term.total.item() == term.count.item() == 0


def test_a_model_without_embeddings_cannot_be_contrasted() -> None:
    step = step_of(tiny_network(embedding_size=0), mixed("itc ttc"), IMAGES)
    for module, name in ((itc, "m/itc"), (ttc, "m/ttc")):
        with pytest.raises(ValueError, match="embedding_size"):
            module.compute(step, step.batch.targets[name], module.Options(), name)


def test_ttc_sets_each_text_against_all_others() -> None:
    examples = [example(g, words=w, names="ttc") for g, w in ((1, (5,)), (2, (6,)), (1, (7, 8)), (3, (9,)), (1, (4,)))]
    step = step_of(MODEL, examples)
    term = ttc.compute(step, step.batch.targets["m/ttc"], ttc.Options(), "m/ttc")
    texts = [(g, v) for g, _, v in vectors(examples)]
    scale = MODEL.embedding_head.scale.item()
    expected = 0.0
    for i, (group, vector) in enumerate(texts):
        others = [t for j, t in enumerate(texts) if j != i]
        loss = spread_cross_entropy([scale * float(vector @ w) for _, w in others], [h == group for h, _ in others])
        expected += loss or 0.0
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert term.count.item() == 3


def test_one_text_alone_is_nothing() -> None:
    step = step_of(MODEL, [example(1, words=(5,), names="ttc")])
    term = ttc.compute(step, step.batch.targets["m/ttc"], ttc.Options(), "m/ttc")
    assert term.total.item() == term.count.item() == 0


def proxied(options: proxy.Options) -> tuple[StepContext, LossTerm, proxy.Proxies]:
    proxies = proxy.build_state(torch.tensor([5, 10, 20, 30, 40, 2**62]), 8)
    step = step_of(MODEL, mixed("proxy"), IMAGES)
    step.states_of_objectives = {"proxy": proxies}
    return step, proxy.compute(step, step.batch.targets["m/proxy"], options, "m/proxy"), proxies


def test_proxies_classify_texts_and_images_among_all_groups() -> None:
    options = proxy.Options(scale=9.0, label_smoothing=0.2, image_weight=0.5)
    _, term, proxies = proxied(options)
    table = proxies.table.detach().double().numpy()
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    groups = proxies.groups.tolist()
    losses: dict[bool, list[float]] = {False: [], True: []}
    hits = {False: 0, True: 0}
    for group, is_image, vector in vectors(mixed("proxy")):
        logits = [9.0 * float(vector @ row) for row in table]
        losses[is_image].append(spread_cross_entropy(logits, [g == group for g in groups], 0.2) or 0.0)
        hits[is_image] += groups[int(np.argmax(logits))] == group
    expected = np.mean(losses[False]) + 0.5 * np.mean(losses[True])
    assert (term.total / term.count).item() == pytest.approx(expected, rel=1e-5)
    assert [x.item() for x in term.metrics["text"]] == [hits[False], 4]
    assert [x.item() for x in term.metrics["image"]] == [hits[True], 4]


def test_proxies_learn_and_stay_out_of_the_model() -> None:
    _, term, proxies = proxied(proxy.Options())
    term.total.backward()
    assert proxies.table.grad.abs().sum() > 0
    assert not any("proxies" in name or "table" in name for name, _ in MODEL.named_parameters())


def test_proxies_of_one_kind_alone_count_that_kind() -> None:
    texts = [e for e in mixed("proxy") if e.image is None]
    step = step_of(MODEL, texts)
    step.states_of_objectives = {"proxy": proxy.build_state(torch.tensor([10, 20, 40]), 8)}
    term = proxy.compute(step, step.batch.targets["m/proxy"], proxy.Options(), "m/proxy")
    assert set(term.metrics) == {"text"}
    assert torch.isfinite(term.total)


def group_of(example: Example) -> int:
    (label,) = example.labels.values()
    assert label.values is not None
    return int(label.values[0])


def test_texts_of_groups_without_a_proxy_do_not_count() -> None:
    texts = [e for e in mixed("proxy") if e.image is None and e.labels]
    groups = sorted({group_of(e) for e in texts})
    known = [e for e in texts if group_of(e) != groups[0]]
    proxies = proxy.build_state(torch.tensor(groups[1:]), 8)
    losses = []
    for chosen in (texts, known):
        step = step_of(MODEL, chosen)
        step.states_of_objectives = {"proxy": proxies}
        term = proxy.compute(step, step.batch.targets["m/proxy"], proxy.Options(), "m/proxy")
        losses.append((term.total / term.count).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert rows_of(torch.tensor([groups[0], *groups[1:], 2**62 + 1]), proxies.groups).tolist() == [
        -1,
        *range(len(groups) - 1),
        -1,
    ]
    assert rows_of(torch.tensor([3]), torch.tensor([], dtype=torch.long)).tolist() == [-1]


def known_classes() -> class_names.ClassVectors:
    """Two of the groups of ``mixed`` and one more, over five classes."""
    state = class_names.ClassVectors(8, classes=5)
    known = {10: [0.0, 0.5, 0.5, 0.0, 0.0], 20: [1.0, 0.0, 0.0, 0.0, 0.0], 77: [0.2] * 5}
    means = {10: torch.eye(8)[0], 20: torch.eye(8)[1]}
    state.start(StartOfRun(means, lambda: {group: torch.tensor(row) for group, row in known.items()}))
    return state


def test_class_names_draw_texts_and_images_to_what_is_known_of_their_group() -> None:
    state = known_classes()
    step = step_of(MODEL, mixed("class_names"), IMAGES)
    step.states_of_objectives = {"class_names": state}
    options = class_names.Options(scale=9.0, image_weight=0.5)
    term = class_names.compute(step, step.batch.targets["m/class_names"], options, "m/class_names")
    table = state.table.detach().double().numpy()
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for group, is_image, vector in vectors(mixed("class_names")):
        if group in (10, 20):
            logits = 9.0 * table @ vector
            wanted = state.known[state.groups.tolist().index(group)].numpy()
            losses[is_image].append(-float(wanted @ (logits - np.log(np.exp(logits).sum()))))
    assert losses[False] and losses[True]
    expected = np.mean(losses[False]) + 0.5 * np.mean(losses[True])
    assert (term.total / term.count).item() == pytest.approx(expected, rel=1e-5)
    term.total.backward()
    assert state.table.grad is not None and state.table.grad.abs().sum() > 0
    assert not any(name.startswith(("groups", "known")) for name in state.state_dict()), "asked anew, not saved"


def test_classes_start_at_the_groups_that_show_them() -> None:
    table = F.normalize(known_classes().table.detach(), dim=1)
    middle = F.normalize(torch.eye(8)[1] - torch.eye(8)[:2].mean(0), dim=0)
    assert float(table[0] @ middle) > 0.99, "class 0 is group 20's alone"
    assert float(table[1] @ middle) < -0.99 and float(table[2] @ middle) < -0.99


def test_class_names_of_groups_that_nothing_is_known_of_are_nothing() -> None:
    step = step_of(MODEL, mixed("class_names"), IMAGES)
    state = class_names.ClassVectors(8, classes=5)
    step.states_of_objectives = {"class_names": state}
    term = class_names.compute(step, step.batch.targets["m/class_names"], class_names.Options(), "m/class_names")
    assert term.total.item() == 0 and not term.metrics
