"""`mmbert predict`: answers of a model in the files that benchmarks' servers take."""

from __future__ import annotations

import typer

from mmbert.cli._vcr import predict_vcr
from mmbert.cli._vqa import predict_vqa

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _predict() -> None:
    """Write a model's answers in the files that benchmarks' servers take."""


app.command("vcr")(predict_vcr)
app.command("vqa")(predict_vqa)
