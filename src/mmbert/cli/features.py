"""Extract region features of images once; convert old feature files to a store and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbert.cli._tables import note_left_out, print_table
from mmbert.cli.common import (
    DeviceOption,
    JsonOption,
    SkipBadOption,
    check_device,
    counted,
    human_bytes,
    human_count,
    note,
    output_path,
    print_json,
    show_progress,
    silence_libraries,
)
from mmbert.errors import UsageError

if TYPE_CHECKING:
    from mmbert.vision.store_build import BuildReport

app = typer.Typer(no_args_is_help=True, add_completion=False)

DTYPES = ("fp16", "fp32", "int8")
DTypeOption = Annotated[str, typer.Option("--dtype", help="How features are kept: fp16, fp32, or int8 with a scale.")]
TopKOption = Annotated[int, typer.Option("--top-k", min=1, help="How many class shares are kept per region.")]
ShardImagesOption = Annotated[int, typer.Option("--shard-images", min=1, help="Images in each file of the store.")]


@app.callback()
def _features() -> None:
    """Extract region features once, and read old ones."""


@app.command()
def extract(
    data: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A folder of images, or a corpus such as starter:validation.")
    ],
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            "-e",
            help="KIND:BACKBONE,option=value,…; or a model ('starter', a folder, a hub id), whose encoder is taken; "
            "options may follow it, too: starter,image_size=160.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The store: a new folder (or URL), or one to add to.")],
    dtype: DTypeOption = "fp16",
    top_k: TopKOption = 16,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per pass.")] = 32,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="That decode images.")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="I/N: do the I-th of N parts; run all N, on any machines.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that share the work.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Share the work over a Ray cluster (--workers at a time).")
    ] = False,
    shard_images: ShardImagesOption = 512,
    device: DeviceOption = None,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Extract the region features of images, once.

    An extraction that was interrupted goes on where it stopped when it is started again. Images that the store has
    already are not extracted again.

    Examples:

      mmbert features extract my-photos --encoder starter --out my-photos.regions
      mmbert features extract my-photos -e grid:tf_efficientnet_lite0,weights=lite0.pth -o my-photos.regions --skip-bad
      mmbert features extract my-photos -e starter -o s3://bucket/regions --shard 3/8
    """
    from mmbert.api import features

    _check_dtype(dtype)
    part = _part(shard)
    if shard is not None and (workers > 1 or ray):
        raise UsageError("--shard does not go with --workers or --ray", hint="each of them shares the work out")
    if device is not None:
        check_device(device)
    silence_libraries()
    job = features.Job(
        data=data,
        encoder=encoder,
        out=out,
        dtype=dtype,  # type: ignore[arg-type]
        top_k=top_k,
        batch_size=batch,
        threads=threads,
        device=device,
        shard_images=shard_images,
        skip_bad=skip_bad,
    )
    if ray:
        report = features.extract_with_ray(job, workers)
    elif workers > 1:
        report = features.extract_in_processes(job, workers)
    else:
        with _bar("images") as advance:
            report = features.extract_features(job, part=part, progress=advance)
    _tell(out, report, as_json)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Old features: an annotation .json, a .zip, .tsv, .h5, .lmdb, .arrow or .parquet, or a folder of "
            ".json, .npy or .npz files. With --to vlbert-json: a region store."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new store (with --to vlbert-json: the new .zip).")],
    to: Annotated[str, typer.Option("--to", help="'store', or 'vlbert-json' to write a zip of JSON files.")] = "store",
    name: Annotated[
        str | None, typer.Option("--name", help="What to call the encoder that made them. Default: legacy:SIZES.")
    ] = None,
    dtype: DTypeOption = "fp16",
    top_k: TopKOption = 16,
    shard_images: ShardImagesOption = 512,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read old feature files once and write a region store; or write a store back as VL-BERT's files.

    Examples:

      mmbert features convert train_frcnn.json --out train.regions
      mmbert features convert trainval_resnet101_faster_rcnn_genome.tsv --out coco.regions --skip-bad
      mmbert features convert train.regions --to vlbert-json --out train_frcnn.zip
    """
    from mmbert.compat import features as old

    old.check_direction(to)
    if to == "vlbert-json":
        from mmbert.compat.feature_export import write_json_zip
        from mmbert.vision.store import RegionStore

        if name is not None or skip_bad:
            raise UsageError(f"{'--skip-bad' if skip_bad else '--name'} does not go with --to vlbert-json")
        target = output_path(out)
        with _bar("images") as advance:
            images = write_json_zip(RegionStore(source), target, advance)
        print_json({"out": out, "images": images}) if as_json else print(f"{out}: {human_count(images)} images")
        return
    _check_dtype(dtype)
    with _bar("images") as advance:
        report = old.convert_features(
            source,
            out,
            encoder=name,
            dtype=dtype,  # type: ignore[arg-type]
            top_k=top_k,
            skip_bad=skip_bad,
            shard_images=shard_images,
            progress=advance,
        )
    _tell(str(out), report, as_json)


@app.command()
def info(
    store: Annotated[str, typer.Argument(help="A region store: folder or URL.")],
    verify: Annotated[bool, typer.Option("--verify", help="Also read every file and compare its checksum.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a region store holds.

    Example:

      mmbert features info my-photos.regions --verify
    """
    from mmbert.vision.store import RegionStore

    opened = RegionStore(store)
    if verify:
        opened.verify()
    manifest = opened.manifest
    size = sum(entry.bytes for entry in manifest.shards)
    left_out = manifest.left_out
    if as_json:
        facts = {"store": store, "images": manifest.images, "regions": manifest.regions, "bytes": size}
        content = facts | manifest.layout.model_dump() | {"shards": len(manifest.shards), "verified": verify}
        print_json(content | {"left_out": [{"where": where, "reason": reason} for where, reason in left_out]})
        return
    layout = manifest.layout
    kept = f"{human_count(layout.num_classes)} (the {layout.kept_classes} largest shares are kept)"
    rows = [
        ("images", human_count(manifest.images)),
        ("regions", f"{human_count(manifest.regions)} ({manifest.regions / manifest.images:.1f} per image)"),
        ("encoder", layout.encoder),
        ("feature size", f"{human_count(layout.feature_size)} ({layout.dtype})"),
        ("classes", kept if layout.num_classes else "none"),
        ("size", f"{human_bytes(size)} in {human_count(len(manifest.shards))} files"),
        *([("checksums", "right")] if verify else []),
    ]
    print_table(store, ("", ""), rows, left=(0, 1))
    note_left_out(left_out)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"cannot keep features as {dtype!r}", hint=f"--dtype is one of: {', '.join(DTYPES)}")


def _part(shard: str | None) -> tuple[int, int]:
    """``"2/4"`` -> (1, 4): the second of four parts."""
    if shard is None:
        return 0, 1
    index, _, count = shard.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise UsageError(f"--shard {shard!r} is not I/N", hint="the second of four parts: --shard 2/4")
    if not 1 <= int(index) <= int(count):
        raise UsageError(f"there is no part {index} of {count}", hint="parts count from 1")
    return int(index) - 1, int(count)


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int], Any]]:
    """A counter on standard error, where a person looks at it."""
    from tqdm import tqdm

    with tqdm(unit=unit.removesuffix("s"), leave=False, disable=not show_progress()) as bar:
        yield bar.update


def _tell(out: str, report: BuildReport, as_json: bool) -> None:
    if as_json:
        left_out = [{"where": where, "reason": reason} for where, reason in report.left_out]
        facts = {"images": report.images, "regions": report.regions, "known": report.known}
        state = {"complete": report.complete, "readable": report.readable, "waiting": report.waiting}
        print_json({"store": out} | facts | state | {"left_out": left_out})
        return
    known = f", {human_count(report.known)} were there already" if report.known else ""
    print(f"{out}: {human_count(report.images)} images with {human_count(report.regions)} regions added{known}")
    note_left_out(report.left_out)
    if not report.complete:
        waiting = counted(report.waiting, "image")
        if report.readable:
            note(f"the store can be read; other parts are to try {waiting} that it lacks: left out before, or new")
        else:
            note(f"the other parts are not done yet ({waiting}); the store can be read when the last one is")
