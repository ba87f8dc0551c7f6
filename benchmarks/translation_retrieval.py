"""Does a small encoder trained from scratch find translations better than a bag of embeddings and IBM model 1?

Trains the recipes `translation-retrieval` and `translation-retrieval-pairs` on the 29,000 English-German pairs of
Multi30k (task 1, text alone) and asks for the translation of each of the 1,000 sentences of test_2016_flickr, in both
directions: among the 1,000, and with the 29,000 training sentences as distractors. Both baselines learn from the same
text; their formulas are in `_parallel.py`. Checkpoints and weights are chosen on the validation pairs.

`translation_retrieval` and `translation_retrieval_distractors`: errors at rank 1 of the 2,000 questions, of our cosine
and of the better baseline; `…_vs_bag` and `…_vs_model_one` say with what share of 10,000 resamples of the questions
(a paired bootstrap) ours is not ahead. `…_reranked`: the errors after the best 20 were put in order by cosine, match
logit and hubness, against the cosine's; once also without hubness. Seconds are those of the training's processors (user
and system), and by the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import report
from _parallel import BagOfEmbeddings, ModelOne

from mmbert.api.front_door import MMBert
from mmbert.data.records import Record
from mmbert.data.sources import open_data
from mmbert.evaluation import ranks
from mmbert.evaluation.translation_retrieval import Side, TranslationRetrieval, build_sides
from mmbert.training.recipe import load_recipe
from mmbert.training.run import train

STAGES = ("translation-retrieval", "translation-retrieval-pairs")
RERANK = 20
RESAMPLES = 10_000
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "multi30k"
PAIR = ("en", "de")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pairs, to see that all of it runs")
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of Multi30k that holds task1")
    parser.add_argument("--model", help="a model that was trained so before, instead of training")
    parser.add_argument("--out", type=Path, help="where the run is kept; else it is thrown away")
    return parser.parse_args()


def corpus(root: Path, split: str, most: int | None = None) -> list[Record]:
    """A split's English and German."""
    source = open_data({"source": "multi30k", "root": str(root), "split": split, "languages": list(PAIR)})
    return [source[i] for i in range(min(len(source), most or len(source)))]


def train_ours(root: Path, out: Path, quick: bool) -> str:
    """Both stages; the folder of the second's model. Prints what they took."""
    data = {"source": "multi30k", "root": str(root), "languages": list(PAIR)}
    overrides = [
        f"data={json.dumps(data | {'split': 'train'})}",
        f"evaluation.data={json.dumps(data | {'split': 'validation'})}",
    ]
    first = list(overrides)
    if quick:
        overrides += ["steps=3", "epochs=null", "components.pairs.records=64", "evaluation.every=3"]
        sizes = {"hidden_size": 32, "num_attention_heads": 2, "visual_size": 32, "embedding_size": 32}
        first = [*overrides, *(f"model.config.{key}={value}" for key, value in sizes.items())]
        first.append("model.tokenizer.vocab_size=1000")
    folder = ""
    for stage in STAGES:
        start, before = time.perf_counter(), _processor_seconds()
        started = [*overrides, f"model.init={folder}"] if folder else first
        folder = str(train(load_recipe(stage, started), out / stage, resume=False).model)
        used, taken = _processor_seconds() - before, time.perf_counter() - start
        print(
            json.dumps({"trained": stage, "processor_seconds": round(used), "clock_seconds": round(taken)}), flush=True
        )
    return folder


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def baseline_ranks(method: BagOfEmbeddings | ModelOne, sides: tuple[Side, Side]) -> np.ndarray:
    """[questions] ranks of both directions, with the same candidates and right answers as ours."""
    found = []
    for way, side in enumerate(sides):
        other = sides[1 - way]

        def block(start: int, stop: int, side: Side = side, other: Side = other, way: int = way) -> np.ndarray:
            return method.scores(side.texts[start:stop], other.texts, reverse=bool(way))

        found.append(ranks.ranks_by_block(block, side.group[: side.asked], other.group))
    return np.concatenate(found)


def not_ahead(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of resamples of the questions in which ours makes as many errors as theirs, or more."""
    gain = (theirs > 1).astype(int) - (ours > 1).astype(int)
    drawn = np.random.default_rng(0).integers(len(gain), size=(RESAMPLES, len(gain)))
    return float((gain[drawn].sum(1) <= 0).mean())


def compare(figure: str, found: dict[str, np.ndarray]) -> None:
    """Print what one setting gives."""
    errors = {name: int((places > 1).sum()) for name, places in found.items()}
    half = len(found["cosine"]) // 2
    for name, places in found.items():
        one, other = (round(100 * float((part <= 1).mean()), 2) for part in (places[:half], places[half:]))
        line = {"figure": figure, "method": name, "R@1 en-de": one, "R@1 de-en": other, "errors": errors[name]}
        print(json.dumps(line), flush=True)
    best = min(("bag of embeddings", "IBM model 1"), key=lambda name: errors[name])
    report(figure, max(errors["cosine"], 0.5), "errors", best, errors[best])
    for name, short in (("bag of embeddings", "bag"), ("IBM model 1", "model_one")):
        p = not_ahead(found["cosine"], found[name])
        print(json.dumps({"figure": f"{figure}_vs_{short}", "value": round(p, 4), "unit": "share not ahead"}))
    report(f"{figure}_reranked", max(errors["re-ranked"], 0.5), "errors", "the cosine alone", errors["cosine"])


def main() -> None:
    given = options()
    most = 300 if given.quick else None
    texts = {split: corpus(given.data, split, most) for split in ("train", "test_2016")}
    pairs = tuple([r.captions[code][0] for r in texts["train"]] for code in PAIR)
    baselines: dict[str, Callable[[], BagOfEmbeddings | ModelOne]] = {
        "bag of embeddings": lambda: BagOfEmbeddings(pairs, batch=64 if given.quick else 512),  # type: ignore[arg-type]
        "IBM model 1": lambda: ModelOne(pairs),  # type: ignore[arg-type]
    }
    made = {name: make() for name, make in baselines.items()}
    with tempfile.TemporaryDirectory() as aside:
        folder = given.model or train_ours(given.data, given.out or Path(aside) / "run", given.quick)
        model = MMBert.from_pretrained(folder, device="cpu")
    print(json.dumps({"model": str(folder), "match_weight": model.rerank_weight, "hub_weight": model.hub_weight}))
    for figure, further in (("translation_retrieval", []), ("translation_retrieval_distractors", texts["train"])):
        asked = texts["test_2016"]
        ours = TranslationRetrieval(
            model, asked, source=PAIR[0], target=PAIR[1], mode="rerank", rerank=RERANK, distractors=further
        )
        cosine = TranslationRetrieval(model, asked, source=PAIR[0], target=PAIR[1], distractors=further)
        found = {"cosine": np.concatenate(cosine.ranks()), "re-ranked": np.concatenate(ours.ranks())}
        ours.weights = ours.weights._replace(hub=0.0)
        found["re-ranked without hubness"] = np.concatenate(ours.ranks())
        sides = build_sides(asked, PAIR, further)
        found |= {name: baseline_ranks(method, sides) for name, method in made.items()}
        compare(figure, found)


if __name__ == "__main__":
    main()
