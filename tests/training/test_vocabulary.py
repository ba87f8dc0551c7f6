"""Vocabulary surgery: entries behind the old ones, whose ids, rows and biases stay bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from originals import SMALL, WORDS
from starts import SIZES, small_bert, start
from torch import Tensor

from mmbert import MMBert, MMBertConfig, MMBertForPreTraining, MMBertProcessor
from mmbert.errors import ConfigError
from mmbert.text.tokenizer import train_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bert(tmp_path_factory.mktemp("bert"))


OLD_TEXTS = ["the dogs run in the snow", "ein hund, two red balls", "a cat."]


def rows_of(bert: MMBert) -> tuple[Tensor, Tensor]:
    return bert.model.trunk.embeddings.words.weight.detach(), bert.model.token_head.bias.detach()


def check_old_entries(before: MMBert, after: MMBert, texts: list[str]) -> int:
    """Old ids, rows and biases are what they were; returns how many there are."""
    old, new = before.processor.tokenizer, after.processor.tokenizer
    count = len(old)
    assert {k: v for k, v in new.get_vocab().items() if v < count} == old.get_vocab()
    for one, other in zip(rows_of(before), rows_of(after), strict=True):
        assert torch.equal(one[:count], other[:count])
    for text in texts:
        assert new(text)["input_ids"] == old(text)["input_ids"]
    assert after.config.vocab_size == len(new)
    return count


def test_a_special_token_is_added_behind_the_old_entries(bert: Path, tmp_path: Path) -> None:
    before, after = (
        start({"text": str(bert)}, tokenizer={"add_special": added}) for added in ([], ["[STOP]", "[SEP]"])
    )
    count = check_old_entries(before, after, OLD_TEXTS)
    assert len(after.processor.tokenizer) == count + 1
    assert after.processor.tokenizer("dog[STOP]", add_special_tokens=False)["input_ids"] == [WORDS.index("dog"), count]
    assert not torch.equal(rows_of(after)[0][count], torch.zeros(SMALL.hidden))
    after.save_pretrained(tmp_path / "saved")
    loaded = MMBert.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.processor.tokenizer("[STOP]", add_special_tokens=False)["input_ids"] == [count]
    assert torch.equal(rows_of(loaded)[0], rows_of(after)[0])


def test_pieces_of_a_new_language_start_as_the_mean_of_what_they_were(bert: Path, tmp_path: Path) -> None:
    pieces = ["runs", "ውሻ", "##ዎች"]
    (tmp_path / "pieces.txt").write_text("\n".join(pieces), "utf-8")
    before = start({"text": str(bert)})
    after = start({"text": str(bert)}, tokenizer={"add_pieces": str(tmp_path / "pieces.txt")})
    count = check_old_entries(before, after, OLD_TEXTS)
    tokenizer = after.processor.tokenizer
    assert tokenizer.tokenize("ውሻዎች runs") == ["ውሻ", "##ዎች", "runs"]
    assert before.processor.tokenizer.tokenize("ውሻዎች") == ["[UNK]"]
    old, new = rows_of(before)[0], rows_of(after)[0]
    torch.testing.assert_close(new[count], (old[WORDS.index("run")] + old[WORDS.index("##s")]) / 2)
    assert not torch.equal(new[count + 1], old[WORDS.index("[UNK]")])
    after.save_pretrained(tmp_path / "saved")
    loaded = MMBert.from_pretrained(tmp_path / "saved", device="cpu").processor.tokenizer
    assert loaded("ውሻዎች runs")["input_ids"] == tokenizer("ውሻዎች runs")["input_ids"]


def test_pieces_are_added_to_a_trained_model_and_its_unigram_tokenizer(tmp_path: Path) -> None:
    texts = ["ein Hund im Schnee", "zwei Hunde", "a dog in the snow", "two dogs"] * 5
    tokenizer = train_tokenizer(texts, vocab_size=60)
    config = MMBertConfig(
        vocab_size=len(tokenizer), visual_size=16, region_feature_size=4, coordinate_frequencies=2, **SIZES
    )
    MMBert(MMBertForPreTraining(config), MMBertProcessor(tokenizer, config)).save_pretrained(tmp_path / "m")
    before = start(str(tmp_path / "m"))
    after = start(str(tmp_path / "m"), tokenizer={"add_pieces": ["▁ውሻ", "▁Schneehund"], "add_special": ["[STOP]"]})
    count = check_old_entries(before, after, ["ein Hund", "two dogs in the snow"])
    assert after.processor.tokenizer.tokenize("ውሻ") == ["▁ውሻ"]
    assert len(after.processor.tokenizer) == count + 3
    cut = before.processor.tokenizer("Schneehund", add_special_tokens=False)["input_ids"]
    known = [i for i in cut if i != before.processor.tokenizer.unk_token_id]
    row = after.processor.tokenizer.get_vocab()["▁Schneehund"]
    torch.testing.assert_close(rows_of(after)[0][row], rows_of(before)[0][known].mean(0))


def test_entries_that_are_there_already_change_nothing(bert: Path) -> None:
    made = start({"text": str(bert)}, tokenizer={"add_special": ["[MASK]"], "add_pieces": ["dog", "##s"]})
    assert made.config.vocab_size == len(WORDS)


@pytest.mark.parametrize("piece", ["Hund", "two dogs"])
def test_a_piece_that_could_never_be_used_is_refused(bert: Path, piece: str) -> None:
    with pytest.raises(ConfigError, match=f"'{piece}' would never be used"):
        start({"text": str(bert)}, tokenizer={"add_pieces": [piece]})
