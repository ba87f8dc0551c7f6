"""Is an export in int8 faster than PyTorch in fp32, and does it find the same?

The shipped starter, PyTorch and the exports in this process, in turns, with the same number of threads.
`export_int8_match`: pairs per second of `match`, 16 images with 16 captions in different languages, from image files to
probabilities. `export_int8_match_kept`: the images' regions are there already, as in an index with `--keep-regions`.
`export_int8_text`, `export_int8_images`: vectors per second. `export_fp32_...`: the same of the export in fp32.

`export_r1_embed`: R@1 from texts to the 1,548 drawings of `starter:heldout_style`, in per cent, by vectors.
`export_r1_match`: the first ten by PyTorch's vectors, put in the order of the match logits (a sample of the queries).
Value: the export in int8; peer: PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import in_turn, report

from mmbert import MMBert
from mmbert.api.export import export_model
from mmbert.api.export_folder import ExportAbout
from mmbert.data.sources import open_data
from mmbert.evaluation.gallery import build_gallery
from mmbert.evaluation.scorers import top

PEER = "PyTorch, fp32"
SOURCE = "starter:heldout_style"
IMAGES, BEST = 16, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, images and queries")
    parser.add_argument("--languages", default="en,de,zh", help="of the queries for R@1")
    parser.add_argument("--images", type=int, help="so many of the drawings for R@1; default: all, or 200")
    parser.add_argument("--matched", type=int, help="queries whose first ten are matched; default: 300, or 40")
    parser.add_argument("--exported", type=Path, help="an int8 export of the starter that is there already")
    args = parser.parse_args()
    bert = MMBert.from_pretrained("starter", device="cpu")
    source = open_data(SOURCE)
    records = [source[i] for i in range(len(source))]
    with tempfile.TemporaryDirectory(prefix="mmbert-export-") as holder:
        models: dict[str, MMBert] = {"torch": bert}
        for name in ("int8",) if args.exported else ("int8", "fp32"):
            folder = args.exported or Path(holder) / name
            if not args.exported:
                print_choice(export_model(bert, folder, int8=name == "int8", measure=name == "int8"))
            models[name] = MMBert.from_pretrained(folder)
        speed(models, records, rounds=3 if args.quick else 9)
        images, matched = (200, 40) if args.quick else (len(records), 300)
        step = max(1, len(records) // (args.images or images))
        recall(models, records[::step], args.languages.split(","), args.matched or matched)


def print_choice(about: ExportAbout) -> None:
    """What the exporter measured and chose."""
    for name, graph in about.graphs.items():
        print(f"# {name}: {graph.precision}, seconds {graph.seconds}, parity {graph.parity} {graph.note or ''}")
    print(f"# {about.machine}, {torch.get_num_threads()} threads")


def speed(models: dict[str, MMBert], records: Sequence[Any], rounds: int) -> None:
    """Print how much each does in a second."""
    shown = records[:: len(records) // IMAGES][:IMAGES]
    images = [record.image for record in shown]
    texts = [list(record.captions.values())[i % 24][0] for i, record in enumerate(shown)]
    many = [captions[0] for record in shown for captions in record.captions.values()]
    pairs = np.stack(np.meshgrid(np.arange(IMAGES), np.arange(IMAGES), indexing="ij"), -1).reshape(-1, 2)
    kept = models["torch"].region_vectors(images)

    def compare(figure: str, count: int, run: Callable[[MMBert], Any]) -> None:
        runs = {name: lambda model=model: run(model) for name, model in models.items()}
        rate = {name: count / seconds for name, seconds in in_turn(rounds, runs).items()}
        for name in list(models)[1:]:
            report(f"export_{name}_{figure}", rate[name], "1/s", PEER, rate["torch"], more_is_better=True)

    compare("match", len(pairs), lambda model: model.match(images, texts))
    compare("match_kept", len(pairs), lambda model: model.match_pairs(kept, texts, pairs))
    compare("text", len(many), lambda model: model.encode_text(many))
    compare("images", len(images), lambda model: model.encode_images(images))


def recall(models: dict[str, MMBert], records: Sequence[Any], languages: Sequence[str], matched: int) -> None:
    """Print R@1 of PyTorch and of the export in int8."""
    gallery = build_gallery(records, languages)
    scores = {}
    for name in ("torch", "int8"):
        texts = models[name].encode_text(gallery.texts)
        scores[name] = texts @ models[name].encode_images(gallery.images).T
    right = gallery.text_group[:, None] == gallery.image_group[None]

    def print_r1(figure: str, rows: np.ndarray, first: dict[str, np.ndarray]) -> None:
        found = {name: 100 * float(right[rows, best].mean()) for name, best in first.items()}
        report(f"{figure}_{len(rows)}_queries", found["int8"], "%", PEER, found["torch"], more_is_better=True)

    every = np.arange(len(gallery.texts))
    print_r1("export_r1_embed", every, {name: found.argmax(1) for name, found in scores.items()})
    asked = np.unique(np.linspace(0, len(every) - 1, matched).astype(int))
    best = top(scores["torch"][asked], BEST)
    used, place = np.unique(best, return_inverse=True)
    pairs = np.stack([place.reshape(-1), np.repeat(np.arange(len(asked)), best.shape[1])], axis=1)
    first = {}
    for name in ("torch", "int8"):
        logits = models[name].match_pairs([gallery.images[i] for i in used], [gallery.texts[i] for i in asked], pairs)
        first[name] = best[np.arange(len(asked)), logits.reshape(best.shape).argmax(1)]
    print_r1("export_r1_match", asked, first)


if __name__ == "__main__":
    main()
