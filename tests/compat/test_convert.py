"""Checkpoints of the originals to our folders and back: whatever wrote them, whatever wraps their keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from originals import (
    SMALL,
    answering_shapes,
    pretraining_shapes,
    random_state,
    settings,
    write_checkpoint,
    write_yaml,
)
from safetensors.torch import load_file
from torch import Tensor

from mmbert.compat.convert import convert, convert_back
from mmbert.errors import CheckpointError, ConfigError, UsageError
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining

WORD_TABLE = "vlbert.word_embeddings.weight"
PRETRAINING = {"MODULE": "ResNetVLBERTForPretraining"}


def converted(path: Path, out: Path, config: Path, **options: Any) -> dict[str, Tensor]:
    """Our weights of a checkpoint."""
    convert(path, out, config=config, **options)
    return load_file(out / "model.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def saved_state(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="session")
def plain(
    state: dict[str, Tensor], config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Tensor]]:
    """The small checkpoint, converted: folder and weights."""
    work = tmp_path_factory.mktemp("plain")
    path = write_checkpoint(work / "small.model", state)
    return work / "out", converted(path, work / "out", config)


def test_every_number_of_the_checkpoint_is_in_the_folder(
    state: dict[str, Tensor], plain: tuple[Path, dict[str, Tensor]]
) -> None:
    """By hand: the sums of all numbers agree, and so do tensors whose place is known without the converter's table."""
    ours = plain[1]
    once = {k: v for k, v in state.items() if not k.endswith("decoder.weight")}
    assert sum(v.numel() for v in ours.values()) == sum(v.numel() for v in once.values())
    total = sum(float(v.double().abs().sum()) for v in ours.values())
    assert total == pytest.approx(sum(float(v.double().abs().sum()) for v in once.values()), rel=1e-12)
    assert torch.equal(ours["trunk.embeddings.words.weight"], state[WORD_TABLE])
    assert torch.equal(ours["trunk.embeddings.end_word"], state["vlbert.end_embedding.weight"][0])
    layer = "vlbert.encoder.layer.1.attention.self."
    stacked = torch.cat([state[f"{layer}{n}.weight"] for n in ("query", "key", "value")])
    assert torch.equal(ours["trunk.encoder.layers.1.attention.qkv.weight"], stacked)


def test_the_folder_loads_and_says_what_it_is(plain: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = plain
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    model, report = MMBertForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert model.config.hidden_size == SMALL.hidden
    card = (folder / "README.md").read_text("utf-8")
    assert "small.model" in card
    assert "pretraining" in card


def with_optimiser(state: dict[str, Tensor]) -> dict[str, Any]:
    """Everything that the originals' trainers put beside the weights."""
    moments = {i: {"step": 3, "exp_avg": torch.zeros_like(t), "exp_avg_sq": t**2} for i, t in enumerate(state.values())}
    groups = [{"lr": 1e-6, "initial_lr": 1e-6, "betas": (0.9, 0.999), "params": list(range(len(state)))}]
    return {
        "optimizer": {"state": moments, "param_groups": groups},
        "validation_monitor": {"best_epoch": 3, "best_val": np.float64(0.75), "metrics": {"MLMAcc": np.float32(0.5)}},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "PyTorch 1.x"])
@pytest.mark.parametrize("beside", [{}, "optimiser"], ids=["weights alone", "optimiser state beside"])
def test_old_and_new_files_give_the_same_weights(
    state: dict[str, Tensor],
    plain: tuple[Path, dict[str, Tensor]],
    config: Path,
    tmp_path: Path,
    zipped: bool,
    beside: Any,
) -> None:
    further = with_optimiser(state) if beside else {}
    path = write_checkpoint(tmp_path / "old.model", state, zipped=zipped, **further)
    report = convert(path, tmp_path / "out", config=config)
    assert same(load_file(tmp_path / "out" / "model.safetensors"), plain[1])
    assert report.beside == list(further)
    assert not report.missing
    assert not report.leftover


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "PyTorch 1.x"])
def test_half_precision_stays_as_it_is_and_loads(
    state: dict[str, Tensor], config: Path, tmp_path: Path, zipped: bool
) -> None:
    half = {key: value.half() for key, value in state.items()}
    half["vlbert.mlm_head.predictions.decoder.weight"] = half[WORD_TABLE]
    ours = converted(write_checkpoint(tmp_path / "h.model", half, zipped=zipped), tmp_path / "out", config)
    assert {v.dtype for v in ours.values()} == {torch.float16}
    assert torch.equal(ours["trunk.embeddings.words.weight"], half[WORD_TABLE])
    assert MMBertConfig.from_pretrained(tmp_path / "out").dtype == torch.float16
    model = MMBertForPreTraining.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(model.trunk.embeddings.words.weight, half[WORD_TABLE].float())


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


def twice_wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return wrapped(wrapped(state))


def tensorflow_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def name(key: str) -> str:
        norm = "LayerNorm" in key or "visual_ln" in key
        return key.replace(".weight", ".gamma").replace(".bias", ".beta") if norm else key

    return {name(key): value for key, value in state.items()}


def nested_trunk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("vlbert.", "vlbert._module."): value for key, value in state.items()}


def untied_copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"vlbert.mlm_head.predictions.decoder.weight": state[WORD_TABLE].clone()}


def without_second_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("decoder.weight")}


def second_name_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(reversed(state.items()))


FORMS = [
    wrapped, twice_wrapped, tensorflow_names, nested_trunk, untied_copy, without_second_name, second_name_first,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=[f.__name__ for f in FORMS])
def test_keys_in_every_form_give_the_same_weights_and_come_back(
    state: dict[str, Tensor], plain: tuple[Path, dict[str, Tensor]], config: Path, tmp_path: Path, form: Any
) -> None:
    given = form(state)
    path = write_checkpoint(tmp_path / "form.model", given)
    assert same(converted(path, tmp_path / "out", config), plain[1])
    convert_back(tmp_path / "out", tmp_path / "back.model")
    back = saved_state(tmp_path / "back.model")
    assert list(back) == list(given)
    assert same(back, given)


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "net"])
def test_a_state_dict_is_found_at_top_level_or_nested(
    state: dict[str, Tensor], plain: tuple[Path, dict[str, Tensor]], config: Path, tmp_path: Path, nest: str | None
) -> None:
    torch.save(state if nest is None else {"epoch": 3, nest: state}, tmp_path / "n.model")
    assert same(converted(tmp_path / "n.model", tmp_path / "out", config), plain[1])


def test_two_names_of_one_tensor_may_not_disagree(state: dict[str, Tensor], config: Path, tmp_path: Path) -> None:
    other = state | {"vlbert.mlm_head.predictions.decoder.weight": state[WORD_TABLE] + 1}
    with pytest.raises(CheckpointError, match=r"decoder\.weight are two names of one tensor|two names of one tensor"):
        convert(write_checkpoint(tmp_path / "x.model", other), tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


def test_a_frozen_word_table_keeps_its_trainable_rows(state: dict[str, Tensor], words: Path, tmp_path: Path) -> None:
    """``special_word_embeddings`` are the first 1,000 rows, however small the vocabulary."""
    special = torch.randn(1000, SMALL.hidden)
    content = settings()
    content["NETWORK"]["VLBERT"]["word_embedding_frozen"] = True
    config = write_yaml(tmp_path / "frozen.yaml", content)
    path = write_checkpoint(tmp_path / "f.model", state | {"vlbert.special_word_embeddings.weight": special})
    ours = converted(path, tmp_path / "out", config, tokenizer=words)
    assert torch.equal(ours["trunk.embeddings.special_words.weight"], special)
    model = MMBertForPreTraining.from_pretrained(tmp_path / "out")
    assert not model.trunk.embeddings.words.weight.requires_grad
    assert torch.equal(model.trunk.embeddings.word_vectors(torch.tensor([3])), special[3:4])
    convert(path, tmp_path / "without", task="pretraining", tokenizer=words, settings={"num_attention_heads": 2})
    assert same(load_file(tmp_path / "without" / "model.safetensors"), ours)


def test_a_round_trip_is_bit_equal_and_brings_the_settings(
    state: dict[str, Tensor], plain: tuple[Path, dict[str, Tensor]], config: Path, words: Path, tmp_path: Path
) -> None:
    convert_back(plain[0], tmp_path / "back.model")
    assert same(saved_state(tmp_path / "back.model"), state)
    written = yaml.safe_load((tmp_path / "back.yaml").read_text())
    assert written["NETWORK"]["VLBERT"]["hidden_size"] == SMALL.hidden
    ours = converted(tmp_path / "back.model", tmp_path / "again", tmp_path / "back.yaml", tokenizer=words)
    assert same(ours, plain[1])


def test_a_trained_model_is_written_back_under_the_usual_names(
    plain: tuple[Path, dict[str, Tensor]], state: dict[str, Tensor], tmp_path: Path
) -> None:
    """A folder that was saved after training has no record of the conversion."""
    model = MMBertForPreTraining.from_pretrained(plain[0])
    with torch.no_grad():
        model.trunk.embeddings.words.weight[5] += 1
    model.save_pretrained(tmp_path / "trained")
    convert_back(tmp_path / "trained", tmp_path / "trained.model")
    back = saved_state(tmp_path / "trained.model")
    assert back.keys() == state.keys()
    assert torch.equal(back[WORD_TABLE][5], state[WORD_TABLE][5] + 1)
    assert torch.equal(back["vlbert.mlm_head.predictions.decoder.weight"], back[WORD_TABLE])


def test_writing_back_never_overwrites(plain: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    for name in ("taken.model", "settings.yaml"):
        (tmp_path / name).write_text("mine")
    for out in ("taken.model", "settings.model"):
        with pytest.raises(UsageError, match="exists already"):
            convert_back(plain[0], tmp_path / out)
    assert {p.read_text() for p in tmp_path.iterdir()} == {"mine"}


def test_what_the_originals_have_not_cannot_be_written_back(tmp_path: Path) -> None:
    from tiny import tiny_network

    tiny_network(embedding_size=8).save_pretrained(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="no counterpart"):
        convert_back(tmp_path / "ours", tmp_path / "x.model")
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


SIZES = [
    SMALL,
    replace(SMALL, hidden=24, heads=3, layers=1, intermediate=40, classes=9),
    replace(SMALL, visual=8, features=2048, positions=48),
]


@pytest.mark.parametrize("sizes", SIZES, ids=["small", "wider", "visual size differs"])
@pytest.mark.parametrize("match", [0, 1, 2])
def test_sizes_are_inferred_from_the_tensors(sizes: Any, match: int, words: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "s.model", random_state(pretraining_shapes(sizes, match=match)))
    convert(path, tmp_path / "out", task="pretraining", tokenizer=words, settings={"num_attention_heads": sizes.heads})
    found = MMBertConfig.from_pretrained(tmp_path / "out")
    assert (found.hidden_size, found.visual_size, found.num_hidden_layers, found.num_attention_heads) == (
        sizes.hidden, sizes.visual, sizes.layers, sizes.heads,
    )  # fmt: skip
    assert (found.intermediate_size, found.vocab_size, found.max_position_embeddings) == (
        sizes.intermediate, sizes.vocabulary, sizes.positions,
    )  # fmt: skip
    assert (found.num_region_classes, found.match_outputs, found.with_pooler) == (sizes.classes, match, bool(match))


def test_inferred_and_described_networks_are_the_same(
    state: dict[str, Tensor], plain: tuple[Path, dict[str, Tensor]], words: Path, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "i.model", state)
    convert(path, tmp_path / "out", task="pretrain", tokenizer=words, settings={"num_attention_heads": SMALL.heads})
    assert same(load_file(tmp_path / "out" / "model.safetensors"), plain[1])
    told, inferred = (json.loads((f / "config.json").read_text()) for f in (plain[0], tmp_path / "out"))
    assert {k for k in told if told[k] != inferred.get(k)} == set()


@pytest.mark.parametrize("kind", ["1fc", "2fc", "mlm"])
def test_answer_heads_are_told_apart_by_their_tensors(kind: str, words: Path, tmp_path: Path) -> None:
    state = random_state(answering_shapes(kind=kind, answers=11))
    path = write_checkpoint(tmp_path / "v.model", state)
    convert(path, tmp_path / "out", task="vqa", tokenizer=words, settings={"num_attention_heads": 2})
    head = MMBertConfig.from_pretrained(tmp_path / "out").heads["answer"]
    assert head["outputs"] == 11
    assert head["kind"] == {"1fc": "linear", "2fc": "two_layer", "mlm": "transform"}[kind]
    convert_back(tmp_path / "out", tmp_path / "back.model")
    assert same(saved_state(tmp_path / "back.model"), state)


def test_missing_and_leftover_tensors_are_an_error_that_names_them(
    state: dict[str, Tensor], config: Path, tmp_path: Path
) -> None:
    changed = {k: v for k, v in state.items() if "mvrc_head" not in k} | {"vlbert.surprise.weight": torch.ones(3)}
    with pytest.raises(CheckpointError) as caught:
        convert(write_checkpoint(tmp_path / "p.model", changed), tmp_path / "out", config=config)
    message = str(caught.value)
    assert "4 missing: vlbert.mvrc_head.transform.dense.weight" in message
    assert "1 left over: vlbert.surprise.weight" in message
    assert "--allow-partial" in message
    assert str(tmp_path / "p.model") in message
    assert not (tmp_path / "out").exists()


def test_what_fits_is_converted_on_request_and_the_rest_is_listed(
    state: dict[str, Tensor], plain: tuple[Path, dict[str, Tensor]], config: Path, tmp_path: Path
) -> None:
    changed = {k: v for k, v in state.items() if "mvrc_head.region" not in k} | {
        "vlbert.surprise.weight": torch.ones(3)
    }
    path = write_checkpoint(tmp_path / "p.model", changed)
    report = convert(path, tmp_path / "out", config=config, allow_partial=True)
    assert report.missing == [f"vlbert.mvrc_head.region_cls_pred.{part}" for part in ("bias", "weight")]
    assert report.leftover == ["vlbert.surprise.weight"]
    ours = load_file(tmp_path / "out" / "model.safetensors")
    fresh = {k for k in ours if k.startswith("region_head.predictor")}
    assert ours.keys() == plain[1].keys()
    assert all(torch.equal(ours[k], plain[1][k]) for k in ours if k not in fresh)
    assert not torch.equal(ours["region_head.predictor.weight"], plain[1]["region_head.predictor.weight"])
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "vlbert.mvrc_head.region_cls_pred.weight" in card
    assert "vlbert.surprise.weight" in card
    convert_back(tmp_path / "out", tmp_path / "back.model")
    assert saved_state(tmp_path / "back.model").keys() == {k for k in changed if "surprise" not in k}


def test_what_is_missing_beside_others_in_one_tensor_leaves_these_as_they_are(
    state: dict[str, Tensor], config: Path, tmp_path: Path
) -> None:
    name = "vlbert.encoder.layer.0.attention.self.{}.{}"
    torch.manual_seed(0)
    changed = {key: torch.randn_like(value) if ".self." in key else value for key, value in state.items()}
    gone = [name.format("key", part) for part in ("weight", "bias")]
    path = write_checkpoint(tmp_path / "p.model", {key: changed[key] for key in changed.keys() - set(gone)})
    report = convert(path, tmp_path / "out", config=config, allow_partial=True)
    assert report.missing == sorted(gone)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    for part in ("weight", "bias"):
        query, key, value = ours[f"trunk.encoder.layers.0.attention.qkv.{part}"].chunk(3)
        assert torch.equal(query, changed[name.format("query", part)])
        assert torch.equal(value, changed[name.format("value", part)])
        assert not torch.equal(key, changed[name.format("key", part)])


def test_a_tensor_of_another_shape_is_never_partial(state: dict[str, Tensor], config: Path, tmp_path: Path) -> None:
    changed = state | {"vlbert.pooler.dense.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight is \[3, 3\] instead of \[16, 16\]"):
        convert(write_checkpoint(tmp_path / "p.model", changed), tmp_path / "o", config=config, allow_partial=True)


def test_the_tokenizer_lower_cases_and_strips_accents_as_the_originals_did(plain: tuple[Path, Any]) -> None:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(plain[0]).tokenize("Dögs RUNNING")
    assert tokens == ["dog", "##s", "run", "##ning"]


def test_a_vocabulary_of_another_model_is_refused(state: dict[str, Tensor], config: Path, tmp_path: Path) -> None:
    from originals import WORDS, write_vocabulary

    larger = write_vocabulary(tmp_path / "larger", [*WORDS, "zebra"])
    path = write_checkpoint(tmp_path / "v.model", state)
    with pytest.raises(ConfigError, match="the tokenizer has 31 entries, the network 30 word rows"):
        convert(path, tmp_path / "out", config=config, tokenizer=larger)
    with pytest.raises(ConfigError, match="no tokenizer"):
        convert(path, tmp_path / "out", config=config, tokenizer=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_left_alone(state: dict[str, Tensor], config: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "v.model", state)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(path, tmp_path / "out", config=config)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="which network"):
        convert(path, tmp_path / "new")
    with pytest.raises(UsageError, match="there is no folder"):
        convert(path, tmp_path / "nowhere" / "new", config=config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("just: words", "no NETWORK section"),
        (PRETRAINING | {"NETWORK": {"IMAGE_FEAT_PRECOMPUTED": True, "IMAGE_FINAL_DIM": 9}}, "9 is not visual_size 512"),
        (PRETRAINING | {"NETWORK": {"VLBERT": 3}}, "not a usable configuration"),
        (PRETRAINING | {"NETWORK": {"IMAGE_SEMANTIC": True}}, "NETWORK.IMAGE_SEMANTIC True is not supported"),
        ({"NETWORK": {}, "DATASET": {"DATASET": "other"}}, "which task is it"),
    ],
)  # fmt: skip
def test_unusable_configurations_are_named(
    state: dict[str, Tensor], tmp_path: Path, content: Any, message: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    path = write_checkpoint(tmp_path / "v.model", state)
    with pytest.raises(ConfigError, match=message) as caught:
        convert(path, tmp_path / "out", config=config)
    assert str(config) in str(caught.value)
    assert not (tmp_path / "out").exists()
