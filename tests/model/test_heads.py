"""Heads against transformers' own and against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KnownRegions, picture, projected, random_examples, tiny_network
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from mmbert.data.packing import Example, collate
from mmbert.errors import ConfigError
from mmbert.model.around import Around, surroundings
from mmbert.model.packed import MASKED_REGION, REGION
from mmbert.model.task_models import read_head

torch.set_num_threads(1)


def states(rows: int = 7, size: int = 16, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(1)) * scale


def test_token_logits_are_those_of_berts_head_on_the_word_table() -> None:
    ours = tiny_network(1)
    theirs = BertOnlyMLMHead(
        BertConfig(vocab_size=60, hidden_size=16, num_attention_heads=2, hidden_act="gelu", layer_norm_eps=1e-12)
    )
    with torch.no_grad():
        predictions, head = theirs.predictions, ours.token_head
        predictions.transform.dense.load_state_dict(head.dense.state_dict())
        predictions.transform.LayerNorm.load_state_dict(head.norm.state_dict())
        predictions.decoder.weight.copy_(ours.trunk.embeddings.words.weight)
        predictions.decoder.bias.copy_(head.bias)
        predictions.bias = predictions.decoder.bias
        torch.testing.assert_close(ours.token_logits(states()), theirs(states()), atol=1e-5, rtol=0)


def test_the_decoder_is_the_word_table_itself() -> None:
    ours = tiny_network(1)
    ours.token_logits(states())[:, 7].sum().backward()
    gradient = ours.trunk.embeddings.words.weight.grad
    assert gradient[7].abs().sum() > 0
    assert gradient[:7].abs().sum() == 0
    assert sum(p.shape == (60, 16) for p in ours.parameters()) == 1


@pytest.mark.parametrize(
    ("method", "name", "outputs"), [("region_logits", "region_head", 5), ("region_features", "feature_head", 6)]
)
def test_region_heads_are_dense_gelu_linear_without_a_norm(method: str, name: str, outputs: int) -> None:
    ours = tiny_network(2)
    head = getattr(ours, name)
    x = states().double().numpy()
    dense, last = ({k: v.double().numpy() for k, v in m.state_dict().items()} for m in (head.dense, head.predictor))
    inner = x @ dense["weight"].T + dense["bias"]
    gelu = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    expected = gelu @ last["weight"].T + last["bias"]
    assert expected.shape == (7, outputs)
    with torch.no_grad():
        np.testing.assert_allclose(getattr(ours, method)(states()).numpy(), expected, atol=1e-5)
    assert not any(isinstance(m, nn.LayerNorm) for m in head.modules())


def test_every_norm_has_an_epsilon_of_1e_12() -> None:
    norms = [m for m in tiny_network().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 3 + 2 * 2 + 1  # input and its two visual ones, two per layer, the masked-token head
    assert {m.eps for m in norms} == {1e-12}


def test_small_states_pass_the_token_heads_norm_as_large_ones_do() -> None:
    """With an epsilon of 1e-5 these would come out a thousand times too small."""
    ours = tiny_network(3)
    with torch.no_grad():
        ours.token_head.dense.bias.zero_()
        inner = F.gelu(ours.token_head.dense(states(scale=1e-4))).double()
        normed = (inner - inner.mean(-1, keepdim=True)) / inner.std(-1, unbiased=False, keepdim=True)
        normed = normed * ours.token_head.norm.weight + ours.token_head.norm.bias
        expected = normed @ ours.trunk.embeddings.words.weight.double().T + ours.token_head.bias
        np.testing.assert_allclose(ours.token_logits(states(scale=1e-4)).numpy(), expected.numpy(), atol=2e-3)


def test_one_match_output_is_the_logit() -> None:
    ours = tiny_network(4, match_outputs=1)
    with torch.no_grad():
        expected = states() @ ours.match_head.weight[0] + ours.match_head.bias[0]
        torch.testing.assert_close(ours.match_logits(states()), expected)


def test_two_match_outputs_give_the_log_odds_of_a_match() -> None:
    ours = tiny_network(5, match_outputs=2)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    with torch.no_grad():
        columns = ours.match_head(states())
        logits = ours.match_logits(states())
        torch.testing.assert_close(torch.sigmoid(logits), columns.softmax(-1)[:, 1])
        two_way = F.cross_entropy(columns, labels)
        torch.testing.assert_close(F.binary_cross_entropy_with_logits(logits, labels.float()), two_way)


def test_embeddings_are_unit_vectors_of_a_projection() -> None:
    head = tiny_network(6).embedding_head
    with torch.no_grad():
        for embed, layer in ((head.embed_text, head.text), (head.embed_image, head.image)):
            expected = np.stack([projected(layer, state) for state in states()])
            np.testing.assert_allclose(embed(states()).numpy(), expected, atol=1e-6)
    assert not torch.equal(head.text.weight, head.image.weight)


def test_the_scale_of_the_contrast_is_at_most_100() -> None:
    head = tiny_network(6).embedding_head
    with torch.no_grad():
        for log_scale, scale in ((0.0, 1.0), (math.log(14.0), 14.0), (9.0, 100.0)):
            head.log_scale.fill_(log_scale)
            assert float(head.scale) == pytest.approx(scale, rel=1e-4)


def test_hubness_is_the_log_mean_of_what_the_bank_says_of_an_image() -> None:
    head = tiny_network(embedding_size=8).embedding_head
    images = F.normalize(torch.randn(5, 8), dim=1)
    assert head.hubness(images).tolist() == [0.0] * 5, "without a bank there is none"
    bank = F.normalize(torch.randn(7, 8), dim=1)
    head.query_bank = bank
    scale = min(100.0, math.exp(float(head.log_scale.detach())))
    for image, found in zip(images.tolist(), head.hubness(images).tolist(), strict=True):
        said = [math.exp(scale * sum(a * b for a, b in zip(image, query, strict=True))) for query in bank.tolist()]
        assert found == pytest.approx(math.log(sum(said) / len(said)), abs=1e-5)


def test_the_product_pooler_multiplies_unit_vectors_of_the_first_and_the_whole_images_state() -> None:
    ours = tiny_network(5, pooling="product")
    pooler = ours.trunk.pooler
    first, image = states(), states().flip(0)
    sides = []
    for linear, read in ((pooler.text, first), (pooler.image, image)):
        weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
        side = read.double().numpy() @ weight.T + bias
        sides.append(side / np.linalg.norm(side, axis=1, keepdims=True))
    with torch.no_grad():
        np.testing.assert_allclose(pooler(first, image).numpy(), sides[0] * sides[1] * 4.0, atol=1e-5)


def test_the_product_is_of_the_first_token_and_the_first_region() -> None:
    ours = tiny_network(5, pooling="product")
    examples, images = random_examples(3, 7)
    batch = collate(examples, images)
    with torch.no_grad():
        output = ours(batch)
        for row, (spec, start) in enumerate(zip(batch.sequences, batch.starts.tolist(), strict=True)):
            after = start + len(spec.token_ids)  # the whole image, or [END] where there is none
            found = output.last_hidden_state[[start, after]]
            torch.testing.assert_close(output.pooled[row], ours.trunk.pooler(found[:1], found[1:])[0])
        some = torch.tensor([1, 0, 4])
        chosen = ours(batch, positions=some)
    torch.testing.assert_close(chosen.pooled, output.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(chosen.last_hidden_state, output.last_hidden_state[some], atol=1e-5, rtol=0)


def test_other_poolings_are_refused() -> None:
    with pytest.raises(Exception, match="first or product"):
        tiny_network(5, pooling="mean")


def test_a_product_head_reads_the_first_state_of_each_sequence_too() -> None:
    """Against the formula: the elementwise product of two unit vectors, times sqrt(H), through a linear layer."""
    model = tiny_network(heads={"grounding": {"kind": "product", "outputs": 1}})
    head: Any = model.heads["grounding"]
    rng = torch.Generator().manual_seed(0)
    states, firsts = (torch.randn(3, 16, generator=rng) for _ in range(2))
    for row in range(3):
        text = head.text.weight @ firsts[row] + head.text.bias
        image = head.image.weight @ states[row] + head.image.bias
        product = text / text.norm() * (image / image.norm()) * 4
        expected = head.predictor.weight @ product + head.predictor.bias
        found = model.head_logits("grounding", states, Around(firsts))[row]
        assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="reads what stands around a state as well"):
        model.head_logits("grounding", states)


def by_hand(head: Any, state: np.ndarray, first: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """A pointing head's logits for one state, written out."""
    weights = {name: tensor.detach().double().numpy() for name, tensor in head.state_dict().items()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    product = unit(layer("points.text", first)) * unit(layer("points.image", regions)) * np.sqrt(len(first))
    meant = layer("points.predictor", product)[:, 0]
    shares = np.exp(meant) / np.exp(meant).sum()
    likely = 1 / (1 + np.exp(-meant))
    pointed = shares @ unit(layer("value", regions)) if len(regions) else np.zeros(len(first))
    counted = np.array([likely.sum(), np.log1p(likely.sum()), likely.max(initial=0)])
    beside = np.concatenate([np.maximum(layer("counted", counted), 0), state])
    return np.exp(weights["log_scale"]) * layer("predictor", pointed) + layer("further", beside)


def test_a_pointing_head_says_what_is_meant_and_how_many() -> None:
    """Against the formula, for sequences with several regions, one and none, and two places in one sequence."""
    pictures = [picture("a", 5, np.random.default_rng(0)), picture("b", 1, np.random.default_rng(1))]
    images = KnownRegions(pictures)
    model = tiny_network(3, heads={"answer": {"kind": "pointing", "outputs": 4}})
    ids = np.array([2, 7, 8, 9, 3])
    batch = collate(
        [Example(ids, image=pictures[0].ref), Example(ids[:4]), Example(ids, image=pictures[1].ref)], images
    )
    starts = batch.starts.tolist()
    places = torch.tensor([starts[0] + 3, starts[0] + 1, starts[1] + 2, starts[2] + 3])
    with torch.no_grad():
        all_states = model(batch).last_hidden_state
        output = read_head(model, "answer", batch, places)
    states = all_states.double().numpy()
    regions = [np.flatnonzero(batch.kinds[a:b].numpy() == REGION) + a for a, b in pairwise(batch.cu_seqlens.tolist())]
    assert [len(found) for found in regions] == [5, 0, 1]
    for row, (place, sequence) in enumerate(zip(places.tolist(), (0, 0, 1, 2), strict=True)):
        expected = by_hand(model.heads["answer"], states[place], states[starts[sequence]], states[regions[sequence]])
        np.testing.assert_allclose(output.logits[row].numpy(), expected, rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(output.last_hidden_state, all_states[places], rtol=1e-4, atol=1e-5)


def test_a_pointing_head_learns_without_any_region() -> None:
    """A batch of texts alone: nothing is pointed at, and no gradient is lost to it."""
    model = tiny_network(3, heads={"answer": {"kind": "pointing", "outputs": 4}})
    batch = collate([Example(np.array([2, 7, 3])), Example(np.array([2, 9, 3]))])
    logits = read_head(model, "answer", batch, batch.starts + 1).logits
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_surroundings_are_the_first_token_and_the_regions_of_the_same_sequence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = collate(*random_examples(seed, int(rng.integers(1, 6))))
    places = torch.from_numpy(rng.integers(0, batch.num_positions, int(rng.integers(0, 7))))
    around = surroundings(batch, places, {"firsts", "regions"})
    assert around is not None and around.regions is not None and around.owners is not None
    firsts, regions, owners = [], [], []
    bounds = batch.cu_seqlens.tolist()
    for number, place in enumerate(places.tolist()):
        start, stop = next((a, b) for a, b in pairwise(bounds) if a <= place < b)
        firsts.append(start)
        inside = [p for p in range(start, stop) if batch.kinds[p] in (REGION, MASKED_REGION)]
        regions += inside
        owners += [number] * len(inside)
    assert around.firsts.tolist() == firsts
    assert around.regions.tolist() == regions
    assert around.owners.tolist() == owners
    assert surroundings(batch, places, ()) is None


@pytest.mark.parametrize(("options", "said"), [({"norm": "no"}, "norm"), ({"exclusive": "off"}, "exclusive")])
def test_a_word_is_neither_true_nor_false(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"head 'answer': {said} is true or false, not"):
        tiny_network(heads={"answer": {"kind": "transform", "outputs": 3, **options}})
