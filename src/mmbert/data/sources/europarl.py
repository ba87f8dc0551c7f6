"""Europarl: sentences of the European Parliament in pairs of languages, line by line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import CorpusCard, Words, find
from mmbert.data.records import BadRecords
from mmbert.data.sources.parallel_text import ParallelSource, open_groups
from mmbert.errors import ConfigError

SPLITS = ("train",)
LINES = {"de-en": 1920209, "fr-en": 2007723}
"""Release v7."""
CARD = CorpusCard(
    title="Europarl: A Parallel Corpus for Statistical Machine Translation (Koehn 2005), release v7",
    where="https://www.statmt.org/europarl",
    licence="no known restriction, says its page",
    size="de-en: 1,920,209 lines, 180 MB to download",
    languages=tuple("bg cs da de el en es et fi fr hu it lt lv nl pl pt ro sk sl sv".split()),
    splits=SPLITS,
    counts={"train": {"lines": LINES["de-en"]}},
    files=("europarl-v7.PAIR.LANGUAGE, e.g. europarl-v7.de-en.de and europarl-v7.de-en.en (plain or .gz)",),
)


class Options(BaseModel):
    """Options of Europarl.

    ``root``: the folder of the unpacked files. ``languages``: English and another one.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str = "train"
    languages: Words = ("en", "de")
    skip_bad: bool = False


def open_source(options: Options, *, report: BadRecords | None = None) -> ParallelSource:
    """Open the two files; lines blank in one language, which the corpus has, are left out and counted.

    Raises:
        ConfigError: not English and another language.
        MissingFiles: a file is not there.
        DataError: files of different length, or a line that is not UTF-8.
    """
    report = report or BadRecords(skip=options.skip_bad)
    pair, root = _pair(options), options.root.expanduser()
    below = "training/" if find(root, f"training/europarl-v7.{pair}.en") is not None else ""
    groups = open_groups(root, [f"{below}europarl-v7.{pair}"], options.languages, CARD)
    return ParallelSource(f"europarl:{pair}", groups, options.split, report, blank_is_bad=False)


def published(options: Options) -> Mapping[str, int]:
    """Lines of the pair, where they are known here."""
    lines = LINES.get(_pair(options))
    return {} if lines is None else {"lines": lines}


def _pair(options: Options) -> str:
    others = [code for code in options.languages if code != "en"]
    if len(options.languages) != 2 or len(others) != 1 or others[0] not in CARD.languages:
        hint = f"one of {', '.join(code for code in CARD.languages if code != 'en')}"
        raise ConfigError(f"Europarl pairs English with one other language, not {options.languages}", hint=hint)
    return f"{others[0]}-en"
