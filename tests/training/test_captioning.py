"""The recipe captioning: the shipped model learns to write captions of pictures that it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmbert.cli.main import run
from mmbert.training.recipe import load_recipe
from mmbert.training.run import train
from scenes import GROUNDS, Composer

SAID = {
    "owl": {"en": "an owl at night", "de": "eine Eule in der Nacht"},
    "banana": {"en": "a yellow banana", "de": "eine gelbe Banane"},
}


@pytest.mark.slow
def test_it_writes_the_captions_it_was_taught_in_the_language_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    composer, lines = Composer(size=96), []
    for name, captions in SAID.items():
        scene = composer.compose(np.random.default_rng(1), [name], grid=(1, 1), ground=GROUNDS[0])
        scene.image.save(tmp_path / f"{name}.png")
        lines.append({"file_name": f"{name}.png"} | {f"caption_{code}": text for code, text in captions.items()})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = [
        f"data={tmp_path}",
        "epochs=null",
        "steps=200",
        "components.captions.options.caption_rate=1.0",
        "components.captions.objectives.lm.label_smoothing=0.0",
        "optimizer.lr=1.0e-3",
        "optimizer.table_lr=6.0e-3",
        "optimizer.ema=0",
        "precision=fp32",
    ]
    result = train(load_recipe("captioning", settings), tmp_path / "run")
    for language in ("en", "de"):
        pictures = [str(tmp_path / f"{name}.png") for name in SAID]
        capsys.readouterr()
        assert run(["caption", *pictures, "--model", str(result.model), "--to", language, "--beam", "1"]) == 0
        written = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
        assert written == {path: SAID[name][language] for path, name in zip(pictures, SAID, strict=True)}
