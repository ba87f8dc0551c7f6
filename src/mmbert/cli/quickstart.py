"""Try everything once on shipped data: evaluate, fine-tune, index, search, report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbert.cli._tables import print_table
from mmbert.cli.common import JsonOption, load_model, note, print_json, show_progress

if TYPE_CHECKING:
    from mmbert.evaluation.ranks import Report
    from mmbert.evaluation.retrieval import Answer, Retrieval

TEST_CONCEPTS = 50
QUERY_LANGUAGES = ("de", "ru", "ar", "hi", "ja")
"""Five scripts: Latin, Cyrillic, Arabic, Devanagari, Japanese."""
RERANK = 10


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path(
        "quickstart-out"
    ),
    epochs: Annotated[float, typer.Option(help="Passes over the 300 training pictures.")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Try everything once on shipped data.

    Writes the 150 concepts whose pictures the starter model has never seen as an ordinary folder of pictures and
    captions, measures the starter on 50 of them, fine-tunes it on the other 100, measures again, makes a search index,
    asks it in five scripts, and writes a report with pictures. Needs no network.

    Examples:

      mmbert quickstart
      mmbert quickstart --out /tmp/first-look --json
    """
    from transformers.utils import logging

    from mmbert.evaluation.report import write_retrieval_page
    from mmbert.search.build import build_index
    from mmbert.training.recipe import load_recipe
    from mmbert.training.run import train

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    started = time.monotonic()
    folder, runs, page = out / "pictures", out / "run", out / "report.html"
    with _step(f"1/5 writing 150 unseen concepts in three drawing styles to {folder}"):
        write_folder(folder)
    with _step(f"2/5 evaluating the starter on {TEST_CONCEPTS} of them"):
        before = _measure("starter", folder)
    with _step("3/5 fine-tuning on the other 100"):
        recipe = load_recipe("retrieval", [f"data={folder}", "model.init=starter", f"epochs={epochs}", "min_steps=1"])
        result = train(recipe, runs, resume=False)
    with _step(f"4/5 evaluating again on the {TEST_CONCEPTS} concepts it was not fine-tuned on"):
        after = _measure(str(result.model), folder)
    with _step("5/5 indexing all pictures and searching in five scripts"):
        model = load_model(str(result.model))
        index = out / "index"
        build_index(model, folder, index, prune=True, progress=show_progress(), model_name=str(result.model))
        found = [_search(index, model, answer) for answer in _queries(after)]
    write_retrieval_page(
        page,
        after,
        before=before.report(),
        title="mmbert quickstart",
        names=("starter", "fine-tuned"),
        facts=[
            ("Pictures", f"{TEST_CONCEPTS} concepts in three styles, never trained on"),
            ("Fine-tuned on", f"100 other concepts, {result.seconds:.0f} s"),
            ("Mode", f"re-ranked, best {RERANK}"),
        ],
        shown_answers=_queries(after),
    )
    seconds = time.monotonic() - started
    if as_json:
        reports = {"before": before.report(), "after": after.report()}
        print_json({**reports, "queries": found, "seconds": round(seconds, 1), "report": page, "model": result.model})
        return
    _print_recall(before.report(), after.report())
    _print_queries(found)
    print(f"\nreport with pictures: {page}\nmodel: {result.model}\nindex: {index}\nall of it took {seconds:.0f} s")
    print(f'next: mmbert search "Elefant" --index {index}')


def write_folder(folder: Path) -> None:
    """The held-out concepts as a user's folder: ``images/`` and ``metadata.jsonl`` with captions in 24 languages.

    Every third concept is in the split ``test``, the others in ``train``; the three drawings of a concept are a group.
    """
    from mmbert.data.sources import open_data

    source = open_data("starter:heldout_concepts")
    records = [source[i] for i in range(len(source))]
    concepts = sorted({record.group for record in records})
    test = set(concepts[:: len(concepts) // TEST_CONCEPTS][:TEST_CONCEPTS])
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            assert record.image is not None and record.image.data is not None
            name = f"images/{record.id.replace('/', '-')}.webp"
            (folder / name).write_bytes(record.image.data)
            row = {
                "file_name": name,
                "group": record.group,
                "split": "test" if record.group in test else "train",
                "style": record.extra["style"],
                "captions": {language: list(captions) for language, captions in record.captions.items()},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _step(what: str) -> Iterator[None]:
    start = time.monotonic()
    note(what)
    yield
    note(f"    {time.monotonic() - start:.0f} s")


def _measure(model: str, folder: Path) -> Retrieval:
    from mmbert.data.sources import open_data
    from mmbert.evaluation.retrieval import Retrieval

    source = open_data({"source": "folder", "root": str(folder), "split": "test"})
    records = [source[i] for i in range(len(source))]
    return Retrieval(load_model(model), records, mode="rerank", rerank=RERANK, progress=show_progress())


def _queries(retrieval: Retrieval) -> list[Answer]:
    """One query of each of the five languages, all about different concepts (the first, eleventh, ... of the 50)."""
    gallery = retrieval.gallery
    rows = [gallery.languages[language].start + 10 * i for i, language in enumerate(QUERY_LANGUAGES)]
    return [retrieval.answer(int(row)) for row in rows]


def _search(index: Path, model: Any, answer: Answer) -> dict[str, Any]:
    """Ask the index (of all 450 pictures) and say at which place the first right picture is."""
    from mmbert.search.index import SearchIndex

    hits = SearchIndex.open(index, model).search(answer.text, k=10, rerank=RERANK)
    right = [hit.rank for hit in hits if answer.text in hit.captions.get(answer.language, ())]
    names = list(dict.fromkeys(hit.captions["en"][0] for hit in hits))
    return {
        "query": answer.text,
        "language": answer.language,
        "english": answer.gloss,
        "place": right[0] if right else None,
        "found": names[:3],
    }


def _print_recall(before: Report, after: Report) -> None:
    rows = []
    for language, new in after["text_to_image"].items():
        old = before["text_to_image"][language]
        figures = [f"{100 * old[k]:.0f} → {100 * new[k]:.0f}" for k in ("R@1", "R@5", "R@10")]
        rows.append([language, *figures])
    title = f"text to image on {TEST_CONCEPTS} unseen concepts: starter → fine-tuned on 100 others"
    print_table(title, ["language", "R@1 %", "R@5 %", "R@10 %"], rows)


def _print_queries(found: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [q["query"], q["language"], q["english"] or "", str(q["place"] or "> 10"), ", ".join(q["found"])] for q in found
    ]
    columns = ["query", "language", "means", "right at", "found first"]
    print_table("searching all 450 pictures by text", columns, rows, left=(0, 1, 2, 4))
