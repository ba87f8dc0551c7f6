"""The plan of a region store that is being built: which image goes into which shard, and notes of what is done."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmbert.errors import DataError
from mmbert.vision.store_files import StoreFiles
from mmbert.vision.store_format import PLAN, Layout

DONE = "done"
"""Folder of the notes, one for each shard that is done."""


class Plan(BaseModel):
    """Which images a build puts where.

    Attributes:
        first: number of its first shard.
        images, digest: how many images, and a hash of their keys in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: Layout
    first: int = Field(ge=0)
    images: int = Field(ge=1)
    shard_images: int = Field(ge=1)
    digest: str

    @property
    def shards(self) -> range:
        """Numbers of the shards."""
        return range(self.first, self.first + -(-self.images // self.shard_images))


def note_name(number: int) -> str:
    """Path of the note that a shard is done, within the store."""
    return f"{DONE}/{number:05}.json"


def read_plan(files: StoreFiles) -> Plan | None:
    """The plan of an unfinished build; None where there is none."""
    try:
        return Plan.model_validate_json(files.read(PLAN))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        hint = f"delete this file and the folder {DONE} beside it, and run again"
        raise DataError("damaged", where=files.place(PLAN), hint=hint) from error


def digest_of(keys: Sequence[str]) -> str:
    """A hash of keys in order."""
    found = hashlib.blake2b(digest_size=16)
    for key in keys:
        found.update(key.encode("utf-8", "surrogatepass") + b"\0")
    return found.hexdigest()


def as_json(content: BaseModel) -> bytes:
    """The bytes of a plan, a note or a manifest."""
    return content.model_dump_json(indent=1).encode()
