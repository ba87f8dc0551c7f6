"""Where weights start: text encoders, VL-BERT checkpoints, our folders, and heads made of pre-training heads.

What is expected is computed by transformers' own models, or read straight from the files' tensors.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from originals import SMALL, WORDS, pretraining_shapes, random_state, write_checkpoint, write_vocabulary
from starts import SIZES, saved, small_bert, start
from tiny import shake
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertModel, RobertaConfig, XLMRobertaConfig

from mmbert import MMBert, MMBertForPreTraining
from mmbert.compat.convert import convert
from mmbert.errors import CheckpointError, ConfigError
from mmbert.model.packed import SequenceSpec, pack
from mmbert.training.initialisation import InitReport

torch.set_num_threads(1)
Checkpoint = tuple[Path, dict[str, Tensor]]
LISTED = (
    "vlbert.mvrc_head.", "image_feature_extractor.", "vlbert.visual_ln_text.", "vlbert.visual_ln_object.",
    "vlbert.end_embedding", "vlbert.token_type_embeddings", "vlbert.position_embeddings", "aux_text_visual_embedding",
    "object_mask_word_embedding", "object_linguistic_embeddings",
)  # fmt: skip
"""What hybrid initialisation takes from a VL-BERT checkpoint, as the description of the originals lists it."""
IDS = [[2, 5, 6, 7, 3], [2, 10, 8, 9, 12, 13, 3]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with every head."""
    return small_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def vlbert(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small VL-BERT checkpoint with two match outputs, and its tensors."""
    state = random_state(pretraining_shapes(match=2), seed=5)
    return write_checkpoint(tmp_path_factory.mktemp("vlbert") / "vl.model", state), state


def text_alone(model: MMBertForPreTraining, ids: list[list[int]]) -> tuple[Tensor, Tensor | None]:
    """Last states [P, H] of texts without image and without ``[END]``, and the pooled vectors."""
    batch = pack([SequenceSpec(np.array(row), end=False) for row in ids])
    with torch.no_grad():
        output = model(batch)
    return output.last_hidden_state, output.pooled


def theirs_alone(model: Any, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Last states and vocabulary logits as transformers computes them, each text by itself."""
    states, logits = [], []
    with torch.no_grad():
        for row in ids:
            output = model(torch.tensor([row]), output_hidden_states=True)
            states.append(output.hidden_states[-1][0])
            logits.append((output.prediction_logits if hasattr(output, "prediction_logits") else output.logits)[0])
    return torch.cat(states), torch.cat(logits)


def test_text_from_bert_is_computed_as_bert_does(bert: Path) -> None:
    ours = start({"text": str(bert)}, config={"match_outputs": 0}).model.eval()
    original = BertForPreTraining.from_pretrained(bert).eval()
    states, pooled = text_alone(ours, IDS)
    wanted, logits = theirs_alone(original, IDS)
    torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.token_logits(states), logits, rtol=0, atol=1e-5)
    with torch.no_grad():
        theirs = [original.bert(torch.tensor([row])).pooler_output[0] for row in IDS]
    torch.testing.assert_close(pooled, torch.stack(theirs), rtol=0, atol=1e-5)


def test_sizes_and_tokenizer_come_from_the_text_encoder(bert: Path) -> None:
    made = start({"text": str(bert)})
    assert {key: getattr(made.config, key) for key in SIZES} == SIZES
    assert made.config.visual_size == SMALL.hidden
    assert made.processor.tokenizer.tokenize("the dogs") == ["the", "dog", "##s"]
    assert made.config.vocab_size == len(WORDS)


@pytest.mark.parametrize("kind", [XLMRobertaConfig, RobertaConfig], ids=["XLM-R", "RoBERTa"])
@pytest.mark.parametrize("pooler", [True, False])
def test_text_from_roberta_is_computed_as_roberta_does(kind: Any, pooler: bool, tmp_path: Path) -> None:
    """Positions count from behind the padding id; its one segment row goes to all; norms have its own epsilon."""
    config = kind(vocab_size=40, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, **SIZES)
    original = transformers.AutoModelForMaskedLM.from_config(config)
    shake(original, 3)
    original.save_pretrained(tmp_path / "m")
    if pooler:  # the published files hold it beside the head
        from safetensors.torch import load_file, save_file

        state = load_file(tmp_path / "m" / "model.safetensors")
        extra = {f"roberta.pooler.dense.{p}": torch.randn(s) for p, s in (("weight", (16, 16)), ("bias", (16,)))}
        save_file(state | extra, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    words = write_vocabulary(tmp_path / "words")
    report = InitReport()
    ours = start({"text": str(tmp_path / "m")}, report, tokenizer={"path": str(words)}).model.eval()
    ids = [[0, 5, 6, 7, 2], [0, 20, 39, 2]]
    states, _ = text_alone(ours, ids)
    wanted, logits = theirs_alone(original.eval(), ids)
    torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.token_logits(states), logits, rtol=0, atol=1e-5)
    row = original.roberta.embeddings.token_type_embeddings.weight[0]
    assert all(torch.equal(segment, row) for segment in ours.trunk.embeddings.segments.weight)
    assert ours.config.position_padding_idx == 1
    assert ("trunk.pooler.dense.weight" in report.fresh) is not pooler
    if pooler:
        assert torch.equal(ours.trunk.pooler.dense.weight, extra["roberta.pooler.dense.weight"])


def test_segments_of_text_are_berts_and_that_of_regions_is_fresh(bert: Path) -> None:
    report = InitReport()
    made = start({"text": str(bert)}, report)
    rows = BertForPreTraining.from_pretrained(bert).bert.embeddings.token_type_embeddings.weight
    assert torch.equal(made.model.trunk.embeddings.segments.weight[:2], rows)
    assert "trunk.embeddings.segments.weight[2:]" in report.fresh


def test_a_bert_without_heads_leaves_them_fresh_and_says_so(tmp_path: Path) -> None:
    folder = saved(BertModel(BertConfig(vocab_size=len(WORDS), **SIZES), add_pooling_layer=False), tmp_path / "b")
    report = InitReport()
    made = start({"text": str(folder)}, report)
    assert {"trunk.pooler.dense.weight", "token_head.dense.weight", "token_head.bias"} <= set(report.fresh)
    other = start({"text": str(folder)}, seed=1)
    assert not torch.equal(made.model.trunk.pooler.dense.weight, other.model.trunk.pooler.dense.weight)
    assert torch.equal(made.model.trunk.embeddings.words.weight, other.model.trunk.embeddings.words.weight)


def test_the_first_berts_files_are_read(tmp_path: Path) -> None:
    """``bert_config.json``, an old pickle, ``gamma`` and ``beta``, and nothing about the tokenizer but its words."""
    model = BertForPreTraining(BertConfig(vocab_size=len(WORDS), **SIZES))
    shake(model, 2)
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for k, v in model.state_dict().items()}  # fmt: skip
    folder = write_vocabulary(tmp_path / "old")
    torch.save(old, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model.config.to_json_file(folder / "bert_config.json")
    ours = start({"text": str(folder)}).model.eval()
    torch.testing.assert_close(text_alone(ours, IDS)[0], theirs_alone(model.eval(), IDS)[0], rtol=0, atol=1e-5)
    norm = model.cls.predictions.transform.LayerNorm.weight
    assert torch.equal(ours.token_head.norm.weight, norm)


@pytest.mark.parametrize(("words", "cased"), [(WORDS, False), ([*WORDS, "Hund"], True)])
def test_a_bare_vocabulary_keeps_case_if_it_has_capitals(words: list[str], cased: bool, tmp_path: Path) -> None:
    folder = saved(BertModel(BertConfig(vocab_size=len(words), **SIZES)), tmp_path / "b", words=words)
    tokenizer = start({"text": str(folder)}).processor.tokenizer
    assert tokenizer.tokenize("Hund") == (["Hund"] if cased else ["hund"])
    lower = start({"text": str(folder)}, tokenizer={"lower_case": True}).processor.tokenizer
    assert lower.tokenize("Hünd") == ["hund"]


def test_every_tensor_of_the_files_is_used_or_reported(bert: Path, vlbert: Checkpoint) -> None:
    path, state = vlbert
    report = InitReport()
    start({"text": str(bert), "model": str(path)}, report)
    in_bert = {k for k in BertForPreTraining.from_pretrained(bert).state_dict() if ".decoder." not in k}
    assert set(report.used[str(bert)]) | set(report.left[str(bert)]) == in_bert
    assert "cls.seq_relationship.weight" in report.left[str(bert)]
    once = {k for k in state if not k.endswith("decoder.weight")}
    assert set(report.used[str(path)]) | set(report.left[str(path)]) == once
    assert not set(report.used[str(path)]) & set(report.left[str(path)])


def by_original_name(bert: MMBert) -> dict[str, Tensor]:
    """The model's tensors under VL-BERT's names, written out by the converter and read back by PyTorch."""
    from mmbert.compat.keys import rules_for, their_tensors

    ours = {k: v for k, v in bert.model.state_dict().items() if not k.startswith(("embedding_head", "feature_head"))}
    return their_tensors(rules_for(bert.config), ours)


def under_vlberts_names(model: BertForPreTraining) -> dict[str, Tensor]:
    """BERT's tensors where VL-BERT keeps them."""
    found = {}
    for key, value in model.state_dict().items():
        for old, new in (
            ("bert.embeddings.LayerNorm", "vlbert.embedding_LayerNorm"),
            ("bert.embeddings", "vlbert"),
            ("bert", "vlbert"),
            ("cls.predictions", "vlbert.mlm_head.predictions"),
        ):
            if key.startswith(f"{old}."):
                found[new + key.removeprefix(old)] = value
                break
    return found


def test_plain_takes_every_tensor_that_has_a_place(bert: Path, vlbert: Checkpoint) -> None:
    path, state = vlbert
    made = by_original_name(start({"text": str(bert), "model": str(path)}, config={"match_outputs": 2}))
    assert made.keys() == {k for k in state if not k.endswith("decoder.weight")}
    assert all(torch.equal(made[key], state[key]) for key in made)


def test_plain_into_a_smaller_network_reports_what_has_no_place(vlbert: Checkpoint, bert: Path) -> None:
    path, state = vlbert
    report = InitReport()
    config = {"with_mlm_head": False, "num_region_classes": 0, "match_outputs": 0, "object_mask_word_embedding": False}
    made = by_original_name(start({"model": str(path)}, report, config=config, tokenizer={"path": str(bert)}))
    assert all(torch.equal(made[key], state[key]) for key in made)
    assert not report.fresh
    assert set(report.left[str(path)]) == {
        k for k in state if not k.endswith("decoder.weight")
        and ("_head." in k or k.startswith("object_mask_word"))
    }  # fmt: skip


def test_skip_leaves_the_vocabulary_to_the_text_encoder(tmp_path: Path, vlbert: Checkpoint) -> None:
    path, state = vlbert
    more = [*WORDS, "neu", "wort"]
    folder = small_bert(tmp_path / "b", more)
    init = {"text": str(folder), "model": str(path), "mode": "skip"}
    made = by_original_name(start(init, config={"match_outputs": 2}))
    words = {"vlbert.word_embeddings.weight", "vlbert.mlm_head.predictions.bias"}
    text = under_vlberts_names(BertForPreTraining.from_pretrained(folder))
    for key, value in made.items():
        assert torch.equal(value, text[key] if key in words else state[key]), key
    with pytest.raises(CheckpointError, match="mode: skip") as caught:
        start(init | {"mode": "plain"}, config={"vocab_size": len(more)})
    assert str(path) in str(caught.value)


def test_skip_without_a_text_encoder_leaves_word_vectors_fresh(vlbert: Checkpoint, tmp_path: Path) -> None:
    path, state = vlbert
    words = write_vocabulary(tmp_path / "words", [*WORDS, "neu"])
    report = InitReport()
    made = start({"model": str(path), "mode": "skip"}, report, tokenizer={"path": str(words)})
    assert set(report.fresh) == {"trunk.embeddings.words.weight", "token_head.bias"}
    assert made.config.vocab_size == len(WORDS) + 1
    assert torch.equal(by_original_name(made)["vlbert.pooler.dense.weight"], state["vlbert.pooler.dense.weight"])


@pytest.mark.parametrize("mode", ["plain", "skip", "hybrid"])
def test_the_number_of_heads_is_the_text_encoders(bert: Path, vlbert: Checkpoint, mode: str) -> None:
    """No tensor of a checkpoint tells it; alone, it is guessed (64 wide each) unless the recipe says it."""
    path, _ = vlbert
    made = start({"text": str(bert), "model": str(path), "mode": mode})
    assert made.config.num_attention_heads == SMALL.heads
    alone: dict[str, Any] = {"tokenizer": {"path": str(bert)}}
    assert start({"model": str(path)}, **alone).config.num_attention_heads == 1
    assert start({"model": str(path)}, **alone, config={"num_attention_heads": 4}).config.num_attention_heads == 4


def test_hybrid_takes_exactly_the_listed_tensors(bert: Path, vlbert: Checkpoint) -> None:
    path, state = vlbert
    report = InitReport()
    made = start({"text": str(bert), "model": str(path), "mode": "hybrid"}, report, config={"match_outputs": 2})
    ours, text = by_original_name(made), under_vlberts_names(BertForPreTraining.from_pretrained(bert))
    listed = {key for key in state if key.startswith(LISTED)}
    assert set(report.used[str(path)]) == listed
    for key, value in ours.items():
        if key in listed:
            assert torch.equal(value, state[key]), key
        elif key in text:
            assert torch.equal(value, text[key]), key
        else:  # in neither: made at random
            assert not torch.equal(value, state[key]), key
    assert {k.split(".")[0] for k in report.fresh} == {"match_head", "trunk"}
    assert "trunk.region_embedding.mask_feature" in report.fresh


def test_of_several_checkpoints_the_later_win(bert: Path, vlbert: Checkpoint, tmp_path: Path) -> None:
    path, state = vlbert
    later = random_state(pretraining_shapes(match=2, mvrc=False), seed=9)
    second = write_checkpoint(tmp_path / "later.model", later)
    config = {"num_region_classes": SMALL.classes, "object_mask_word_embedding": True}
    made = by_original_name(start({"text": str(bert), "model": [str(path), str(second)]}, config=config))
    assert all(torch.equal(made[key], later.get(key, state[key])) for key in made)


def test_our_own_folder_and_a_checkpoint_give_the_same_start(bert: Path, vlbert: Checkpoint, tmp_path: Path) -> None:
    path, _ = vlbert
    convert(path, tmp_path / "ours", task="pretraining", tokenizer=bert, settings={"num_attention_heads": 2})
    options: dict[str, Any] = {"config": {"match_outputs": 2, "num_attention_heads": 2}}
    for mode in ("plain", "skip", "hybrid"):
        one, other = (
            start({"text": str(bert), "model": str(m), "mode": mode}, **options).model.state_dict()
            for m in (path, tmp_path / "ours")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one), mode


def test_a_frozen_word_table_gets_its_trainable_rows_from_it(bert: Path) -> None:
    config = {"word_embedding_frozen": True, "num_special_words": 8}
    embeddings = start({"text": str(bert)}, config=config).model.trunk.embeddings
    assert torch.equal(embeddings.special_words.weight, embeddings.words.weight[:8])


def test_the_backbones_own_weights_come_first(bert: Path, tmp_path: Path) -> None:
    """A checkpoint that has the backbone wins over the backbone's own file; without one the file counts."""
    import timm

    torch.manual_seed(3)
    state = timm.create_model("test_vit", img_size=64).state_dict()
    torch.save(state, tmp_path / "backbone.pth")
    vision = {"vision": {"kind": "grid", "backbone": "test_vit", "image_size": 64}, "num_region_classes": 0}
    made = start({"text": str(bert)}, config=vision, backbone_weights=str(tmp_path / "backbone.pth"))
    found = made.model.trunk.vision.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    with torch.no_grad():
        for parameter in made.model.trunk.vision.parameters():
            parameter.add_(1)
    made.save_pretrained(tmp_path / "trained")
    again = start({"model": str(tmp_path / "trained")}, config=vision, backbone_weights=str(tmp_path / "backbone.pth"))
    assert all(torch.equal(v, found[k]) for k, v in again.model.trunk.vision.backbone.state_dict().items())


def test_what_the_hubs_cache_holds_is_read_without_a_network(bert: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--someone--small-bert"
    shutil.copytree(bert, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    code = """
import socket
def refuse(*arguments, **options): raise AssertionError("the network was asked")
socket.getaddrinfo = socket.create_connection = refuse
from starts import start
made = start({"text": "someone/small-bert"}, tokenizer={"lower_case": True})
print(made.config.vocab_size, made.processor.tokenizer.tokenize("Hünd"))
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(WORDS)} ['hund']"


# -- heads -------------------------------------------------------------------------------------------------------------

ANSWERS = ["yes", "no", "two dogs", "a red ball", "running"]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.txt"
    path.write_text("\n".join(ANSWERS) + "\n", "utf-8")
    return path


def test_an_answer_head_starts_from_the_token_head_and_the_answers_words(
    bert: Path, vlbert: Checkpoint, answers: Path
) -> None:
    path, state = vlbert
    config = {"heads": {"answer": {"kind": "transform", "norm": True, "outputs": len(ANSWERS)}}, "with_mlm_head": False}
    init = {
        "text": str(bert),
        "model": str(path),
        "heads": {"answer": {"transform": "token_head", "words": str(answers)}},
    }
    report = InitReport()
    head = start(init, report, config=config | {"match_outputs": 0}).model.heads["answer"]
    theirs = "vlbert.mlm_head.predictions.transform."
    assert torch.equal(head.dense.weight, state[f"{theirs}dense.weight"])
    assert torch.equal(head.norm.bias, state[f"{theirs}LayerNorm.bias"])
    assert f"{theirs}dense.weight" in report.used[str(path)]
    table = state["vlbert.word_embeddings.weight"]
    for row, pieces in zip(head.predictor.weight, (["yes"], ["no"], ["two", "dog", "##s"], ["a", "red", "ball"],
                                                   ["run", "##ning"]), strict=True):  # fmt: skip
        wanted = sum(table[WORDS.index(piece)] for piece in pieces) / len(pieces)
        torch.testing.assert_close(row.detach(), wanted, rtol=0, atol=1e-7)
    assert "heads.answer.predictor.bias" in report.fresh


def test_a_grounding_head_starts_from_the_region_head(bert: Path, vlbert: Checkpoint) -> None:
    path, state = vlbert
    config = {"heads": {"grounding": {"kind": "transform", "outputs": 1}}, "num_region_classes": 0, "match_outputs": 0}
    init = {"text": str(bert), "model": str(path), "heads": {"grounding": {"transform": "region_head"}}}
    head = start(init, config=config).model.heads["grounding"]
    assert torch.equal(head.dense.weight, state["vlbert.mvrc_head.transform.dense.weight"])
    assert torch.equal(head.dense.bias, state["vlbert.mvrc_head.transform.dense.bias"])


def test_a_choice_starts_as_the_log_odds_of_the_match_head(bert: Path, vlbert: Checkpoint) -> None:
    path, state = vlbert
    config = {"heads": {"choice": {"kind": "linear", "outputs": 1}}, "match_outputs": 0}
    init = {"text": str(bert), "model": str(path), "heads": {"choice": {"match": True}}, "segments": {1: 0}}
    model = start(init, config=config).model
    relation = "vlbert.relationsip_head.caption_image_relationship."
    weight, bias = state[f"{relation}weight"], state[f"{relation}bias"]
    pooled = torch.randn(4, SMALL.hidden)
    two = pooled @ weight.T + bias
    torch.testing.assert_close(model.heads["choice"](pooled)[:, 0], two[:, 1] - two[:, 0])
    rows = model.trunk.embeddings.segments.weight
    assert torch.equal(rows[1], rows[0])
    assert torch.equal(rows[0], state["vlbert.token_type_embeddings.weight"][0])
    assert torch.equal(rows[2], state["vlbert.token_type_embeddings.weight"][2])


@pytest.mark.parametrize(
    ("heads", "config", "message"),
    [
        ({"anser": {"transform": "token_head"}}, {}, "did you mean 'answer'"),
        ({"answer": {"transform": "token_head"}}, {"kind": "linear", "outputs": 5}, "no dense layer to start"),
        ({"answer": {"words": "ANSWERS"}}, {"kind": "linear", "outputs": 4}, "5 answers of width 16"),
        ({"answer": {"words": "nowhere.txt"}}, {}, "cannot read the answers"),
    ],
)  # fmt: skip
def test_heads_that_cannot_start_so_are_named(
    bert: Path, answers: Path, heads: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    heads = {k: {a: str(answers) if b == "ANSWERS" else b for a, b in v.items()} for k, v in heads.items()}
    head = config or {"kind": "transform", "outputs": 5}
    with pytest.raises(ConfigError, match=message):
        start({"text": str(bert), "heads": heads}, config={"heads": {"answer": head}})


def test_a_head_cannot_start_from_one_that_no_part_has(tmp_path: Path) -> None:
    folder = saved(BertModel(BertConfig(vocab_size=len(WORDS), **SIZES)), tmp_path / "b")
    init = {"text": str(folder), "heads": {"answer": {"transform": "region_head"}}}
    with pytest.raises(ConfigError, match=r"no part has region_head\.dense\.weight"):
        start(init, config={"heads": {"answer": {"kind": "transform", "outputs": 5}}})


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"text": "nowhere/at-all/here"}, "no such folder, and the hub gave nothing"),
        ({"model": "BROKEN"}, "cannot read its configuration"),
        ({"model": "nowhere.model"}, "no such checkpoint"),
        ({"text": "EMPTY"}, r"config\.json is missing"),
        ({"text": "GPT"}, "a gpt2, which VL-BERT cannot start from"),
        ({"text": "DAMAGED"}, "cannot read the text encoder"),
    ],
)
def test_parts_that_are_not_there_are_named(tmp_path: Path, init: dict[str, str], message: str) -> None:
    for folder in ("EMPTY", "BROKEN"):
        (tmp_path / folder).mkdir()
    (tmp_path / "BROKEN" / "config.json").write_text("{")
    transformers.GPT2Config(n_layer=1).save_pretrained(tmp_path / "GPT")
    saved(BertModel(BertConfig(vocab_size=len(WORDS), **SIZES)), tmp_path / "DAMAGED")
    weights = tmp_path / "DAMAGED" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    init = {k: str(tmp_path / v) if v.isupper() else v for k, v in init.items()}
    with pytest.raises(CheckpointError, match=message):
        start(init)


def test_a_text_encoder_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "sentinel"), "w")

    folder = write_vocabulary(tmp_path / "b")
    BertConfig(vocab_size=len(WORDS), **SIZES).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"bert.x": Payload()}, protocol=2))
    with pytest.raises(CheckpointError, match="cannot read the text encoder"):
        start({"text": str(folder)})
    assert not (tmp_path / "sentinel").exists()


def test_a_size_that_is_not_the_files_is_named(bert: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bert\.embeddings\.position_embeddings\.weight is \[64, 16\]"):
        start({"text": str(bert)}, config={"max_position_embeddings": 32})
    with pytest.raises(ConfigError, match=r"unknown key 'model\.config\.hiden_size'"):
        start({"text": str(bert)}, config={"hiden_size": 32})


def test_a_checkpoint_without_tokenizer_needs_one(vlbert: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"model\.tokenizer\.path"):
        start({"model": str(vlbert[0])})


def test_nothing_that_fits_is_an_error(tmp_path: Path, bert: Path) -> None:
    path = write_checkpoint(tmp_path / "x.model", {"head.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="no tensor of VL-BERT's networks"):
        start({"text": str(bert), "model": str(path)})


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_started_from(bert: Path, vlbert: Checkpoint, tmp_path: Path) -> None:
    from mmbert.training.recipe import check_recipe
    from mmbert.training.run import train

    (tmp_path / "texts.txt").write_text("the dogs run\na red ball\nein hund im schnee\n")
    content = {
        "name": "small", "steps": 1,
        "model": {"init": {"text": str(bert), "model": str(vlbert[0]), "mode": "hybrid"}},
        "components": {"texts": {"data": {"source": "text", "path": str(tmp_path / "texts.txt")},
                                 "task": "pretraining", "objectives": {"mlm": {}}}},
    }  # fmt: skip
    result = train(check_recipe(content, "test"), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "initialisation.json").read_text())
    assert set(written) == {"used", "left", "fresh"}
    assert "vlbert.end_embedding.weight" in written["used"][str(vlbert[0])]
    assert f"Started from `{bert}, then {vlbert[0]} (hybrid)`." in (result.model / "README.md").read_text()
    assert MMBert.from_pretrained(result.model, device="cpu").config.vocab_size == len(WORDS)
