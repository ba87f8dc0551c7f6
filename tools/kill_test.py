"""Kill a training run without warning, many times, and see that nothing is lost.

A small run is trained once undisturbed. Then, again and again, it is started anew, killed with SIGKILL at a random
moment (every second time while it writes a checkpoint or a model), perhaps killed again while it goes on, and let to
finish. Its final weights, the average of the weights and its best model have to equal the undisturbed run's, bit for
bit. Every kill is a real one, of a process; processes are forked from one that has loaded the libraries, since that
takes longer than the run.

    python tools/kill_test.py --kills 50

prints a line per kill and the tally, and exits with 1 where one run differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
LONGEST = 600
"""Seconds after which a run that does not end is an error."""


def write_data(folder: Path) -> None:
    """Four pictures with captions in two languages."""
    from PIL import Image

    folder.mkdir()
    rows = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
        rows.append({"file_name": f"{name}.png", "caption_en": f"all {name}", "caption_de": f"alles {name}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def recipe(data: Path, steps: int) -> dict[str, Any]:
    """Contrast, hard pairs, masked words and regions; dropout, averaging, accumulation; a checkpoint at every step."""
    config = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "hidden_dropout_prob": 0.2, "max_position_embeddings": 40, "visual_size": 32, "coordinate_frequencies": 4,
        "num_region_classes": 0, "region_regression": True, "embedding_size": 16, "max_text_tokens": 16,
        "vision": {"kind": "grid", "backbone": "test_vit", "image_size": 64},
    }  # fmt: skip
    pairs = {"itc": {}, "proxy": {}, "itm_hard": {"pairs": 4}}
    return {
        "name": "killed", "seed": 3, "steps": steps, "accumulation": 2,
        "model": {"config": config, "tokenizer": {"vocab_size": 300}},
        "components": {
            "pairs": {"data": str(data), "task": "retrieval", "objectives": pairs, "records": 3},
            "masked": {"data": str(data), "task": "pretraining", "objectives": {"mlm": {}, "mvfr": {}}, "tokens": 60},
        },
        "augment": {},
        "optimizer": {"lr": 0.01, "ema": 0.9},
        "evaluation": {"data": str(data), "every": 3},
        "save_every": 1, "log_every": 1,
    }  # fmt: skip


def train(content: dict[str, Any], out: Path) -> None:
    """The run, or what is left of it."""
    import transformers

    from mmbert.training.recipe import check_recipe
    from mmbert.training.run import train as run

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run(check_recipe(content, where="kill test"), out)


def fork(work: Callable[[], None], quiet: bool = True) -> int:
    """Do ``work`` in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if quiet:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def ended(child: int, *, wait: bool) -> int | None:
    """Exit status of a process, or None while it runs."""
    found, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    return status if found else None


def writing(out: Path) -> bool:
    """Whether something is being written aside."""
    for folder in (out, out / "state"):
        try:
            names = [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            continue
        if any(name.startswith(".writing-") for name in names):
            return True
    return False


def kill(child: int, out: Path, delay: float, in_write: bool, rng: random.Random) -> str | None:
    """Kill a run after ``delay`` seconds, or from then on as soon as it writes; where it was hit, None: it had ended."""
    until = time.monotonic() + delay
    while time.monotonic() < until or (in_write and not writing(out)):
        if ended(child, wait=False) is not None:
            return None
        time.sleep(0.0005)
    if in_write:
        time.sleep(rng.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    ended(child, wait=True)
    if writing(out):
        return "inside a write"
    return "between writes" if (out / "log.jsonl").exists() else "before the first step"


def finish(content: dict[str, Any], out: Path) -> None:
    """Let a run go on to its end.

    Raises:
        RuntimeError: it fails.
    """
    if status := ended(fork(lambda: train(content, out)), wait=True):
        raise RuntimeError(f"the run in {out} ended with status {status}")


def result(out: Path) -> dict[str, bytes]:
    """All bytes that have to be equal."""
    state = out / "state"
    last = max(state.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    files = [*(out / name / "model.safetensors" for name in ("last", "best"))]
    files += [last / "model.safetensors", last / "average.safetensors"]
    found = {str(path.relative_to(out)): path.read_bytes() for path in files}
    lines = map(json.loads, (out / "log.jsonl").read_text("utf-8").splitlines())
    timeless = [{k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")} for line in lines]
    found["log"] = json.dumps([line for line in timeless if "loss" in line]).encode()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6, help="of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    import mmbert.training.run  # noqa: F401 (the forked processes then have it)

    with tempfile.TemporaryDirectory() as holder:
        folder = Path(holder)
        write_data(folder / "data")
        content = recipe(folder / "data", args.steps)
        start = time.monotonic()
        finish(content, folder / "undisturbed")
        seconds = time.monotonic() - start
        wanted = result(folder / "undisturbed")
        tally: dict[str, int] = {}
        kills = different = runs = 0
        while kills < args.kills:
            out = folder / "killed"
            runs += 1
            for again in range(3):
                if kills == args.kills or (again and rng.random() < 0.5):
                    break
                in_write = kills % 2 == 1
                delay = rng.random() * seconds * (0.8 if in_write else 1.0)
                hit = kill(fork(lambda out=out: train(content, out)), out, delay, in_write, rng)
                if hit is None:
                    break
                kills += 1
                tally[hit] = tally.get(hit, 0) + 1
                print(f"kill {kills}: {hit}, after {delay:.2f} s", flush=True)
            finish(content, out)
            found = result(out)
            wrong = [name for name, value in wanted.items() if found.get(name) != value]
            if wrong:
                different += 1
                print(f"DIFFERENT after kill {kills}: {', '.join(wrong)}", flush=True)
            shutil.rmtree(out)
        where = ", ".join(f"{count} {name}" for name, count in sorted(tally.items()))
        print(f"{kills} kills ({where}) of {runs} runs; {runs - different} ended bit for bit as the undisturbed one")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
