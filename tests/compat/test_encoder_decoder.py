"""MM-BERT's encoder-decoder: converted and back bit by bit, and right in the way that the original is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from originals import SMALL, WORDS, Sizes, pretraining_shapes, random_state, settings, write_checkpoint, write_yaml
from torch import Tensor

from mmbert import MMBert
from mmbert.api.writer import Writer, Written
from mmbert.cli.main import run
from mmbert.compat.convert import UNREAD, convert, convert_back
from mmbert.compat.encoder_decoder import OriginalEncoderDecoder
from mmbert.compat.writing import writer_of
from mmbert.data.packing import Example, collate
from mmbert.errors import CheckpointError, UsageError
from mmbert.model.conditional_generation import MMBertForConditionalGeneration
from mmbert.model.packed import SequenceSpec, pack

LAYERS = 2


def shapes(sizes: Sizes = SMALL) -> dict[str, tuple[int, ...]]:
    """Keys and shapes as MM-BERT saved them, those that it never reads among them."""
    h, i, v = sizes.hidden, sizes.intermediate, sizes.vocabulary
    found = pretraining_shapes(sizes, match=0, mvrc=False, mlm=False, text_only=False)
    trunk = ("word_embeddings", "position_embeddings", "token_type_embeddings", "end_embedding", "embedding_LayerNorm",
             "visual_ln_text", "visual_ln_object", "visual_1x1_text", "visual_1x1_object")  # fmt: skip
    made = {
        k.replace("vlbert.", "decoder."): s
        for k, s in found.items()
        if k.startswith(tuple(f"vlbert.{t}." for t in trunk))
    }
    inner = "decoder.decoder."
    made |= {f"{inner}embeddings.word_embeddings.weight": (v, h), f"{inner}pooler.dense.weight": (h, h)}
    made |= {f"{inner}embeddings.position_embeddings.weight": (sizes.positions, h), f"{inner}pooler.dense.bias": (h,)}
    made |= {f"{inner}embeddings.token_type_embeddings.weight": (2, h)}
    linear, norms = {}, [f"{inner}embeddings.LayerNorm", "decoder.mlm_head.predictions.transform.LayerNorm"]
    for n in range(LAYERS):
        layer = f"{inner}encoder.layer.{n}."
        for kind in ("attention", "crossattention"):
            linear |= {f"{layer}{kind}.self.{name}": (h, h) for name in ("query", "key", "value")}
            linear[f"{layer}{kind}.output.dense"] = (h, h)
            norms.append(f"{layer}{kind}.output.LayerNorm")
        linear |= {f"{layer}intermediate.dense": (i, h), f"{layer}output.dense": (h, i)}
        norms.append(f"{layer}output.LayerNorm")
    linear["decoder.mlm_head.predictions.transform.dense"] = (h, h)
    for name, shape in linear.items():
        made |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        made |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
    return found | made | {"decoder.mlm_head.predictions.bias": (v,)}


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    state = random_state(shapes())
    state["decoder.mlm_head.predictions.decoder.weight"] = state["decoder.word_embeddings.weight"]
    return state


@pytest.fixture(scope="module")
def converted(original: dict[str, Tensor], words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encdec")
    content = settings(WITH_REL_LOSS=False, WITH_MVRC_LOSS=False)
    content |= {"MODULE": "ResNetVLBERTForPretrainingEncDec", "DATASET": {"DATASET": "multi30k_decoder"}}
    content["NETWORK"]["VLBERT"]["with_pooler"] = False
    config = write_yaml(folder / "c.yaml", content)
    report = convert(write_checkpoint(folder / "m.model", original), folder / "out", config=config, tokenizer=words)
    assert report.task == "encoder-decoder"
    assert not report.leftover
    assert not report.missing
    return folder / "out"


def test_it_comes_back_bit_by_bit(converted: Path, original: dict[str, Tensor], tmp_path: Path) -> None:
    convert_back(converted, tmp_path / "back.model")
    back = torch.load(tmp_path / "back.model", weights_only=True)["state_dict"]
    assert list(back) == list(original)
    assert all(torch.equal(back[key], value) for key, value in original.items())


def test_what_the_original_never_reads_is_no_part_of_the_model(converted: Path) -> None:
    assert (converted / UNREAD).is_file()
    model, report = MMBertForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(report.values())
    assert model.config.num_decoder_layers == LAYERS


def test_without_its_decoder_it_is_refused(original: dict[str, Tensor], words: Path, tmp_path: Path) -> None:
    part = {k: v for k, v in original.items() if "layer.1.crossattention.self.key" not in k}
    path = write_checkpoint(tmp_path / "m.model", part)
    with pytest.raises(CheckpointError, match=r"missing: .*layer\.1\.crossattention\.self\.key"):
        convert(path, tmp_path / "out", task="encoder-decoder", tokenizer=words, settings={"num_attention_heads": 2})


def texts(*changed: tuple[int, int]) -> list[SequenceSpec]:
    ids = np.array([2, 6, 7, 8, 9, 3])
    for place, token in changed:
        ids[place] = token
    return [SequenceSpec(ids), SequenceSpec(np.array([2, 10, 3]))]


def decoded(model: MMBertForConditionalGeneration, targets: list[SequenceSpec]) -> Tensor:
    """[2, L, H] the way of the original."""
    runner, source = (
        OriginalEncoderDecoder(model),
        pack([SequenceSpec(np.array([2, 5, 6, 3])), SequenceSpec(np.array([2, 5, 3]))]),
    )
    with torch.no_grad():
        return runner.decode(pack(targets), runner.encode(source, None).last, None).last


def test_the_originals_decoder_sees_what_comes_later_and_ours_does_not(converted: Path) -> None:
    model = MMBertForConditionalGeneration.from_pretrained(converted).eval()
    before, after = decoded(model, texts()), decoded(model, texts((4, 11)))
    assert float((before - after)[0, :4].abs().max()) > 1e-2
    source = np.array([2, 5, 6, 3])
    ours = []
    for spec in (texts()[0], texts((4, 11))[0]):
        with torch.no_grad():
            ours.append(model(collate([Example(source, written=spec.token_ids)])).logits)
    assert torch.equal(ours[0][:4], ours[1][:4])
    assert float((ours[0] - ours[1])[4:].abs().max()) > 1e-3


def test_a_batchs_padding_changes_the_originals_answer(converted: Path) -> None:
    """Which is why the mode pads: the shorter row, beside a longer one, is not what it is alone."""
    model = MMBertForConditionalGeneration.from_pretrained(converted).eval()
    runner = OriginalEncoderDecoder(model)
    beside = decoded(model, texts())[1, :3]
    with torch.no_grad():
        source = runner.encode(pack([SequenceSpec(np.array([2, 5, 3]))]), None).last
        alone = runner.decode(pack(texts()[1:]), source, None).last[0, :3]
    assert float((beside - alone).abs().max()) > 1e-2


SOURCES = ["a dog", "the red dogs in the snow", "ein hund", "a ball", ""]


@pytest.fixture(scope="module")
def writing(original: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted with a vocabulary that has ``[STOP]``, as published ones have in the place of an unused entry."""
    folder = tmp_path_factory.mktemp("writing")
    (folder / "words").mkdir()
    (folder / "words" / "vocab.txt").write_text("\n".join([*WORDS[:-1], "[STOP]"]), "utf-8")
    path = write_checkpoint(folder / "x.model", original)
    options = {"tokenizer": folder / "words", "settings": {"num_attention_heads": 2}}
    convert(path, folder / "model", task="encoder-decoder", **options)  # type: ignore[arg-type]
    return folder / "model"


def test_a_text_is_written_as_the_original_writes_it_alone(writing: Path) -> None:
    bert = MMBert.from_pretrained(writing, device="cpu")
    writer = writer_of(bert)
    together = writer.write(SOURCES, max_tokens=12)
    runner, tokenizer = OriginalEncoderDecoder(bert.model), bert.processor.tokenizer
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_token_id") for name in ("cls", "mask", "sep")}
    for source, (found,) in zip(SOURCES, together, strict=True):
        spec = SequenceSpec(bert.processor.ids(source), 0)
        alone = runner.generate([spec], regions=None, stop_id=WORDS.index("."), max_steps=12, **ids)
        assert found.text == tokenizer.decode(alone.tokens()[0], skip_special_tokens=True).strip()
        assert found.score == pytest.approx(alone.scores()[0], abs=1e-4)
        assert writer.write([source], max_tokens=12)[0] == [Written(found.text, pytest.approx(found.score, abs=1e-4))]
    assert len({found.text for (found,) in together}) > 1


def test_the_commands_write_with_it(writing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(SOURCES[:-1]) + "\n", "utf-8")
    assert run(["translate", str(tmp_path / "a.txt"), "--model", str(writing)]) == 0
    writer = writer_of(MMBert.from_pretrained(writing, device="cpu"))
    assert capsys.readouterr().out.splitlines() == [found.text for (found,) in writer.write(SOURCES[:-1])]
    assert run(["translate", str(tmp_path / "a.txt"), "--model", str(writing), "--beam", "2"]) == 2
    assert "writes greedily" in capsys.readouterr().err


def test_it_writes_in_no_other_way(writing: Path, converted: Path) -> None:
    """Neither one word behind the other, as decoders trained here, nor without a [STOP] in the vocabulary."""
    with pytest.raises(UsageError, match=r"reads \[MASK\] as MM-BERT's did, which mmbert\.compat\.writing does"):
        Writer(MMBert.from_pretrained(writing, device="cpu"))
    with pytest.raises(UsageError, match="does not write"):
        writer_of(MMBert.from_pretrained(converted, device="cpu"))


def test_a_source_that_leaves_no_room_is_refused(writing: Path) -> None:
    bert = MMBert.from_pretrained(writing, device="cpu")
    bert.processor.max_text_tokens = 100
    writer = writer_of(bert)
    longest = " ".join(["dog"] * (SMALL.positions - 4))  # [CLS], [SEP], [END] and the place that it leaves free
    assert writer.write([longest], max_tokens=3)
    with pytest.raises(UsageError, match=f"{SMALL.positions - 1} pieces leaves no room") as caught:
        writer.write([longest + " dog"])
    assert f"to {SMALL.positions - 2} pieces or less" in str(caught.value.hint)
    assert writer.write(["dog"], max_tokens=100)  # as many as its positions allow
