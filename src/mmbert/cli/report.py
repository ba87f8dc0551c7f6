"""`mmbert report`: a training run as a page with curves, figures and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mmbert.cli._pictures import FontsOption, note_pictures
from mmbert.cli._records import read_records
from mmbert.cli._runs import current_stage, measure_of, stores_of
from mmbert.cli.common import DeviceOption, FeaturesOption, Int8Option, load_model, note, output_path, show_progress
from mmbert.errors import UsageError

SHOWN = "retrieval"
"""The measure whose answers the page has a place for."""


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page. Default: RUN/report.html.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Evaluate on this. Default: what the run was evaluated on.")
    ] = None,
    features: FeaturesOption = None,
    per_language: Annotated[int, typer.Option("--per-language", help="Captions shown of each language.", min=0)] = 1,
    curves_only: Annotated[bool, typer.Option("--curves-only", help="Leave the model alone.")] = False,
    layout: Annotated[
        str | None,
        typer.Option("--map", help="How images are laid out: pca, tsne or umap. Default: tsne where it is installed."),
    ] = None,
    map_captions: Annotated[
        bool, typer.Option("--map-captions", help="Captions of every language on the map, too.")
    ] = False,
    png: Annotated[Path | None, typer.Option("--png", help="A folder for each picture as a PNG.")] = None,
    fonts: FontsOption = None,
    device: DeviceOption = None,
    int8: Int8Option = False,
) -> None:
    """Show a training run as a page with curves, figures and pictures.

    The page has recall by language, how well captions of one language find those of another, the curves of the log,
    images that captions find and captions that images find, and a map of images. It needs no other file. Of a run that
    is measured by something else than retrieval it has the curves. Of a run that looked images up in region stores the
    model does so here, too; with --data, in those of --features.

    Examples:

      mmbert report runs/first
      mmbert report runs/first --data my-photos --out first.html
      mmbert report runs/vl --data my-photos --features my-photos.regions
      mmbert report runs/first --map tsne --map-captions --png runs/first/pictures
    """
    from mmbert import html
    from mmbert.evaluation.embedding_map import usable_method
    from mmbert.evaluation.run_report import LOG, RunReport, read_curves, run_page, run_report
    from mmbert.explain.figures import can_draw

    page = output_path(out or run / "report.html")
    facts: list[tuple[str, Any]] = [("Run", run)]
    title, whole, run = f"Training run {run.name}", run, current_stage(run)
    if run != whole:
        facts.append(("Stage", "the first; the recipe itself comes after it"))
    curves = read_curves(run / LOG)
    method = usable_method(layout)
    can_draw(png)
    found, remark = RunReport(curves), ""
    measure = measure_of(run) or SHOWN
    if data is None and measure != SHOWN and not curves_only:
        curves_only = True
        remark = f"The run is measured by {measure}, not by retrieval: curves only."
        note(remark)
    if not curves_only:
        from mmbert.data.records import BadRecords
        from mmbert.data.sources import open_data
        from mmbert.evaluation.retrieval import Retrieval

        chosen = data or _evaluated(run)
        model = load_model(str(_model(run)), device, int8=int8)
        source = open_data(chosen)
        stores = features or (stores_of(run) if data is None else None)
        records = read_records(source, [model], stores, BadRecords())
        retrieval = Retrieval(model, records, progress=show_progress())
        facts.append(("Evaluated on", source.name))
        found = run_report(curves, retrieval, model, per_language=per_language, method=method, captions=map_captions)
        if layout is None and method == "pca":
            remark = "A map that keeps neighbourhoods (t-SNE) needs scikit-learn: pip install 'mm-bert[report]'."
            note(remark)
    html.write_page(page, run_page(found, title=title, facts=facts, remark=remark))
    note(f"page: {page}")
    if png is not None:
        from mmbert.evaluation.pictures import write_run_pictures

        note_pictures(*write_run_pictures(png, found, fonts or ()))


def _model(run: Path) -> Path:
    """The run's best model, else its last."""
    for name in ("best", "last"):
        if (run / name / "config.json").is_file():
            return run / name
    raise UsageError("the run has no model", where=str(run), hint="add --curves-only")


def _evaluated(run: Path) -> Any:
    """What the run was evaluated on, from its metrics.json."""
    for path in (run / "metrics.json", run / "best" / "metrics.json"):
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("data")
            if found:
                return found
    raise UsageError("the run does not say what it was evaluated on", where=str(run), hint="add --data")
