"""HTML pages in one file: values and images go in, a page that needs nothing else comes out.

No fonts, pictures or scripts from elsewhere; light and dark; right-to-left text as it should be. A page's policy lets
no script run but the one that it was made with, if any. Evaluation and search both render through here and know nothing
of each other.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert.files import whole_file

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from PIL import Image

THUMBNAIL_SIDE = 192
"""Pixels of the longer side: sharp at 160 CSS pixels, some 5 KB each."""


def thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE) -> str:
    """A small copy of an RGB image as a ``data:`` URL."""
    return as_url(shrunk(image, side))


def shrunk(image: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """A copy of an image whose longer side has at most ``side`` pixels."""
    from PIL import Image as images

    small = image.copy()
    small.thumbnail((side, side), images.Resampling.LANCZOS, reducing_gap=2.0)
    return small


def as_url(image: Image.Image) -> str:
    """An RGB image as a ``data:`` URL."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Script:
    """A script within a page.

    Args:
        code: of it.
        policy: how the page's content security policy names it, so that no other one runs.
    """

    code: Markup
    policy: str


def script(name: str) -> Script:
    """A script of this package, for ``render(…, script=…)``."""
    from markupsafe import Markup

    code = (Path(__file__).parent / "templates" / name).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")
    return Script(Markup(code), f"sha256-{digest}")


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; every value is escaped."""
    return _environment().get_template(template).render(**values)


def write_page(path: Path, page: str) -> None:
    """Write a page; an interrupted write leaves nothing under that name.

    Raises:
        UsageError: the file cannot be written.
    """
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mmbert.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda fraction: f"{100 * fraction:.1f}",
        "cosine": lambda value: f"{value:.3f}",
        "rank": lambda value: f"{round(value, 1):g}" if value < 1000 else f"{value:,.0f}",
        "lang": lambda code: "" if code == "und" else code,
    }
    return environment
