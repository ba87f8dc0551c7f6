"""Written text: causal, packed or cached, over the trunk itself or a decoder; and transformers' generate on it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import KnownRegions, random_examples, shake, tiny_config, tiny_network
from torch import Tensor
from torch.nn import functional as F

from mmbert.data.packing import Example, collate
from mmbert.model.conditional_generation import MMBertForConditionalGeneration
from mmbert.model.linear import PackedWeights
from mmbert.model.modeling import MMBertForPreTraining
from mmbert.model.packed import PackedBatch

torch.set_num_threads(1)
WAYS: dict[str, dict[str, Any]] = {
    "the trunk writes": {},
    "a decoder writes": {"num_decoder_layers": 2},
    "a decoder with its own tables": {"num_decoder_layers": 2, "decoder_own_embeddings": True},
    "without seeing regions": {"num_decoder_layers": 1, "ignore_regions": True},
}
PAD, END, START = 0, 1, 2


@pytest.fixture(params=WAYS, ids=list(WAYS))
def model(request: pytest.FixtureRequest) -> MMBertForConditionalGeneration:
    return MMBertForConditionalGeneration.sharing(tiny_network(3, **WAYS[request.param]))


def written_examples(seed: int, count: int, length: int | None = None) -> tuple[list[Example], KnownRegions]:
    examples, images = random_examples(seed, count)
    rng = np.random.default_rng(seed)
    made = [
        replace(
            e, written=rng.integers(3, 60, length or int(rng.integers(1, 7))), masked=None, region_numbers=None, ties=0
        )
        for e in examples
    ]
    return made, images


def logits_of(model: MMBertForConditionalGeneration, examples: list[Example], images: KnownRegions) -> list[Tensor]:
    """[w, K] of each example."""
    batch = collate(examples, images)
    with torch.no_grad():
        return list(model(batch).logits.split([len(e.written) for e in examples]))  # type: ignore[arg-type]


def largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_packed_is_one_by_one(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(0, 12)
    together = logits_of(model, examples, images)
    for example, found in zip(examples, together, strict=True):
        assert largest(found, logits_of(model, [example], images)[0]) < 2e-5


def test_a_later_token_changes_nothing_before_it(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(1, 6, length=5)
    before = logits_of(model, examples, images)
    changed = [replace(e, written=np.r_[e.written[:3], (e.written[3:] + 7) % 57 + 3]) for e in examples]  # type: ignore[index]
    for old, new in zip(before, logits_of(model, changed, images), strict=True):
        assert torch.equal(old[:3], new[:3])
        assert largest(old[3:], new[3:]) > 1e-3


def test_sequences_do_not_see_what_continues_them(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(2, 6)
    batch, alone = collate(examples, images), collate([replace(e, written=None) for e in examples], images)
    with torch.no_grad():
        states = MMBertForPreTraining.forward(model, batch).last_hidden_state
        plain = MMBertForPreTraining.forward(model, alone).last_hidden_state
    assert largest(states[: batch.num_positions], plain) < 2e-6


def test_written_text_sees_all_of_its_sequence(model: MMBertForConditionalGeneration) -> None:
    example = Example(np.array([5, 6, 7]), written=np.array([8, 9]))
    first = logits_of(model, [example], KnownRegions([]))[0]
    for place in range(3):
        ids = example.token_ids.copy()
        ids[place] = 40
        assert largest(first[0], logits_of(model, [replace(example, token_ids=ids)], KnownRegions([]))[0][0]) > 1e-4


def test_some_sequences_may_go_without(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(4, 7)
    mixed = [replace(e, written=None) if i % 3 == 1 else e for i, e in enumerate(examples)]
    batch = collate(mixed, images)
    assert batch.continued == [0, 2, 3, 5, 6]
    with torch.no_grad():
        found = model(batch).logits
    expected = torch.cat(logits_of(model, [e for e in mixed if e.written is not None], images))
    assert largest(found, expected) < 2e-5


def test_chosen_positions_are_those_of_the_whole(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(5, 5)
    batch = collate(examples, images)
    count = batch.num_positions + batch.continuation.num_positions  # type: ignore[union-attr]
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 2]
    with torch.no_grad():
        whole = MMBertForPreTraining.forward(model, batch).last_hidden_state
        some = model(batch, positions=chosen).last_hidden_state
    assert largest(some, whole[chosen]) < 2e-5


# -- against a plain computation ---------------------------------------------------------------------------------------


def attend(query: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """[n, H] by PyTorch's own attention; ``mask`` [n, k] True where seen."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query, keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1).flatten(1)


def plain_prefix(model: MMBertForConditionalGeneration, example: Example) -> Tensor:
    """The trunk on ``sequence + written`` as one stream with a dense mask."""
    batch = collate([example])
    embeddings, written = model.trunk.embeddings, batch.continuation
    hidden = torch.cat([embeddings(batch, None), embeddings(written, None)])  # type: ignore[arg-type]
    p, n = batch.num_positions, len(hidden)
    mask = torch.ones(n, n).tril().bool()
    mask[:p, :p] = True
    for layer in model.trunk.encoder.layers:
        mixed = attend(*layer.attention.qkv(hidden).chunk(3, -1), layer.attention.heads, mask)  # type: ignore
        hidden = layer.attention_norm(hidden + layer.attention_output(mixed))  # type: ignore[operator]
        hidden = layer.output_norm(hidden + layer.output(F.gelu(layer.intermediate(hidden))))  # type: ignore[operator]
    return hidden[p:]


def plain_decoder(model: MMBertForConditionalGeneration, example: Example) -> Tensor:
    """A decoder with shared tables on the trunk's states."""
    batch = collate([example])
    states = model.trunk(replace(batch, continuation=None)).last_hidden_state
    hidden = model.trunk.embeddings(batch.continuation, None)  # type: ignore[arg-type]
    mask = torch.ones(len(hidden), len(hidden)).tril().bool()
    for layer in model.decoder.layers:  # type: ignore[union-attr]
        mixed = attend(*layer.qkv(hidden).chunk(3, -1), layer.heads, mask)  # type: ignore
        hidden = layer.attention_norm(hidden + layer.attention_output(mixed))  # type: ignore[operator]
        mixed = attend(layer.cross_query(hidden), *layer.cross_keys_values(states).chunk(2, -1), layer.heads)  # type: ignore
        hidden = layer.cross_norm(hidden + layer.cross_output(mixed))  # type: ignore[operator]
        hidden = layer.output_norm(hidden + layer.output(F.gelu(layer.intermediate(hidden))))  # type: ignore[operator]
    return hidden


@pytest.mark.parametrize(("layers", "plain"), [(0, plain_prefix), (2, plain_decoder)], ids=["trunk", "decoder"])
def test_states_are_those_of_a_plain_computation(layers: int, plain: Any) -> None:
    model = MMBertForConditionalGeneration.sharing(tiny_network(7, num_decoder_layers=layers))
    rng = np.random.default_rng(0)
    for _ in range(3):
        example = Example(rng.integers(3, 60, 6), written=rng.integers(3, 60, 4))
        with torch.no_grad():
            expected = model.token_logits(plain(model, example))
        assert largest(logits_of(model, [example], KnownRegions([]))[0], expected) < 2e-5


# -- generation --------------------------------------------------------------------------------------------------------


def started(seed: int, count: int) -> PackedBatch:
    examples, images = written_examples(seed, count)
    return collate([replace(e, written=np.array([START])) for e in examples], images)


def generated(model: MMBertForConditionalGeneration, batch: PackedBatch, steps: int = 6, **options: Any) -> Any:
    return model.generate_text(
        batch, max_new_tokens=steps, eos_token_id=END, pad_token_id=PAD, return_dict_in_generate=True,
        output_scores=True, output_logits=True, **options,
    )  # fmt: skip


def test_cached_steps_are_a_pass_over_the_whole_text(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(8, 6)
    starts = [replace(e, written=np.array([START])) for e in examples]
    result = generated(model, collate(starts, images))
    steps = torch.stack(result.logits, 1)  # [R, steps, K]
    for row, example in enumerate(examples):
        ids = result.sequences[row].tolist()
        ended = ids.index(END) if END in ids else len(ids) - 1
        text = np.array(ids[:ended])
        expected = logits_of(model, [replace(example, written=text)], images)[0]
        assert largest(steps[row, : len(text)], expected) < 3e-5
        assert result.sequences[row, 1 : ended + 1].tolist() == expected.argmax(-1).tolist()[:ended]


def test_several_first_tokens_are_read_at_once(model: MMBertForConditionalGeneration) -> None:
    """Of sequences that differ in length, so that some positions of the memory are nobody's."""
    examples, images = written_examples(11, 6, length=3)
    result = generated(model, collate(examples, images), steps=1)
    (step,) = result.logits
    for row, expected in enumerate(logits_of(model, examples, images)):
        assert largest(step[row], expected[-1]) < 3e-5


@pytest.mark.parametrize("beams", [1, 3])
def test_packed_weights_write_the_same(model: MMBertForConditionalGeneration, beams: int) -> None:
    examples, images = written_examples(13, 4)
    starts = collate([replace(e, written=np.array([START])) for e in examples], images)
    wanted = generated(model, starts, num_beams=beams)
    with PackedWeights().used():
        found = generated(model, starts, num_beams=beams)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    for step, other in zip(found.logits, wanted.logits, strict=True):
        assert largest(step, other) < 3e-5


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_is_its_rows_one_by_one(model: MMBertForConditionalGeneration, beams: int) -> None:
    examples, images = written_examples(9, 5)
    starts = [replace(e, written=np.array([START])) for e in examples]
    together = generated(model, collate(starts, images), num_beams=beams).sequences
    for row, start in enumerate(starts):
        alone = generated(model, collate([start], images), num_beams=beams).sequences[0]
        width = min(len(alone), together.shape[1])
        assert together[row, :width].tolist() == alone[:width].tolist()
        assert set(together[row, width:].tolist()) <= {PAD}


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(penalty: float) -> None:
    """Over a vocabulary of six and texts of three, every text can be looked at."""
    tiny = MMBertForPreTraining(tiny_config(vocab_size=6, num_decoder_layers=1))
    shake(tiny, 5)
    model = MMBertForConditionalGeneration.sharing(tiny.eval())
    example = Example(np.array([3, 4, 5]), written=np.array([START]))
    free = [token for token in range(6) if token not in (PAD, END)]
    texts = [(*head, END) for n in range(3) for head in itertools.product(free, repeat=n)]
    texts += list(itertools.product(free, repeat=3))
    batch = [replace(example, written=np.array([START, *text[:-1]])) for text in texts]
    scores = []
    for text, logits in zip(texts, logits_of(model, batch, KnownRegions([])), strict=True):
        total = logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None]).sum()
        scores.append(float(total) / len(text) ** penalty)
    best = sorted(range(len(texts)), key=lambda i: -scores[i])[:4]
    result = generated(
        model, collate([example]), steps=3, num_beams=90, num_return_sequences=4, length_penalty=penalty,
        suppress_tokens=[PAD], early_stopping="never",
    )  # fmt: skip
    found = [tuple(t for t in row[1:].tolist() if t != PAD) for row in result.sequences]
    assert found == [texts[i] for i in best]
    assert result.sequences_scores.tolist() == pytest.approx([scores[i] for i in best], abs=1e-4)


def test_texts_have_to_begin_alike(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(10, 2)
    for lengths in ((1, 2), (1, 0)):
        uneven = [replace(e, written=np.full(n, START)) for e, n in zip(examples, lengths, strict=True)]
        with pytest.raises(ValueError, match="first tokens"):
            model.generate_text(collate(uneven, images))


def test_what_was_saved_writes_the_same(model: MMBertForConditionalGeneration, tmp_path: Path) -> None:
    batch = started(11, 3)
    before = generated(model, batch).sequences
    model.save_pretrained(tmp_path)
    loaded, report = MMBertForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(generated(loaded.eval(), batch).sequences, before)
    trunk = type(model.trunk).from_pretrained(tmp_path)
    assert torch.equal(trunk.embeddings.words.weight, model.trunk.embeddings.words.weight)


def test_every_weight_of_a_decoder_learns(model: MMBertForConditionalGeneration) -> None:
    examples, images = written_examples(12, 4)
    batch = collate(examples, images)
    model(batch).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("decoder.layers."):
            assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    model.zero_grad()
