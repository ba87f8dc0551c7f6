"""How long does `mmbert convert` take for a VL-BERT checkpoint of base size (735 MB), and how much memory?

The peer is the least that PyTorch and safetensors can do: read the tensors and write them out again, without looking
at them. Both run as processes of their own; memory is the most that each had in RAM, interpreter and libraries too.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import VOCABULARY, arguments, in_turn, report
from transformers.utils import logging

from mmbert.compat.convert import convert_back
from mmbert.model.configuration import MMBertConfig
from mmbert.model.modeling import MMBertForPreTraining

PEER = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)["state_dict"]
del state["vlbert.mlm_head.predictions.decoder.weight"]
save_file(state, sys.argv[2])
"""


def make_checkpoint(folder: Path, layers: int) -> None:
    """A pre-training checkpoint with random weights, and a folder with a vocabulary."""
    logging.disable_progress_bar()
    model = MMBertForPreTraining(MMBertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers))
    model.save_pretrained(folder / "ours")
    convert_back(folder / "ours", folder / "base.model")
    shutil.rmtree(folder / "ours")
    (folder / "words").mkdir()
    (folder / "words" / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")))


def peak_memory(command: list[str]) -> int:
    """Run a process; the most bytes that it had in RAM."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return usage.ru_maxrss * 1024


def main() -> None:
    args = arguments(__doc__, "two layers instead of twelve, one round")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In a process of its own: Linux counts what the parent has in RAM as its children's, at their start.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_checkpoint, args=(folder, 2 if args.quick else 12)
        )
        maker.start()
        maker.join()
        checkpoint, words, out = folder / "base.model", folder / "words", folder / "out"
        size = checkpoint.stat().st_size
        options = [str(checkpoint), "--task", "pretraining", "--tokenizer", str(words), "--out", str(out)]
        commands = {
            "ours": [sys.executable, "-m", "mmbert", "convert", *options],
            "peer": [sys.executable, "-c", PEER, str(checkpoint), str(out)],
        }
        memory: dict[str, int] = {}

        def runner(name: str) -> None:
            memory[name] = max(memory.get(name, 0), peak_memory(commands[name]))
            shutil.rmtree(out) if out.is_dir() else out.unlink()

        seconds = in_turn(1 if args.quick else 3, {name: lambda name=name: runner(name) for name in commands})
    peer = "torch.load and safetensors' save_file"
    report(f"convert a checkpoint of {size / 1e6:.0f} MB", seconds["ours"], "s", peer, seconds["peer"])
    report("peak memory, times the checkpoint's size", memory["ours"] / size, "times", peer, memory["peer"] / size)


if __name__ == "__main__":
    main()
