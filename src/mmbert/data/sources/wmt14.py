"""WMT14 English-German: Europarl, Common Crawl and News Commentary, with newstest2013 and newstest2014."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mmbert.data.corpus import CorpusCard, need_all
from mmbert.data.lines import Lines, Segments
from mmbert.data.records import BadRecords
from mmbert.data.sources.parallel_text import ParallelSource
from mmbert.errors import ConfigError

SPLITS = ("train", "validation", "test")
LANGUAGES = ("en", "de")
LINES = {"europarl-v7": 1920209, "commoncrawl": 2399123, "news-commentary-v9": 201288}
CARD = CorpusCard(
    title="Findings of the 2014 Workshop on Statistical Machine Translation (Bojar et al. 2014), English-German",
    where="https://www.statmt.org/wmt14/translation-task.html",
    licence="of its parts; for research",
    size="4,520,620 lines, 1.7 GB to download",
    languages=LANGUAGES,
    splits=SPLITS,
    counts={"train": {"lines": sum(LINES.values())}, "validation": {"lines": 3000}, "test": {"lines": 3003}},
    files=(
        "train: europarl-v7.de-en.*, commoncrawl.de-en.*, news-commentary-v9.de-en.* (or below training/)",
        "validation: newstest2013.* (or below dev/)",
        "test: newstest2014-deen-src.en.sgm and newstest2014-deen-ref.de.sgm (or below test-full/)",
    ),
)

_FILES = {
    "train": {code: [f"{name}.de-en.{code}" for name in LINES] for code in LANGUAGES},
    "validation": {code: [f"newstest2013.{code}"] for code in LANGUAGES},
    "test": {"en": ["newstest2014-deen-src.en.sgm"], "de": ["newstest2014-deen-ref.de.sgm"]},
}
_FOLDERS = ("", "training/", "dev/", "test-full/", "test/")


class Options(BaseModel):
    """Options of WMT14.

    ``root``: the folder that the archives were unpacked in.
    """

    model_config = ConfigDict(extra="forbid")

    root: Path
    split: str = "train"
    skip_bad: bool = False


def open_source(options: Options, *, report: BadRecords | None = None) -> ParallelSource:
    """Open one split; lines blank in one language, which Europarl and Common Crawl have, are left out and counted.

    Raises:
        ConfigError: no such split.
        MissingFiles: naming all files that are not there.
        DataError: files of different length, or a line that is not UTF-8.
    """
    report = report or BadRecords(skip=options.skip_bad)
    if options.split not in _FILES:
        raise ConfigError(f"WMT14 has no split {options.split!r}", hint=f"splits: {', '.join(SPLITS)}")
    root, files = options.root.expanduser(), _FILES[options.split]
    wanted = [name for names in files.values() for name in names]
    found = need_all(root, CARD, [[folder + name for folder in _FOLDERS] for name in wanted])
    paths = dict(zip(wanted, found, strict=True))
    columns = {code: [_lines(paths[name]) for name in names] for code, names in files.items()}
    groups = [dict(zip(columns, group, strict=True)) for group in zip(*columns.values(), strict=True)]
    return ParallelSource(f"wmt14:{options.split}", groups, options.split, report, blank_is_bad=False)


def _lines(path: Path) -> Lines:
    return Segments(path) if path.name.removesuffix(".gz").endswith(".sgm") else Lines(path)
