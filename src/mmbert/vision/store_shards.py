"""The shards of a region store: regions of some images in, the bytes of an Arrow stream out, and its columns back."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mmbert.errors import DataError
from mmbert.vision.regions import Regions
from mmbert.vision.store_format import Layout

_NUMBERS: dict[str, Any] = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8}


def shard_bytes(images: Sequence[tuple[str, Regions]], layout: Layout) -> bytes:
    """A shard with these images, as an Arrow stream of one batch."""
    bounds = pa.array(np.cumsum([0, *(len(regions) for _, regions in images)], dtype=np.int32))

    def listed(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(bounds, values)

    def rows(arrays: Iterable[np.ndarray], dtype: Any, width: int) -> pa.Array:
        flat = np.concatenate([np.zeros((0, width), dtype), *(a.astype(dtype, copy=False) for a in arrays)])
        return listed(pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), width))

    found = [regions for _, regions in images]
    columns: dict[str, pa.Array] = {
        "key": pa.array([key for key, _ in images], pa.string()),
        "width": pa.array([regions.size[0] for regions in found], pa.int32()),
        "height": pa.array([regions.size[1] for regions in found], pa.int32()),
        "boxes": rows((regions.boxes for regions in found), np.float32, 4),
    }
    if layout.dtype == "int8":
        quantised = [_quantise(regions.features) for regions in found]
        columns["features"] = rows((q for q, _ in quantised), np.int8, layout.feature_size)
        flat_scales = np.concatenate([np.zeros(0, np.float32), *(scale for _, scale in quantised)])
        columns["scales"] = listed(pa.array(flat_scales))
    else:
        dtype = np.float16 if layout.dtype == "fp16" else np.float32
        columns["features"] = rows((regions.features for regions in found), dtype, layout.feature_size)
    if layout.num_classes:
        sparse = [_largest(regions.classes, layout.kept_classes) for regions in found if regions.classes is not None]
        exact = np.float32 if layout.dtype == "fp32" else np.float16
        columns["class_ids"] = rows((ids for ids, _, _ in sparse), np.int32, layout.kept_classes)
        columns["class_shares"] = rows((shares for _, shares, _ in sparse), exact, layout.kept_classes)
        flat_rest = np.concatenate([np.zeros(0, np.float32), *(rest for _, _, rest in sparse)])
        columns["class_rest"] = listed(pa.array(flat_rest))
    table = pa.table(columns).replace_schema_metadata({"mmbert": layout.model_dump_json()})
    return stream_bytes(table)


def _quantise(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, F] as int8, and [n] what one step of each row is worth."""
    scales = (np.abs(features).max(axis=1) / 127).astype(np.float32)
    return np.rint(features / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8), scales


def _largest(classes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest shares of each row: [n, k] classes, [n, k] shares, and [n] the sum of all others."""
    order = np.argsort(-classes, axis=1, kind="stable")[:, :k].astype(np.int32)
    shares = np.take_along_axis(classes, order, axis=1)
    rest = classes.sum(1, dtype=np.float64) - shares.sum(1, dtype=np.float64)
    return order, shares, np.maximum(rest, 0).astype(np.float32) if k < classes.shape[1] else np.zeros_like(rest, "f")


def stream_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream of one batch."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]:
            writer.write_batch(batch)
    return sink.getvalue()


@dataclass(frozen=True)
class Shard:
    """The columns of a shard as flat tensors over its regions; nothing is copied from the file.

    Attributes:
        bounds: first region of each image, and one past the last.
        sizes: [images, 2] width and height.
        class_ids, shares: [R, K]; rest: [R] what is left for the other classes together.
    """

    bounds: list[int]
    sizes: Tensor
    boxes: Tensor
    features: Tensor
    scales: Tensor | None
    class_ids: Tensor | None
    shares: Tensor | None
    rest: Tensor | None


def shard_columns(table: pa.Table, layout: Layout, where: str) -> Shard:
    """The shard's columns, checked: a damaged file must not lead outside of them."""
    try:
        whole = table.combine_chunks()  # shards are one batch: no copy
        lists = {name: whole[name].chunk(0) for name in whole.column_names if pa.types.is_list(whole[name].type)}
        bounds = lists["boxes"].offsets.to_numpy()
        flat = {name: _flat(column) for name, column in lists.items()}
        sizes = np.stack([whole["width"].to_numpy(), whole["height"].to_numpy()], axis=1).astype(np.float32)
        shard = Shard(
            bounds=bounds.tolist(),
            sizes=torch.from_numpy(sizes),
            boxes=_tensor(flat["boxes"], np.float32, 4),
            features=_tensor(flat["features"], _NUMBERS[layout.dtype], layout.feature_size),
            scales=_tensor(flat["scales"], np.float32) if layout.dtype == "int8" else None,
            class_ids=_tensor(flat["class_ids"], np.int32, layout.kept_classes) if layout.num_classes else None,
            shares=_tensor(flat["class_shares"], None, layout.kept_classes) if layout.num_classes else None,
            rest=_tensor(flat["class_rest"], np.float32) if layout.num_classes else None,
        )
    except (KeyError, IndexError, ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(f"damaged: {error}", where=where, hint="copy or make it again") from error
    columns = (shard.boxes, shard.features, shard.scales, shard.class_ids, shard.shares, shard.rest)
    lengths = {len(column) for column in columns if column is not None}
    inside = bool((np.diff(bounds) >= 0).all()) and bounds[0] >= 0 and bounds[-1] <= min(lengths)
    if len(lengths) != 1 or not inside or len(bounds) != len(sizes) + 1:
        raise DataError("damaged: its columns do not fit together", where=where, hint="copy or make it again")
    if shard.class_ids is not None and len(shard.class_ids):
        low, high = int(shard.class_ids.min()), int(shard.class_ids.max())
        if low < 0 or high >= layout.num_classes:
            raise DataError(f"damaged: a class outside 0..{layout.num_classes - 1}", where=where)
    return shard


def _flat(column: Any) -> Any:
    """The numbers below a list column as [R] or [R, width], still in the file."""
    inner = column.values
    if not pa.types.is_fixed_size_list(inner.type):
        return inner.to_numpy(zero_copy_only=True)
    width = inner.type.list_size
    return inner.values.to_numpy(zero_copy_only=True).reshape(-1, width)


def _tensor(array: Any, dtype: Any, width: int | None = None) -> Tensor:
    if (dtype is not None and array.dtype != dtype) or array.shape[1:] != (() if width is None else (width,)):
        raise ValueError(f"a column holds {array.dtype} {list(array.shape)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is read-only, and nothing here writes to it
        return torch.from_numpy(array)
