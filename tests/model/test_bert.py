"""Without image and ``[END]`` the trunk is BERT (or RoBERTa), as transformers implements them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import shake, tiny_network
from torch import Tensor, nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import BLANK, SequenceSpec, pack

torch.set_num_threads(1)
TEXTS = [[5, 17, 3, 40], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30, 31, 32, 33], [59, 59]]
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
    "attn_implementation": "eager",
}  # fmt: skip


def same_weights(model: MMBertForPreTraining, theirs: BertModel | RobertaModel) -> dict[str, list[nn.Parameter]]:
    """Copy ``theirs`` into ``model``; returns, for each parameter of ours, the ones of theirs stacked in it."""
    trunk = model.trunk
    embeddings = theirs.embeddings
    pairs: dict[str, list[nn.Module]] = {
        "embeddings.words": [embeddings.word_embeddings],
        "embeddings.positions": [embeddings.position_embeddings],
        "embeddings.segments": [embeddings.token_type_embeddings],
        "embeddings.norm": [embeddings.LayerNorm],
        "pooler.dense": [theirs.pooler.dense],
    }
    for i, layer in enumerate(theirs.encoder.layer):
        own = f"encoder.layers.{i}"
        attention = layer.attention
        pairs |= {
            f"{own}.attention.qkv": [attention.self.query, attention.self.key, attention.self.value],
            f"{own}.attention_output": [attention.output.dense],
            f"{own}.attention_norm": [attention.output.LayerNorm],
            f"{own}.intermediate": [layer.intermediate.dense],
            f"{own}.output": [layer.output.dense],
            f"{own}.output_norm": [layer.output.LayerNorm],
        }
    mapped = {}
    for name, modules in pairs.items():
        for kind in ("weight", "bias"):
            if getattr(modules[0], kind, None) is not None:
                mapped[f"{name}.{kind}"] = [getattr(m, kind) for m in modules]
    with torch.no_grad():
        for name, sources in mapped.items():
            target = trunk.get_parameter(name)
            target[: sum(len(s) for s in sources)] = torch.cat(list(sources))
        trunk.embeddings.text_visual.norm.bias.zero_()  # a zero visual vector leaves the LayerNorm as its bias
    return mapped


def padded(texts: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, texts))
    ids = torch.tensor([t + [padding] * (longest - len(t)) for t in texts])
    return ids, torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in texts])


def packed(texts: list[list[int]], segments: list[list[int]] | None = None) -> list[SequenceSpec]:
    found = segments or [[0] * len(t) for t in texts]
    return [
        SequenceSpec(np.array(t), np.array(s), text_rows=BLANK, end=False) for t, s in zip(texts, found, strict=True)
    ]


def test_states_of_all_layers_pooler_and_gradients_are_berts() -> None:
    theirs = BertModel(BertConfig(**SIZES, type_vocab_size=3, max_position_embeddings=64)).eval()
    shake(theirs, 3)
    ours = tiny_network(4)
    mapped = same_weights(ours, theirs)
    segments = [[i % 2 for i in range(len(t))] for t in TEXTS]
    ids, mask = padded(TEXTS, 0)
    types, _ = padded(segments, 0)

    expected = theirs(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
    found = ours(pack(packed(TEXTS, segments)), output_hidden_states=True)

    real = mask.bool()
    assert len(found.hidden_states) == len(expected.hidden_states) == 3
    for layer, wanted in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(layer, wanted[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled, expected.pooler_output, atol=1e-5, rtol=0)

    weights = torch.randn(found.last_hidden_state.shape, generator=torch.Generator().manual_seed(0))
    (found.last_hidden_state * weights).sum().add(found.pooled.pow(2).sum()).backward()
    (expected.last_hidden_state[real] * weights).sum().add(expected.pooler_output.pow(2).sum()).backward()
    for name, sources in mapped.items():
        gradient = ours.trunk.get_parameter(name).grad
        wanted = torch.cat([s.grad for s in sources])
        assert wanted.abs().max() > 0, name
        torch.testing.assert_close(gradient[: len(wanted)], wanted, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_the_activation_is_the_configured_one(activation: str) -> None:
    theirs = BertModel(BertConfig(**SIZES, type_vocab_size=3, max_position_embeddings=64, hidden_act=activation)).eval()
    shake(theirs, 5)
    ours = tiny_network(6, hidden_act=activation)
    same_weights(ours, theirs)
    ids, mask = padded(TEXTS, 0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).last_hidden_state[mask.bool()]
        torch.testing.assert_close(ours(pack(packed(TEXTS))).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_position_padding_idx_gives_robertas_positions() -> None:
    sizes = SIZES | {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 64}
    theirs = RobertaModel(RobertaConfig(**sizes)).eval()
    shake(theirs, 7)
    ours = tiny_network(8, position_padding_idx=1, pad_token_id=1)
    same_weights(ours, theirs)
    texts = [t for t in TEXTS if 1 not in t]
    ids, mask = padded(texts, 1)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, output_hidden_states=True)
        found = ours(pack(packed(texts)), output_hidden_states=True)
    for layer, wanted in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(layer, wanted[mask.bool()], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled, expected.pooler_output, atol=1e-5, rtol=0)
    without = tiny_network(8, position_padding_idx=-1, pad_token_id=1)
    same_weights(without, theirs)
    with torch.no_grad():
        unlike = without(pack(packed(texts))).last_hidden_state
    assert (unlike - expected.last_hidden_state[mask.bool()]).abs().max() > 0.01
