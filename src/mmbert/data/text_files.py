"""Texts by language, from files as they lie about: ``train.de``, ``de.txt``, ``de=any-name.gz``, or folders of such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mmbert.data.lines import Lines
from mmbert.data.metadata import language
from mmbert.data.records import UNDETERMINED, Source
from mmbert.errors import DataError, UsageError

NOT_LANGUAGES = ("gz", "txt", "doc", "tok", "raw")
"""Ends of names that look like language codes and are none."""


def texts_of_files(given: Iterable[str]) -> dict[str, list[str]]:
    """Every line that is not blank, by language.

    Args:
        given: files or folders, each with ``LANGUAGE=`` before it or not. Without, the language is the part of a file's
            name that is shaped like a code: its end (``train.de``) or all of it (``de.txt``); else it is undetermined.

    Raises:
        UsageError: no such file or folder, or a wrong code before it.
        DataError: a folder without files, or a line that is not UTF-8.
    """
    found: dict[str, list[str]] = {}
    for one in given:
        code, path = _named(one)
        for file in _files(path):
            texts = found.setdefault(code or language_of_file(file), [])
            lines = Lines(file)
            texts.extend(text for text in (lines[i] for i in range(len(lines))) if text)
    return found


def texts_of_sources(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Every distinct caption and further text of sources, by language."""
    found: dict[str, dict[str, None]] = {}
    for source in sources:
        for i in range(len(source)):
            record = source[i]
            for code, texts in (*record.captions.items(), *record.texts.items()):
                found.setdefault(code, {}).update(dict.fromkeys(texts))
    return {code: list(texts) for code, texts in found.items()}


def language_of_file(path: Path) -> str:
    """``train.de.gz`` and ``de.txt`` give ``de``; a name that says nothing gives the undetermined language."""
    parts = [part for part in path.name.split(".") if part]
    while len(parts) > 1 and parts[-1].lower() in NOT_LANGUAGES:
        parts.pop()
    code = language(parts[-1]) if parts and parts[-1].lower() not in NOT_LANGUAGES else None
    return code or UNDETERMINED


def _named(given: str) -> tuple[str | None, Path]:
    code, equals, rest = given.partition("=")
    if not equals or Path(given).exists():
        code, rest = "", given
    if code and language(code) != code:
        raise UsageError(f"{code!r} is not a language code such as en or zh-Hant", hint="write LANGUAGE=FILE")
    path = Path(rest).expanduser()
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}")
    return code or None, path


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    inside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not inside:
        raise DataError("no files in it", where=str(path))
    yield from inside
