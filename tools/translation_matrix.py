"""Train and measure the translation models of docs/translation.md on Multi30k: the table of that page.

English to German by the recipe ``translation``; six directions in one model by ``translation-many``; and each of the six
by ``translation`` with a third of the latter's epochs. What is done is kept in the output folder: the same command goes
on, also in the middle of a training. Weights and length penalty are chosen on the validation set, tests are read once.

    mmbert data prepare multi30k --from multi30k-dataset/data --out stores/multi30k
    python tools/translation_matrix.py --data stores/multi30k --out runs/matrix             # everything: some hours
    python tools/translation_matrix.py --data stores/multi30k --out runs/matrix --only en-de --only many
    python tools/translation_matrix.py --data stores/multi30k --out runs/matrix --table     # what is there so far
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEAM = 5
PENALTIES = (0.6, 1.0, 1.4)
TESTS = ("test_2016", "test_2018")
THROUGH, OTHERS = "en", ("de", "fr", "cs")
DIRECTIONS = [pair for other in OTHERS for pair in ((THROUGH, other), (other, THROUGH))]
MANY = "many"
SHARE = 3


@dataclass(frozen=True)
class Run:
    """One model.

    Attributes:
        name: of its folder.
        recipe: that trains it.
        directions: (from, to) that are measured.
        languages: of the data.
        settings: that win over the recipe's.
    """

    name: str
    recipe: str
    directions: list[tuple[str, str]]
    languages: list[str]
    settings: list[str] = field(default_factory=list)


def runs() -> list[Run]:
    """All models, in the order in which they matter."""
    from mmbert.training.recipe import load_recipe

    epochs = load_recipe("translation-many").epochs
    assert epochs is not None
    found = [
        Run("en-de", "translation", [("en", "de")], ["en", "de"]),
        Run(MANY, "translation-many", DIRECTIONS, [THROUGH, *OTHERS]),
    ]
    for source, target in DIRECTIONS:
        settings = [
            f"epochs={epochs / SHARE:g}",
            f"model.tokenizer.add_special=['[2{target}]']",
            f"components.pairs.options={{sources: [{source}], targets: [{target}]}}",
            f"evaluation.options={{source: {source}, target: {target}, beam: 1, limit: 300}}",
        ]
        found.append(Run(f"third-{source}-{target}", "translation", [(source, target)], [source, target], settings))
    return found


def train(run: Run, folder: Path, data: str, processes: int, further: list[str]) -> None:
    """Train a model, or go on with it; notes what it cost.

    Raises:
        SystemExit: it was stopped or failed.
    """
    if (folder / "metrics.json").is_file():
        return
    source = f"data={{source: prepared, root: '{data}', languages: [{', '.join(run.languages)}]}}"
    start = ["launch", "--nproc", str(processes)] if processes > 1 else ["train"]
    steps = [f"accumulation={max(1, 2 // processes)}"]  # a step is two batches of the recipe, whoever computes them
    command = [sys.executable, "-m", "mmbert", *start, run.recipe, "--out", str(folder), source]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([*command, *steps, *run.settings, *further], check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "wall_seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cost.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(cost) + "\n")
    if done.returncode:
        raise SystemExit(f"{run.name}: stopped; the same command goes on")


def measure(run: Run, folder: Path, data: str) -> None:
    """Choose the length penalty on the validation set, then translate the tests once."""
    from mmbert.api.front_door import MMBert
    from mmbert.data.sources import open_data
    from mmbert.evaluation.translation import evaluate_translation

    best = folder / "best"
    model = MMBert.from_pretrained(best if best.exists() else folder / "last")
    splits = {}
    for split in ("validation", *TESTS):
        source = open_data(f"{data}:{split}")
        splits[split] = [source[i] for i in range(len(source))]
    written = folder / "scores.json"
    scores: dict[str, Any] = json.loads(written.read_text("utf-8")) if written.is_file() else {}
    for read, target in run.directions:
        own = scores.setdefault(f"{read}-{target}", {})

        def figures(split: str, penalty: float, read: str = read, target: str = target) -> dict[str, Any]:
            began = time.monotonic()
            result = evaluate_translation(
                model, splits[split], source=read, target=target, beam=BEAM, length_penalty=penalty
            )
            return {**result.report, "length_penalty": penalty, "seconds": round(time.monotonic() - began, 1)}

        if "validation" not in own:
            own["validation"] = max((figures("validation", p) for p in PENALTIES), key=lambda f: f["BLEU"])
        for split in TESTS:
            if split not in own:
                own[split] = figures(split, own["validation"]["length_penalty"])
            written.write_text(json.dumps(scores, indent=1), "utf-8")


def table(found: list[tuple[Run, Path]]) -> list[str]:
    """What has been measured so far, as Markdown."""
    scores = {
        run.name: json.loads((folder / "scores.json").read_text("utf-8"))
        for run, folder in found
        if (folder / "scores.json").is_file()
    }
    lines = [
        f"| from | to | model | length penalty | validation | {' | '.join(f'{t} BLEU | chrF' for t in TESTS)} |",
        "|---|---|---|---|---|" + "---|---|" * len(TESTS),
    ]
    signatures = set()
    for name, directions in scores.items():
        for direction, own in directions.items():
            if not all(split in own for split in ("validation", *TESTS)):
                continue
            read, target = direction.split("-")
            first = [read, target, name, f"{own['validation']['length_penalty']}", f"{own['validation']['BLEU']:.2f}"]
            rest = [f"{own[test][figure]:.2f}" for test in TESTS for figure in ("BLEU", "chrF")]
            lines.append(f"| {' | '.join([*first, *rest])} |")
            signatures |= {f"sacreBLEU `{own[TESTS[0]]['BLEU_signature']}`, chrF `{own[TESTS[0]]['chrF_signature']}`"}
    worst = [
        own[TESTS[0]]["BLEU"] - scores[f"third-{direction}"][direction][TESTS[0]]["BLEU"]
        for direction, own in scores.get(MANY, {}).items()
        if TESTS[0] in own and TESTS[0] in scores.get(f"third-{direction}", {}).get(direction, {})
    ]
    lines += ["", *sorted(signatures)]
    if worst:
        lines.append(f"worst difference of {MANY} to a model of one direction: {min(worst):+.2f} BLEU ({TESTS[0]})")
    for run, folder in found:
        if (folder / "cost.jsonl").is_file():
            costs = [json.loads(line) for line in (folder / "cost.jsonl").read_text("utf-8").splitlines()]
            cpu, wall = (sum(c[key] for c in costs) / 60 for key in ("cpu_seconds", "wall_seconds"))
            lines.append(f"{run.name}: {cpu:.1f} minutes of one core, {wall:.1f} minutes by the clock")
    return lines


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the prepared store")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="one of the runs (repeat for more): en-de, many, third-en-de ...",
    )
    parser.add_argument("--processes", type=int, default=2, help="of a training")
    parser.add_argument("--table", action="store_true", help="print what has been measured, and end")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="win over the recipes' (for a trial)")
    given = parser.parse_args()
    chosen = runs()
    unknown = sorted(set(given.only or ()) - {run.name for run in chosen})
    if unknown:
        parser.error(f"no run {unknown[0]!r}: {', '.join(run.name for run in chosen)}")
    found = [(run, given.out / run.name) for run in chosen if given.only is None or run.name in given.only]
    for run, folder in found if not given.table else ():
        train(run, folder, given.data, given.processes, given.settings)
        measure(run, folder, given.data)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
