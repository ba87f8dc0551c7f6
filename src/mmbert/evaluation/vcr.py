"""How well answers and rationales are chosen: VCR's three accuracies, and the file for its leaderboard.

Last step of the flow: records and one model, or one for each step, go in; probabilities of the choices, a report or a
CSV file come out (Zellers et al., 2019, "From Recognition to Cognition").
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from tqdm import tqdm

from mmbert.api.front_door import MMBert
from mmbert.api.loading import find_model
from mmbert.data.packing import Example, collate
from mmbert.data.records import Record
from mmbert.data.sources.vcr import CHOICES
from mmbert.data.yaml_values import read_value
from mmbert.errors import ConfigError, DataError, UsageError
from mmbert.files import whole_file
from mmbert.model.task_models import read_sequences
from mmbert.plugins import read_options
from mmbert.tasks import vcr
from mmbert.tasks.vcr import VcrTask

Step = Literal["answer", "rationale"]
STEPS: tuple[Step, ...] = ("answer", "rationale")
COLUMNS = (
    "annot_id",
    *(f"answer_{i}" for i in range(CHOICES)),
    *(f"rationale_conditioned_on_a{i}_{j}" for i in range(CHOICES) for j in range(CHOICES)),
)
"""Of the leaderboard's file, in its order."""
IMAGES_AT_ONCE = 8
"""Images in one pass: end-to-end networks need some hundred megabytes for each."""
POSITIONS_AT_ONCE = 8192


@dataclass(frozen=True)
class Chooser:
    """A model with the step that it does.

    Args:
        model: with a head ``choice``.
        task: makes its sequences.
    """

    model: MMBert
    task: VcrTask

    @classmethod
    def of(cls, model: MMBert, step: Step, options: Mapping[str, Any] | None = None) -> Chooser:
        """The model for one step.

        Args:
            options: of the task; None: as the recipe in the model's folder says, else the defaults.

        Raises:
            UsageError: the model chooses nothing.
            ConfigError: options that the task does not have.
        """
        if "choice" not in model.model.heads:
            raise UsageError(
                "this model chooses no answers: it has no head 'choice'",
                hint="train one with the recipe vcr, or convert a checkpoint with --task vcr",
            )
        given = trained_options(model.name_or_path, step) if options is None else options
        checked = read_options(vcr.Options, dict(given) | {"step": step}, "the task 'vcr'")
        return cls(model, vcr.build(checked, model.processor, ()))

    def probabilities(self, asked: Sequence[tuple[Record, int | None]], *, progress: bool = False) -> np.ndarray:
        """[n, 4] probabilities of the choices; each image of a pass is worked on once.

        Args:
            asked: records, and the answer for which a rationale is sought (None in the first step).
            progress: show a bar on stderr.

        Raises:
            DataError: an image is missing, or stored regions are not those of the record's objects.
        """
        found = []
        with tqdm(total=len(asked), desc=self.task.options.step, disable=not progress) as bar, torch.inference_mode():
            for examples in self._passes(asked):
                batch = collate(examples, self.model.processor.images).to(self.model.device)
                logits = read_sequences(self.model.model, "choice", batch).logits
                assert logits is not None
                logits = logits.float().view(-1, CHOICES)
                found.append(logits.softmax(1).cpu().numpy())
                bar.update(len(logits))
        return np.concatenate(found) if found else np.zeros((0, CHOICES), dtype=np.float32)

    def _passes(self, asked: Sequence[tuple[Record, int | None]]) -> Iterator[list[Example]]:
        examples: list[Example] = []
        images: set[str] = set()
        positions = 0
        for record, answer in asked:
            cost = CHOICES * self.task.longest(record)
            image = record.image.key if record.image is not None else ""
            full = positions + cost > POSITIONS_AT_ONCE or len(images | {image}) > IMAGES_AT_ONCE
            if examples and full:
                yield examples
                examples, images, positions = [], set(), 0
            examples += self.task.choices(record, answer)
            images.add(image)
            positions += cost
        if examples:
            yield examples


def trained_options(name: str | None, step: Step) -> dict[str, Any]:
    """How a model was trained to read questions in a step: as the recipe beside it says.

    Of several parts of a mixture that of the same step counts; a part of the other step says all but what belongs to
    that step alone. Without a recipe: nothing, which are the defaults.

    Args:
        name: folder or hub id of the model; None: it was loaded from nowhere.
        step: of VCR.

    Raises:
        ConfigError: the recipe is damaged.
    """
    if name is None:
        return {}
    path = (Path(name) if Path(name).is_dir() else find_model(name)) / "recipe.yaml"
    try:
        recipe = read_value(path.read_text("utf-8")) if path.is_file() else {}
        parts = [part for part in (recipe.get("components") or {}).values() if part.get("task") == "vcr"]
        found: list[dict[str, Any]] = [dict(part.get("options") or {}) for part in parts]
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ConfigError("not a recipe", where=str(path), hint="say how questions are read with --option") from error
    for options in found:
        if options.get("step", STEPS[0]) == step:
            return options
    return {key: value for key, value in found[0].items() if key not in ("step", "question")} if found else {}


def evaluate_vcr(
    records: Sequence[Record],
    *,
    answers: Chooser | None = None,
    rationales: Chooser | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The accuracies that the choosers allow.

    Returns:
        ``questions``, and shares (0..1): ``Q2A`` (right answers), ``QA2R`` (right rationales, given the right answer)
        and, with both choosers, ``Q2AR`` (questions of which both are right).

    Raises:
        DataError: a record has no labels, as those of the test split; this is looked at before a model is asked.
    """
    report: dict[str, Any] = {"questions": len(records)}
    given = _labels(records, "answer")
    wanted = None if rationales is None else _labels(records, "rationale")
    right = []
    if answers is not None:
        found = answers.probabilities([(record, None) for record in records], progress=progress)
        right.append(found.argmax(1) == given)
        report["Q2A"] = float(right[-1].mean())
    if rationales is not None:
        found = rationales.probabilities(list(zip(records, given.tolist(), strict=True)), progress=progress)
        right.append(found.argmax(1) == wanted)
        report["QA2R"] = float(right[-1].mean())
    if len(right) == len(STEPS):
        report["Q2AR"] = float((right[0] & right[1]).mean())
    return report


def _labels(records: Sequence[Record], step: Step) -> np.ndarray:
    """[n] numbers of the right choices."""
    if not records:
        raise DataError("there are no questions")
    for record in records:
        if f"{step}_label" not in record.annotation:
            raise DataError(
                f"no {step}_label: there is nothing to compare with",
                where=record.origin or record.id,
                hint="the test split has none; `mmbert predict vcr` writes the leaderboard's file",
            )
    return np.array([record.annotation[f"{step}_label"] for record in records])


def predict_vcr(
    records: Sequence[Record], answers: Chooser, rationales: Chooser, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """[n, 4] probabilities of the answers, and [n, 4, 4] of the rationales given each of the answers."""
    found = answers.probabilities([(record, None) for record in records], progress=progress)
    asked: list[tuple[Record, int | None]] = [(record, answer) for record in records for answer in range(CHOICES)]
    given_each = rationales.probabilities(asked, progress=progress)
    return found, given_each.reshape(-1, CHOICES, CHOICES)


def write_leaderboard(path: Path, records: Sequence[Record], answers: np.ndarray, rationales: np.ndarray) -> None:
    """Write the CSV file that VCR's leaderboard takes, one line for each question.

    Args:
        path: written aside, then moved into place.
        records: their ``annot_id`` s.
        answers: [n, 4] probabilities.
        rationales: [n, 4, 4] probabilities, by the answer that is given.

    Raises:
        UsageError: it cannot be written.
    """
    rows = np.concatenate([answers, rationales.reshape(len(rationales), -1)], axis=1)
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for record, row in zip(records, rows, strict=True):
            writer.writerow([record.annotation["annot_id"], *(f"{value:.8f}" for value in row.tolist())])
