"""What a region store says about itself: its layout, its manifest, and the names of its files."""

from __future__ import annotations

import hashlib
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmbert.errors import DataError
from mmbert.vision.store_files import StoreFiles

FORMAT = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"
SHARDS = "shards"
DType = Literal["fp16", "fp32", "int8"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Layout(_Section):
    """What all regions of a store have in common.

    Attributes:
        encoder: identity of what made them; a model refuses regions of another encoder.
        feature_size: F, numbers per region.
        dtype: how features are kept.
        num_classes: C of the class distributions; 0 where there are none.
        top_k: how many of a distribution's shares are kept.
    """

    encoder: str
    feature_size: int = Field(ge=1, le=1 << 20)
    dtype: DType = "fp16"
    num_classes: int = Field(default=0, ge=0, le=1 << 16)
    top_k: int = Field(default=16, ge=1)

    @property
    def kept_classes(self) -> int:
        """Shares kept per region: K."""
        return min(self.top_k, self.num_classes)


class ShardEntry(_Section):
    """One shard: its number, what is in it, and a checksum (BLAKE2b) of its bytes."""

    number: int = Field(ge=0)
    images: int = Field(ge=0)
    regions: int = Field(ge=0)
    bytes: int = Field(ge=0)
    checksum: str
    left_out: list[tuple[str, str]] = []


class Manifest(_Section):
    """Content of ``manifest.json``."""

    format: int = FORMAT
    layout: Layout
    images: int = Field(ge=0)
    regions: int = Field(ge=0)
    shards: list[ShardEntry]

    @property
    def keys_file(self) -> str:
        """The table of keys: renewed with each append, so that readers never see halves of two."""
        return f"keys-{len(self.shards):05}.arrow"

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Bad images, as (where, message), each once however often it was met."""
        return list(dict.fromkeys(pair for entry in self.shards for pair in entry.left_out))


def shard_name(number: int) -> str:
    """Path of a shard within the store."""
    return f"{SHARDS}/{number:05}.arrow"


def checksum(content: bytes | pa.Buffer) -> str:
    """BLAKE2b of a file's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_manifest(files: StoreFiles) -> Manifest | None:
    """The manifest; None where there is none.

    Raises:
        DataError: it is damaged, or of a later version.
    """
    where = files.place(MANIFEST)
    try:
        found = Manifest.model_validate_json(files.read(MANIFEST))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"not the manifest of a region store: {place}: {first['msg']}", where=where) from error
    if found.format != FORMAT:
        raise DataError(f"format {found.format}, but this version reads {FORMAT}", where=where, hint="update mm-bert")
    return found
