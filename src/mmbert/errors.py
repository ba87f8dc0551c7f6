"""Typed errors: every failure a user can cause says what was wrong, where, and what to do.

Used by every step of the flow; imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping


class MMBertError(Exception):
    """Base of all errors a user can meet.

    Args:
        message: what was wrong.
        where: the file, line or record it was found in, e.g. ``metadata.jsonl:17``.
        hint: what the user can do about it.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(MMBertError):
    """A command or function was asked for something that makes no sense."""


class ConfigError(MMBertError):
    """A recipe, configuration or name is unknown or invalid."""


class DataError(MMBertError):
    """A record, caption file or folder cannot be used.

    Attributes:
        skippable: whoever met it would have gone on without the record or image, had it been told to.
    """

    skippable = False


class ImageError(DataError):
    """An image is missing, damaged or unusable."""


class CheckpointError(MMBertError):
    """A model folder is incomplete, damaged or of another shape."""


class IndexStoreError(MMBertError):
    """A search index is missing, damaged or was made by another model."""


class TrainingError(MMBertError):
    """Training cannot go on (loss not finite, output folder not writable, ...)."""


class TrainingStopped(TrainingError):
    """A signal asked the run to stop, and it has written a checkpoint. Exit code 75: try again later (sysexits.h)."""

    exit_code = 75


def said_by_check(found: Mapping[str, object]) -> str:
    """What one of the problems in pydantic's ``ValidationError.errors()`` is, in the words of the check that found it.

    Pydantic puts "Value error, " before what our own checks say.
    """
    return str(found["msg"]).removeprefix("Value error, ")
