"""What a recipe does not follow of a configuration: it is told, or is an error that names the file and the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from originals import settings, write_yaml
from published import FILE, ROWS, settings_of

from mmbert.cli.main import run
from mmbert.compat.recipes import RecipeDraft, recipe_from_yaml
from mmbert.errors import ConfigError

MATCHING = "MM-BERT/retrieval/base_prec_16x16G_fp16_downstream_retrieval_german_LR6_startLR6"
PRETRAINING = "MM-BERT/pretrain/base_prec_16x16G_fp16_pretrained_LR6"
ONE_CORPUS = {
    "pairs": [
        MATCHING,
        "MM-BERT/retrieval/base_prec_16x16G_fp16_translate_vision",
        "MM-BERT/MT/base_prec_16x16G_fp16_MT_LR6_encdec",
    ],
    "words": ["MM-BERT/MLT/base_prec_16x16G_fp16_MLT_LR6_startLR6"],
    "questions": ["VL-BERT/vqa/base_4x16G_fp32"],
    "choices": ["VL-BERT/vcr/base_q2a_4x16G_fp32"],
    "expressions": ["VL-BERT/refcoco/base_gt_boxes_4x16G"],
}
"""Configurations that learn from one corpus, by the name of the component that they become."""
TEXTS = {"DATASET": "general_corpus", "TRAIN_ANNOTATION_FILE": "wiki.doc", "SEQ_LEN": 64, "MIN_SEQ_LEN": 64}

pytestmark = pytest.mark.skipif(not ROWS, reason=f"no {FILE.name} in a folder shared/spec beside the repository")


def with_texts(name: str, *, first: bool = False) -> dict[str, Any]:
    """A configuration that lists running text beside the corpus of its own, 5 of it in a batch."""
    said = settings_of(name)
    entries, batches = [said["DATASET"], dict(TEXTS)], [said["TRAIN"]["BATCH_IMAGES"], 5]
    said["DATASET"], said["TRAIN"]["BATCH_IMAGES"] = (entries[::-1], batches[::-1]) if first else (entries, batches)
    return said


def converted(folder: Path, said: dict[str, Any]) -> RecipeDraft:
    return recipe_from_yaml(write_yaml(folder / "c.yaml", said))


@pytest.mark.parametrize(("component", "name"), [(part, name) for part, names in ONE_CORPUS.items() for name in names])
def test_a_corpus_that_no_loss_reads_is_told_and_does_not_count(component: str, name: str, tmp_path: Path) -> None:
    plain = converted(tmp_path, settings_of(name))
    both = converted(tmp_path, with_texts(name))
    batch = settings_of(name)["TRAIN"]["BATCH_IMAGES"]
    assert list(both.content["components"]) == [component]
    assert both.content["components"] == plain.content["components"]
    assert both.content["components"][component]["records"] == batch
    assert both.content.get("data") == plain.content.get("data")
    assert set(both.ignored) - {line.replace("DATASET.", "DATASET.0.") for line in plain.ignored} == {
        "DATASET.1.DATASET = general_corpus", "DATASET.1.TRAIN_ANNOTATION_FILE = wiki.doc", "DATASET.1.SEQ_LEN = 64",
        "DATASET.1.MIN_SEQ_LEN = 64", "TRAIN.BATCH_IMAGES.1 = 5",
    }  # fmt: skip
    # The rate of a step is theirs, and they count every sample that is read.
    rates = [draft.content["optimizer"]["lr_per_sample"] * batch for draft in (plain, both)]
    assert rates[1] == pytest.approx(rates[0] * (batch + 5) / batch)


def test_the_order_of_the_corpora_does_not_matter(tmp_path: Path) -> None:
    last, first = (converted(tmp_path, with_texts(MATCHING, first=first)) for first in (False, True))
    assert first.content == last.content
    assert {line.replace("DATASET.1.", "DATASET.0.") for line in first.ignored if "general" not in line} >= {
        line for line in last.ignored if line.startswith("DATASET.0.")
    }
    assert "DATASET.0.DATASET = general_corpus" in first.ignored


def test_running_text_without_masked_words_is_told_too(tmp_path: Path) -> None:
    said = settings_of(PRETRAINING)
    assert list(converted(tmp_path, said).content["components"]) == ["captions", "texts"]
    said["NETWORK"]["WITH_MLM_LOSS"] = False
    draft = converted(tmp_path, said)
    assert list(draft.content["components"]) == ["captions"]
    assert "DATASET.1.DATASET = general_corpus" in draft.ignored


def test_of_two_corpora_with_captions_the_second_is_told(tmp_path: Path) -> None:
    said = settings_of(PRETRAINING)
    said["DATASET"][1] = said["DATASET"][0] | {"DATASET": "conceptual_captions"}
    said["TRAIN"]["BATCH_IMAGES"] = [8, 5]
    draft = converted(tmp_path, said)
    assert draft.content["components"]["captions"]["records"] == 8
    assert draft.content["data"]["source"] == "multi30k"
    assert {"DATASET.1.DATASET = conceptual_captions", "TRAIN.BATCH_IMAGES.1 = 5"} <= set(draft.ignored)


def test_losses_that_a_task_does_not_have_here_are_told(tmp_path: Path) -> None:
    said = settings_of(ONE_CORPUS["words"][0])
    assert not [line for line in converted(tmp_path, said).ignored if "LOSS" in line]
    said["NETWORK"]["WITH_MLM_LOSS"] = True
    assert "NETWORK.WITH_MLM_LOSS = True" in converted(tmp_path, said).ignored


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        (MATCHING, "DATASET", [TEXTS], "nothing is learned from any entry of DATASET"),
        (MATCHING, "DATASET", "multi30k", "nothing is learned from any entry of DATASET"),
        (PRETRAINING, "DATASET", {}, "entries of DATASET: 1"),
        (MATCHING, "DATASET.LANGUAGES_USED", "third", "DATASET.LANGUAGES_USED 'third' is not supported"),
        (MATCHING, "TRAIN.LR", "fast", "TRAIN.LR 'fast' is no number"),
        (MATCHING, "NETWORK.VLBERT.hidden_size", "768", "'hidden_size' expected int, got str"),
        ("VL-BERT/vqa/base_4x16G_fp32", "DATASET.DATASET", "gqa", "DATASET 'gqa': which task is it?"),
        (ONE_CORPUS["words"][0], "NETWORK.VLBERT.MLT_vocab", None, "MLT_vocab is missing"),
        (MATCHING, "TRAIN.END_EPOCH", -1, "as a recipe: epochs: Input should be greater than 0"),
    ],
)
def test_settings_that_are_no_recipe_are_one_line_that_names_the_file(
    name: str, place: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = settings_of(name)
    *sections, last = place.split(".")
    section = said
    for part in sections:
        section = section[part]
    section[last] = value
    if value is None:
        del section[last]
    path = write_yaml(tmp_path / "c.yaml", said)
    assert run(["convert", str(path), "--to", "recipe", "--out", str(tmp_path / "r.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"[{path}]" in error
    assert [found.name for found in tmp_path.iterdir()] == ["c.yaml"]


def test_a_configuration_of_wrong_types_is_no_network_either(tmp_path: Path) -> None:
    from mmbert.compat.configs import plan_from_yaml

    said = settings()
    said["NETWORK"]["VLBERT"]["initializer_range"] = "2e-2"  # a text in YAML 1.1: its numbers have a point
    path = write_yaml(tmp_path / "c.yaml", said)
    with pytest.raises(ConfigError, match="initializer_range") as caught:
        plan_from_yaml(path, {})
    assert caught.value.where == str(path)
