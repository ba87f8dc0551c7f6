"""Figures as PNG: what is to be drawn goes in, a file that Matplotlib wrote comes out, with letters of every script.

Matplotlib sets text by a list of fonts, joins and turns letters as their script wants, and finds the fonts of the
machine; ``letters`` makes that list. It belongs to the extra ``report``.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert.errors import UsageError
from mmbert.files import whole_file
from mmbert.plugins import need_packages

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

INK, FAINT, LINE, ACCENT, RIGHT, WRONG = "#1c1f23", "#626a73", "#dcdfe3", "#2b6cd9", "#14804a", "#c23a2b"
"""The colours of the pages (``style.css``), in the light."""
DPI = 160
FIRST = "DejaVu Sans"
"""Comes with Matplotlib: Latin, Greek, Cyrillic, Arabic letters and more."""


def need_matplotlib() -> None:
    """Look whether figures can be drawn.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    need_packages("report", "matplotlib", message="pictures are drawn by Matplotlib")


@contextmanager
def letters(texts: Iterable[str], fonts: Sequence[Path] = ()) -> Iterator[str]:
    """Draw and save figures in here: fonts are set that together have the letters of ``texts``.

    Args:
        texts: all that will be written.
        fonts: TrueType fonts that come first.

    Yields:
        characters that no font has; they become boxes, and Matplotlib does not warn of each.

    Raises:
        UsageError: Matplotlib is not installed, or a font is none.
    """
    need_matplotlib()
    import matplotlib

    families, missing = _families({c for text in texts for c in text}, fonts)
    settings: Any = {
        "font.family": families,
        "text.parse_math": False,  # a dollar sign in a caption is one
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        if missing:
            warnings.filterwarnings("ignore", f"Glyph ({'|'.join(str(ord(c)) for c in missing)}) ")
        yield missing


def _families(wanted: set[str], fonts: Sequence[Path]) -> tuple[list[str], str]:
    """Names of fonts that have the characters, as few as a greedy choice finds, and the characters that none has."""
    from matplotlib.font_manager import fontManager

    left = {ord(c) for c in wanted if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf")}
    chosen = [_added(font) for font in fonts]
    if FIRST not in chosen:
        chosen.append(FIRST)
    for name in chosen:
        left -= _characters(name)
    if left:
        there = {
            entry.name for entry in fontManager.ttflist if entry.style == "normal" and 400 <= int(entry.weight) <= 500
        }
        usable = sorted(there - set(chosen), key=lambda name: (not name.startswith("Noto Sans"), name))
        known = {name: _characters(name) & left for name in usable if "Emoji" not in name}
        while left and known:
            best = max(known, key=lambda name: len(known[name] & left))
            if not known[best] & left:
                break
            chosen.append(best)
            left -= known.pop(best)
    return chosen, "".join(map(chr, sorted(left)))


def _added(font: Path) -> str:
    """Make a font file known; its family."""
    from matplotlib.font_manager import fontManager, get_font

    try:
        fontManager.addfont(font)
        return get_font(str(font)).family_name
    except (OSError, RuntimeError) as error:
        raise UsageError(f"not a font: {font}", hint="give a .ttf or .otf file") from error


def _characters(family: str) -> set[int]:
    """Code points of a font; none where its file cannot be read."""
    from matplotlib.font_manager import findfont, get_font

    try:
        return set(get_font(findfont(family, fallback_to_default=False)).get_charmap())
    except (OSError, RuntimeError, ValueError):  # gone since Matplotlib looked, or damaged
        return set()


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure.

    Args:
        width, height: in inches, of ``DPI`` pixels each.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG, the same bytes for the same figure; an interrupted write leaves nothing under that name.

    Raises:
        UsageError: the file cannot be written.
    """
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})


def picture_folder(path: Path, make: bool = True) -> Path:
    """``path`` as a folder for pictures, made where it is missing.

    Args:
        make: False: look only whether it could be made.

    Raises:
        UsageError: it is a file, its parent is missing, or it cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", hint="give a folder for the pictures")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", hint="create it first")
    try:
        if make:
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def can_draw(path: Path | None) -> None:
    """Look before the work begins whether pictures can be written into a folder, if one is given.

    Raises:
        UsageError: Matplotlib is not installed, or as of ``picture_folder``.
    """
    if path is not None:
        need_matplotlib()
        picture_folder(path, make=False)


class Sheet:
    """Paper on which pictures and lines of text are put; places in inches from the top left.

    Args:
        width, height: of the paper.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), facecolor="white")
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._limits = ((0, width), (height, 0))
        self._hold()

    def _hold(self) -> None:
        """An image changes the limits of its axes; these are those of the paper."""
        self._axes.set(xlim=self._limits[0], ylim=self._limits[1])

    def text(self, x: float, y: float, text: str, *, size: float = 9, colour: str = INK, **options: Any) -> None:
        """A line of text, its middle at ``y``."""
        self._axes.text(x, y, text, fontsize=size, color=colour, va="center", **options)

    def frame(self, x: float, y: float, width: float, height: float, colour: str, line: float = 2) -> None:
        """A box."""
        from matplotlib.patches import Rectangle

        self._axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=line))

    def dots(self, places: Sequence[tuple[float, float]], colours: Sequence[str]) -> None:
        """Small dots at these places."""
        if places:
            across, down = zip(*places, strict=True)
            self._axes.scatter(across, down, s=9, c=list(colours), linewidths=0, zorder=3)
            self._hold()

    def image(self, x: float, y: float, side: float, image: Image.Image | None) -> None:
        """An image within a square, as large as it fits; "cannot be opened" where there is none."""
        if image is None:
            self.text(x + side / 2, y + side / 2, "cannot be opened", size=6, colour=FAINT, ha="center")
            return
        scale = side / max(image.size)
        width, height = image.width * scale, image.height * scale
        left, top = x + (side - width) / 2, y + (side - height) / 2
        extent = (left, left + width, top + height, top)
        self._axes.imshow(image, extent=extent, aspect="auto", interpolation="lanczos")
        self._hold()


def shortened(text: str, width: float, size: float) -> str:
    """A text cut to about ``width`` inches in letters of ``size`` points; wide letters (of East Asia) count twice."""
    room = width * 72 / (0.58 * size)
    for number, character in enumerate(text):
        room -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if room < 0:
            return text[: max(0, number - 1)].rstrip() + "…"
    return text
