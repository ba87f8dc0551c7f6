"""Do pictures count? Experiments on composed scenes: everything from the drawings to the figures, with one command.

    python tools/pictures_count.py WORK

builds the scenes in ``WORK/data`` (``tools/build_scenes.py``), extracts their regions once with the starter model's own
vision encoder, trains the recipes of ``tools/pictures`` one after the other and writes what it finds to
``WORK/results.json``. Stages that are done are not done again. Everything is measured on test pictures, each of which
has a pair of things that never met in training; what is chosen on the way (which checkpoint is best) by validation only.

* ``retrieval``: captions and pictures find each other among 500; fine-tuned from no pre-training and from Task A (picture
  and two languages), B (picture and one language) and C (parallel text alone); and with the pictures shuffled.
* ``writing``: captions that name every thing; translations of sentences that leave open what only the picture tells, with
  and without it.
* ``lexical``: the same items as lexical translation, with and without the picture.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import build_scenes
from mmbert import MMBert
from mmbert.api.features import Job, extract_features
from mmbert.api.writer import Writer
from mmbert.data.records import Record
from mmbert.data.region_input import RegionInput
from mmbert.data.sources import open_data
from mmbert.evaluation.lexical import evaluate_lexical
from mmbert.evaluation.retrieval import evaluate_retrieval
from mmbert.training.recipe import load_recipe
from mmbert.training.run import train
from scenes.concepts import concept

RECIPES = Path(__file__).parent / "pictures"
ENCODER = "starter,trainable=false,given_boxes=crop,cells=false"
"""Regions are the whole picture and the boxes of its things, as a detector would give them: without names."""
PRETRAINING = {"none": None, "task-a": "scenes", "task-b": "scenes", "task-c": "text"}
WRITES_FROM = "task-c"
"""Captions are learned from the model that finds pictures after this pre-training: it knows which words a thing has."""
LANGUAGES = ("en", "de")


class Experiments:
    """All stages, in one folder.

    Args:
        work: the folder.
        share: of the steps that the recipes say.
    """

    def __init__(self, work: Path, share: float) -> None:
        self.work, self.share = work, share
        self.data, self.store = work / "data", str(work / "scenes.regions")
        self._file = work / "results.json"
        self.results: dict[str, Any] = json.loads(self._file.read_text("utf-8")) if self._file.exists() else {}

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do ``work`` unless it is done, and keep what it found and the processor time that it took."""
        if name in self.results:
            return
        started = time.process_time()
        found = work()
        self.results[name] = {**found, "cpu_seconds": round(time.process_time() - started, 1)}
        aside = self._file.with_suffix(".part")
        aside.write_text(json.dumps(self.results, indent=1, ensure_ascii=False), "utf-8")
        aside.replace(self._file)
        print(json.dumps({name: self.results[name]}, ensure_ascii=False), flush=True)

    def prepare(self) -> None:
        """Scenes, their regions, and the network that all start from."""
        self.stage("scenes", self._scenes)
        self.stage("regions", self._regions)
        self.stage("start", lambda: self._train("start", "start", data=self._folder("scenes"), share=1.0))

    def retrieval(self) -> None:
        """Pre-training lowers the error of retrieval; pictures decide."""
        for start in PRETRAINING:
            self._finding(start)

    def writing(self) -> None:
        """Captions name what is there; translations need the picture. From a model that finds pictures."""
        self._finding(WRITES_FROM)
        self.stage("writing", self._writing)

    def lexical(self) -> None:
        """The translation of a word needs the picture."""
        self.stage("lexical", self._lexical)

    def _finding(self, start: str) -> None:
        """Pre-training of a kind, and retrieval from it."""
        corpus = PRETRAINING[start]
        if corpus == "scenes":
            self.stage(start, lambda: self._train(start, start, data=self._folder("scenes"), init="start"))
        elif corpus == "text":
            paths = {code: str(self.data / "text" / f"train.{code}") for code in LANGUAGES}
            text = {"source": "text", "paths": paths}
            self.stage(start, lambda: self._train(start, start, data=text, init="start", features=False))
        self.stage(f"retrieval/{start}", lambda: self._retrieval(start))

    def _scenes(self) -> dict[str, Any]:
        if not self.data.exists():
            build_scenes.build(self.data, **build_scenes.DEFAULTS)
        return {"pictures": {split: len(self._records("scenes", split)) for split in build_scenes.SPLITS}}

    def _regions(self) -> dict[str, Any]:
        report = extract_features(Job(str(self.data / "scenes"), ENCODER, self.store))
        return {"images": report.images, "regions": report.regions}

    def _retrieval(self, start: str) -> dict[str, Any]:
        name = f"retrieval-{start}"
        init = "start" if start == "none" else start
        validation = self._folder("scenes") | {"split": "validation", "languages": LANGUAGES}
        overrides = [f"evaluation.data={json.dumps(validation)}"]
        self._train("retrieval", name, overrides, data=self._folder("scenes"), init=init)
        model, test = self._model(name), self._records("scenes", "test")
        found = {"pictures": len(test), **_recall(model, test)}
        return found | {"shuffled": _recall(model, shuffled(test))}

    def _writing(self) -> dict[str, Any]:
        vague = self._folder("vague")
        overrides = [f"components.{part}.data={json.dumps(vague | {'split': 'train'})}" for part in ("seeing", "blind")]
        self._train("writing", "writing", overrides, data=self._folder("scenes"), init=f"retrieval-{WRITES_FROM}")
        writer, scenes, items = (
            Writer(self._model("writing")),
            self._records("scenes", "test"),
            self._records("vague", "test"),
        )
        images = [record.image for record in scenes]
        captions = {code: _texts(writer.write(None, images, to=code, beam=1)) for code in ("en", "de", "fr", "cs")}
        named = {
            code: fraction(names_all(r, text, code) for r, text in zip(scenes, texts, strict=True))
            for code, texts in captions.items()
        }
        exact = {
            code: fraction(text == r.captions[code][0] for r, text in zip(scenes, texts, strict=True))
            for code, texts in captions.items()
        }
        sources = [record.captions["en"][0] for record in items]
        translated = {
            way: fraction(
                says(text, concept(record.extra["open"]).names["de"])
                for record, text in zip(items, _texts(writer.write(sources, seen, to="de", beam=1)), strict=True)
            )
            for way, seen in (("with_image", [record.image for record in items]), ("without_image", None))
        }
        return {"captions_name_all": named, "captions_exact": exact, "translation": {"items": len(items), **translated}}

    def _lexical(self) -> dict[str, Any]:
        data = {"source": "mlt", "root": str(self.data / "mlt"), "images": str(self.data / "scenes"), "language": "de"}
        overrides = [f"evaluation.data={json.dumps(data | {'split': 'validation'})}"]
        self._train("lexical", "lexical", overrides, data=data | {"split": "train"}, init="start")
        source = open_data(data | {"split": "test_2016"})
        report = evaluate_lexical(self._model("lexical"), [source[i] for i in range(len(source))]).report()
        return {key: report[key] for key in ("items", "with_image", "without_image", "majority")}

    def _folder(self, name: str) -> dict[str, Any]:
        return {"source": "folder", "root": str(self.data / name)}

    def _records(self, folder: str, split: str) -> list[Record]:
        source = open_data(self._folder(folder) | {"split": split})
        return [source[i] for i in range(len(source))]

    def _train(
        self,
        recipe: str,
        name: str,
        overrides: Sequence[str] = (),
        *,
        data: dict[str, Any],
        init: str | None = None,
        features: bool = True,
        share: float | None = None,
    ) -> dict[str, Any]:
        """Run a recipe in ``WORK/runs/NAME``, from the model of another run."""
        chosen = [f"data={json.dumps(data)}", *overrides]
        chosen += [f"features={self.store}"] if features else []
        chosen += [f"model.init={self._best(init)}"] if init is not None else []
        loaded = load_recipe(str(RECIPES / f"{recipe}.yaml"), chosen)
        steps = max(1, round((loaded.steps or 1) * (self.share if share is None else share)))
        loaded = loaded.model_copy(update={"steps": steps})
        result = train(loaded, self.work / "runs" / name)
        return {"steps": steps, "seconds": round(result.seconds, 1)}

    def _best(self, name: str) -> Path:
        run = self.work / "runs" / name
        return run / "best" if (run / "best").exists() else run / "last"

    def _model(self, name: str) -> MMBert:
        model = MMBert.from_pretrained(str(self._best(name)))
        model.use_regions(RegionInput(self.store, classes=False))
        return model


def shuffled(records: Sequence[Record]) -> list[Record]:
    """Each record with the image of the next."""
    images = [record.image for record in records]
    return [replace(record, image=image) for record, image in zip(records, [*images[1:], images[0]], strict=True)]


def names_all(record: Record, text: str, language: str) -> bool:
    """Whether a caption names every thing that the record's picture shows."""
    return all(says(text, concept(name).names[language]) for name in str(record.extra["objects"]).split(", "))


def says(text: str, name: str) -> bool:
    """Whether the name stands in the text as words of its own."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def fraction(answers: Any) -> float:
    """Share of answers that are true."""
    told = list(answers)
    return round(sum(told) / len(told), 4)


def _texts(written: Sequence[Sequence[Any]]) -> list[str]:
    return [best[0].text for best in written]


def _recall(model: MMBert, records: Sequence[Record]) -> dict[str, Any]:
    """R@1 in both directions, by language and their mean."""
    report = evaluate_retrieval(model, records, languages=LANGUAGES)
    return {way: {code: round(figures["R@1"], 4) for code, figures in report[way].items()} for way in report}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for data, models and results")
    parser.add_argument("--only", nargs="+", choices=("retrieval", "writing", "lexical"), help="default: all")
    parser.add_argument("--share", type=float, default=1.0, help="of the recipes' steps, to try it out")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    experiments = Experiments(given.work, given.share)
    experiments.prepare()
    for name in given.only or ("lexical", "retrieval", "writing"):
        getattr(experiments, name)()


if __name__ == "__main__":
    main()
