"""Every name of the goldens, converted by the public converter and run through our public classes.

The folder is ``MMBERT_GOLDENS`` (default: ``shared/goldens`` beside the repository). Columns that its README calls
meaningless are left out by rule: positions past the end of a sequence (``Golden.streams``) and, for what is given to
the encoder, text columns without a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from goldens_decoder import golden_named
from tiny import KnownRegions, Picture

import goldens
from goldens import Golden, difference, metas, ours, stored_names
from mmbert import MMBert
from mmbert.compat.convert import convert_back
from mmbert.compat.writing import writer_of
from mmbert.vision.regions import Regions

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(
    not metas(), reason=f"no goldens in {goldens.FOLDER.name}: set MMBERT_GOLDENS to their folder"
)
COUNTS: dict[str, int] = {}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("goldens")


@pytest.fixture(scope="module", autouse=True)
def total() -> Iterator[None]:
    yield
    print(f"\ngoldens: {len(COUNTS)} names, {sum(COUNTS.values())} tensors compared")


@pytest.fixture(scope="module")
def known(work: Path) -> dict[str, Golden]:
    return {name: golden_named(name, work) for name in metas()}


def test_every_stored_name_is_described() -> None:
    assert stored_names() <= set(metas())


@pytest.mark.parametrize("name", sorted(metas()))
def test_the_converted_network_computes_what_the_original_does(known: dict[str, Golden], name: str) -> None:
    golden = known[name]
    wrong = []
    for output, wanted in golden.outputs.items():
        found, there = ours(golden, output, wanted)
        apart, allowed = difference(found, wanted, there), golden.tolerance(output, wanted)
        if apart > allowed:
            wrong.append(f"{output}: {apart:.2e} > {allowed:.0e}")
    assert not wrong
    if "generated_sentences" in golden.meta.get("text", {}):
        assert golden.sentences() == golden.meta["text"]["generated_sentences"]
    COUNTS[name] = len(golden.outputs) + COUNTS.get(name, 0)


def written(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the converted model writes, from texts (by names, as the stored ids are no pieces of words) and images."""
    bert = MMBert.from_pretrained(golden.folder, device="cpu")
    seen, sources = [], {}
    text = "text_en" if "text_en" in golden.meta["inputs"] else "text"
    for row, (boxes, info, ids) in enumerate(zip(*map(golden.given, ("boxes", "im_info", text)), strict=True)):
        valid = boxes[boxes[:, 0] > -1.5].numpy()
        seen.append(Picture(f"image {row}", Regions(valid[:, :4], valid[:, 4:], tuple(info[:2].tolist()))))
        sources[f"text {row}"] = ids[(ids > 0) & ((ids == golden.tokenizer.mask_token_id).cumsum(0) == 0)].numpy()
    monkeypatch.setattr(bert.processor, "images", KnownRegions(seen))
    monkeypatch.setattr(bert.processor, "ids", sources.__getitem__)
    return [found.text for (found,) in writer_of(bert).write(list(sources), [each.ref for each in seen])]


def test_a_writer_writes_what_the_original_wrote(known: dict[str, Golden], monkeypatch: pytest.MonkeyPatch) -> None:
    golden = known["mm_mt_generate"]
    assert written(golden, monkeypatch) == golden.meta["text"]["generated_sentences"]


def test_an_encoder_decoder_writes_what_the_original_wrote(
    known: dict[str, Golden], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the longest row alone: what stands beside the others is padding there, and none here."""
    golden = known["mm_mt_encdec_generate"]
    row = int(((golden.given("text_en") > 0).sum(1) + (golden.given("boxes")[:, :, 0] > -1.5).sum(1)).argmax())
    assert written(golden, monkeypatch)[row] == golden.meta["text"]["generated_sentences"][row]


@pytest.mark.parametrize("name", sorted(metas()))
def test_converting_back_gives_the_originals_state_dict(known: dict[str, Golden], name: str, work: Path) -> None:
    path = work / f"{name}.back.model"
    convert_back(known[name].folder, path)
    back, state = (torch.load(p, weights_only=True)["state_dict"] for p in (path, known[name].checkpoint))
    path.unlink()
    assert list(back) == list(state)
    assert all(back[key].dtype == state[key].dtype and torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", sorted(n for n, m in metas().items() if m.get("grad_norms")))
def test_gradients_are_those_of_the_original(known: dict[str, Golden], name: str) -> None:
    golden = known[name]
    found = golden.our_gradients
    wrong = []
    for key, wanted in golden.gradients.items():
        without_path = torch.zeros_like(wanted)  # where the originals multiply by zero, ours has no path at all
        apart, allowed = difference(found.get(key, without_path), wanted), golden.tolerance(key, wanted)
        if apart > allowed:
            wrong.append(f"{key}: {apart:.2e} > {allowed:.0e}")
    for key, norm in golden.meta["grad_norms"].items():
        if key in golden.meta["aliases"]:
            continue
        length = float(found[key].norm()) if key in found else 0.0
        if (norm or 0.0) != pytest.approx(length, rel=golden.relative, abs=2e-6):
            wrong.append(f"norm of {key}: {length} instead of {norm}")
    assert not wrong
    COUNTS[name] = len(golden.gradients) + COUNTS.get(name, 0)
