"""Is a small model better than each word's most frequent translation? (text alone, MLT in German and French)

Trains the recipe `lexical-translation-joint` on the training rows, chosen by validation, and measures it on the test
sets of 2016, 2017 and 2018 beside the most frequent translation in the same rows: with the forms that occur in
sentences, which the model learns, and with what the rows give (dictionary forms). CPU seconds of training come first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from _common import report

from mmbert import MMBert
from mmbert.cli.common import silence_libraries
from mmbert.data.sources import open_data
from mmbert.evaluation.lexical import evaluate_lexical
from mmbert.training.recipe import load_recipe
from mmbert.training.run import train

SPLITS = ("validation", "test_2016", "test_2017", "test_2018")


def main() -> None:
    """Train (or take) a model per language and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="German only, 40 steps, one test set")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mlt")
    parser.add_argument(
        "--runs", type=Path, help="folder with finished runs by language (RUNS/de), instead of training"
    )
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"left out: no folder {options.data} with the rows of MLT")
        return
    silence_libraries()
    for language in ("de",) if options.quick else ("de", "fr"):
        data = {"source": "mlt", "root": str(options.data), "language": language}
        with tempfile.TemporaryDirectory() as folder:
            run = options.runs / language if options.runs else trained(data, Path(folder), quick=options.quick)
            measure(MMBert.from_pretrained(run / "best", device="cpu"), data, SPLITS[1:2] if options.quick else SPLITS)


def trained(data: dict[str, str], folder: Path, *, quick: bool) -> Path:
    """The run's folder; prints the CPU seconds that it took, reading and tokenizer included."""
    validation = {**data, "split": "validation"}
    settings = [f"data={json.dumps(data)}", f"evaluation.data={json.dumps(validation)}"]
    if quick:
        settings += ["steps=40", "epochs=null", "evaluation.every=40"]
    start = time.process_time()
    result = train(load_recipe("lexical-translation-joint", settings), folder / "run")
    seconds = round(time.process_time() - start, 1)
    print(json.dumps({"training": data["language"], "cpu_seconds": seconds}), flush=True)
    return result.folder


def measure(model: MMBert, data: dict[str, str], splits: tuple[str, ...]) -> None:
    """Accuracy in percent on each split, both ways."""
    for split in splits:
        source = open_data({**data, "split": split})
        records = [source[number] for number in range(len(source))]
        for as_given in (False, True):
            # Validation rows give dictionary forms; what occurs is compared with what occurs.
            answers = "occurring" if split == "validation" and not as_given else "given"
            found = evaluate_lexical(model, records, answers=answers, as_given=as_given).report()
            figure = f"lexical_translation_{data['language']}_{split}{'_as_given' if as_given else ''}"
            peer = "most frequent translation in the training rows"
            report(figure, 100 * found["without_image"], "%", peer, 100 * found["majority"], more_is_better=True)


if __name__ == "__main__":
    main()
