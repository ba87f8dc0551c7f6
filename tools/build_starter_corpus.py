"""Build the starter corpus: emoji names in ~170 languages and drawings in three styles.

This is a maintainer's tool, not part of the installed package. It reads five npm
packages at exact versions and writes ``src/mmbert/assets/starter/``:

* ``concepts.parquet``: one row per emoji (names, keywords, held-out flag),
* ``drawings.parquet``: one row per emoji and style (96x96 WebP with alpha, splits),
* ``LICENSES/``: the licence text of every source and ``ATTRIBUTION.md``.

Run it without arguments to fetch the packages through npm, or give an existing
``node_modules`` with ``--npm-dir``. With the tool versions in ``TOOLS`` two runs
give the same bytes. The licence texts for Twemoji, Noto and Fluent come from the
SPDX licence list because their npm packages do not carry them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image, ImageDraw

PACKAGES = {
    "cldr-annotations-full": "48.2.0",
    "@twemoji/svg": "15.0.0",
    "@iconify-json/noto": "1.2.9",
    "fluentui-emoji": "1.3.0",
    "spdx-license-list": "6.12.0",
}
TOOLS = {"resvg_py": "0.5.0", "pillow": "12.3.0", "pyarrow": "26.0.1"}

LANGUAGES = tuple("en de fr cs es it pt nl pl ru uk tr ar he fa hi bn zh ja ko vi id sw el".split())
STYLES = ("twemoji", "noto", "fluent")
TRAINING_STYLES = ("twemoji", "noto")

SIZE = 96
WEBP_QUALITY = 84
SEED = 20240917
HELD_OUT = 150
VALIDATION = 200
MIN_MEAN_ALPHA = 0.02
MAX_BYTES = 15_000_000

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "mmbert" / "assets" / "starter"

FLUENT_ALIASES = {
    "1f426-200d-2b1b": "blackbird",
    "1f46f": "person-with-bunny-ears",
    "1f46f-200d-2640": "woman-with-bunny-ears",
    "1f46f-200d-2642": "man-with-bunny-ears",
    "1f471": "person-blonde-hair-default",
    "1f471-200d-2640": "woman-blonde-hair-default",
    "1f471-200d-2642": "man-blonde-hair-default",
    "1f53a": "red-triangle",
    "1f621": "pouting-face",
    "1f635": "knocked-out-face",
    "1f917": "hugging-face",
    "1f93c": "person-wrestling",
    "1f93c-200d-2640": "woman-wrestling",
    "1f93c-200d-2642": "man-wrestling",
    "1f959": "stuffedbread",
    "1f9b8": "person-superhero-default",
    "1f9b9": "person-supervillain-default",
    "1f9cf": "person-deaf-default",
    "1f9cf-200d-2640": "woman-deaf-default",
    "1f9cf-200d-2642": "man-deaf-default",
    "1f9d9": "person-mage-default",
    "1f9da": "person-fairy-default",
    "1f9db": "person-vampire-default",
    "1f9dc": "person-merpeople-default",
    "1f9dc-200d-2640": "woman-merpeople-default",
    "1f9dc-200d-2642": "man-merpeople-default",
    "1f9dd": "person-elf-default",
    "1f9de": "person-genie",
    "1f9df": "person-zombie",
}
"""Fluent file names that differ from CLDR's English name, by code points."""


class CorpusBuildError(RuntimeError):
    """A source or a drawing is not what the builder expects."""


@dataclass(frozen=True)
class Concept:
    """One emoji with its names (locale to name) and keywords (locale to list)."""

    text: str
    codepoints: str
    category: str
    names: Mapping[str, str]
    keywords: Mapping[str, Sequence[str]]


def codepoint_id(text: str) -> str:
    """Return the id of an emoji: hex code points joined by ``-``, without U+FE0F."""
    return "-".join(f"{ord(char):x}" for char in text if char != "\ufe0f")


def file_id(stem: str) -> str:
    """Return the id for a package's key: without U+FE0F and without leading zeros."""
    return "-".join(f"{int(part, 16):x}" for part in stem.split("-") if part != "fe0f")


def has_skin_tone(text: str) -> bool:
    """Tell whether the emoji is, or carries, a skin tone modifier."""
    return any(0x1F3FB <= ord(char) <= 0x1F3FF for char in text)


def is_regional_flag(text: str) -> bool:
    """Tell whether the emoji is spelt with regional indicators or flag tags."""
    return any(0x1F1E6 <= ord(char) <= 0x1F1FF or 0xE0020 <= ord(char) <= 0xE007F for char in text)


def slug(name: str) -> str:
    """Turn an English CLDR name into the way Fluent names its files."""
    ascii_name = unicodedata.normalize("NFKD", name).replace("’", "").replace("'", "")
    ascii_name = ascii_name.encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")


# --- names and keywords (CLDR) ---------------------------------------------------------


def is_placeholder(value: str) -> bool:
    """Tell CLDR's markers for 'inherited' and 'not translated' from real text."""
    return not value.strip() or "↑" in value or re.match(r"^E\d+(\.\d+)?[–-]\d+", value) is not None


def unique_keywords(keywords: Iterable[str], name: str) -> list[str]:
    """Return the keywords in order, without the name and without repetitions."""
    seen = {name.casefold()}
    kept = []
    for keyword in keywords:
        if not is_placeholder(keyword) and keyword.casefold() not in seen:
            seen.add(keyword.casefold())
            kept.append(keyword)
    return kept


Annotations = dict[str, dict[str, tuple[str, list[str]]]]


def read_annotations(npm: Path) -> Annotations:
    """Read ``{locale: {emoji without U+FE0F: (name, keywords)}}`` from CLDR."""
    result: Annotations = {}
    for path in sorted((npm / "cldr-annotations-full" / "annotations").glob("*/annotations.json")):
        entries = json.loads(path.read_text("utf-8"))["annotations"].get("annotations", {})
        named = {}
        for text, entry in entries.items():
            name = (entry.get("tts") or [""])[0]
            if not is_placeholder(name):
                keywords = unique_keywords(entry.get("default", []), name)
                named[text.replace("\ufe0f", "")] = (name, keywords)
        result[path.parent.name] = named
    return result


# --- drawings --------------------------------------------------------------------------


class TwemojiDrawings:
    """SVG by code points from the Twemoji package (some file names carry U+FE0F)."""

    def __init__(self, npm: Path) -> None:
        files = sorted((npm / "@twemoji" / "svg").glob("*.svg"))
        self._paths = {file_id(path.stem): path for path in files}

    def __contains__(self, codepoints: str) -> bool:
        return codepoints in self._paths

    def svg(self, codepoints: str) -> str:
        """Return the SVG source of one emoji."""
        return self._paths[codepoints].read_text("utf-8")


class NotoDrawings:
    """SVG by code points from the Noto set in Iconify's JSON format."""

    def __init__(self, npm: Path) -> None:
        folder = npm / "@iconify-json" / "noto"
        chars = json.loads((folder / "chars.json").read_text("utf-8"))
        self._names: dict[str, str] = {file_id(key): name for key, name in chars.items()}
        self._set = json.loads((folder / "icons.json").read_text("utf-8"))
        categories = json.loads((folder / "metadata.json").read_text("utf-8"))["categories"]
        self._categories: dict[str, str] = {icon: title for title, icons in categories.items() for icon in icons}

    def __contains__(self, codepoints: str) -> bool:
        return codepoints in self._names

    def _icon_name(self, codepoints: str) -> str:
        name = self._names[codepoints]
        alias = self._set["aliases"].get(name)
        if alias is None:
            return name
        if set(alias) != {"parent"}:
            raise CorpusBuildError(f"Noto alias {name!r} is transformed: {alias}")
        return str(alias["parent"])

    def category(self, codepoints: str) -> str:
        """Return the Unicode group of one emoji, such as ``Food & Drink``."""
        names = (self._names[codepoints], self._icon_name(codepoints))
        found = [self._categories[name] for name in names if name in self._categories]
        return found[0] if found else ""

    def svg(self, codepoints: str) -> str:
        """Return the SVG source of one emoji."""
        icon = self._set["icons"][self._icon_name(codepoints)]
        width = icon.get("width", self._set["width"])
        height = icon.get("height", self._set["height"])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}">{icon["body"]}</svg>'
        )


class FluentDrawings:
    """SVG by code points from the colour drawings (``modern``) of the Fluent package.

    Args:
        npm: the ``node_modules`` folder.
        english: English CLDR name by code points.
    """

    def __init__(self, npm: Path, english: Mapping[str, str]) -> None:
        files = sorted((npm / "fluentui-emoji" / "icons" / "modern").glob("*.svg"))
        by_slug = {path.stem: path for path in files}
        self._paths: dict[str, Path] = {}
        owner: dict[str, str] = {}
        for codepoints, name in english.items():
            wanted = FLUENT_ALIASES.get(codepoints, slug(name))
            stem = next((s for s in (wanted, f"{wanted}-default") if s in by_slug), None)
            if stem is None:
                if codepoints in FLUENT_ALIASES:
                    raise CorpusBuildError(f"Fluent has no {wanted}.svg for {codepoints}")
                continue
            if stem in owner:
                raise CorpusBuildError(f"{stem}.svg matches {owner[stem]} and {codepoints}")
            owner[stem] = codepoints
            self._paths[codepoints] = by_slug[stem]

    def __contains__(self, codepoints: str) -> bool:
        return codepoints in self._paths

    def svg(self, codepoints: str) -> str:
        """Return the SVG source of one emoji."""
        return self._paths[codepoints].read_text("utf-8")


Drawings = TwemojiDrawings | NotoDrawings | FluentDrawings


def render(svg: str) -> Image.Image:
    """Draw an SVG centred on a transparent ``SIZE`` x ``SIZE`` RGBA canvas."""
    match = re.search(r'viewBox="([^"]+)"', svg)
    if match is None:
        raise CorpusBuildError(f"an SVG has no viewBox: {svg[:120]}")
    _, _, width, height = (float(number) for number in match[1].replace(",", " ").split())
    side = (SIZE, None) if width >= height else (None, SIZE)
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, width=side[0], height=side[1])
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    canvas = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    canvas.paste(drawn, ((SIZE - drawn.width) // 2, (SIZE - drawn.height) // 2))
    return canvas


def mean_alpha(image: Image.Image) -> float:
    """Return the share of the canvas that is covered, from 0 to 1."""
    histogram = image.getchannel("A").histogram()
    covered = sum(level * count for level, count in enumerate(histogram))
    return covered / (255 * image.width * image.height)


def webp_drawing(job: tuple[str, str, str]) -> bytes:
    """Render one ``(codepoints, style, svg)`` and return it as WebP with alpha.

    Raises:
        CorpusBuildError: the drawing came out (almost) blank.
    """
    codepoints, style, svg = job
    image = render(svg)
    if mean_alpha(image) < MIN_MEAN_ALPHA:
        raise CorpusBuildError(f"{style} drawing of {codepoints} is blank")
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=6, alpha_quality=90)
    return buffer.getvalue()


# --- selection and splits --------------------------------------------------------------


def select_concepts(annotations: Annotations, drawings: Mapping[str, Drawings], noto: NotoDrawings) -> list[Concept]:
    """Return the emoji named in all ``LANGUAGES`` and drawn in all styles, by code points."""
    named = set.intersection(*(set(annotations[language]) for language in LANGUAGES))
    concepts = []
    for text in sorted(named, key=lambda text: [ord(char) for char in text]):
        codepoints = codepoint_id(text)
        if has_skin_tone(text) or is_regional_flag(text):
            continue
        if any(codepoints not in style for style in drawings.values()):
            continue
        category = noto.category(codepoints)
        if category == "Flags":
            continue
        entries = {locale: table[text] for locale, table in annotations.items() if text in table}
        concepts.append(
            Concept(
                text=text,
                codepoints=codepoints,
                category=category,
                names={locale: name for locale, (name, _) in entries.items()},
                keywords={locale: words for locale, (_, words) in entries.items() if words},
            )
        )
    return concepts


def stratified_order(concepts: Sequence[Concept], seed: int) -> list[str]:
    """Return all ids so that the categories are contiguous and shuffled inside."""
    generator = random.Random(seed)
    order: list[str] = []
    for category in sorted({concept.category for concept in concepts}):
        members = sorted(c.codepoints for c in concepts if c.category == category)
        generator.shuffle(members)
        order.extend(members)
    return order


def every_kth(items: Sequence[str], count: int) -> list[str]:
    """Return ``count`` items spread evenly over the sequence."""
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def choose_splits(concepts: Sequence[Concept]) -> tuple[set[str], dict[str, str]]:
    """Choose the held-out concepts and, for validation, the style taken out of training.

    Returns:
        The ids of the ``HELD_OUT`` concepts, and ``{id: style}`` for ``VALIDATION``
        further concepts (half ``noto``, half ``twemoji``). Both follow the categories'
        proportions.
    """
    order = stratified_order(concepts, SEED)
    held_out = set(every_kth(order, HELD_OUT))
    rest = [codepoints for codepoints in order if codepoints not in held_out]
    validation = every_kth(rest, VALIDATION)
    styles = {c: TRAINING_STYLES[(i + 1) % 2] for i, c in enumerate(validation)}
    return held_out, styles


def splits_of(codepoints: str, style: str, held_out: set[str], validation: Mapping[str, str]) -> list[str]:
    """Return the splits of one drawing; only training and validation exclude the others."""
    splits = []
    if style == "fluent":
        splits.append("heldout_style")
    if codepoints in held_out:
        splits.append("heldout_concepts")
    if not splits:
        splits.append("validation" if validation.get(codepoints) == style else "train")
    return splits


# --- writing ---------------------------------------------------------------------------

CONCEPTS_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("codepoints", pa.string()),
        ("names", pa.map_(pa.string(), pa.string())),
        ("keywords", pa.map_(pa.string(), pa.list_(pa.string()))),
        ("held_out", pa.bool_()),
    ]
)
DRAWINGS_SCHEMA = pa.schema(
    [
        ("codepoints", pa.string()),
        ("style", pa.string()),
        ("image", pa.binary()),
        ("splits", pa.list_(pa.string())),
    ]
)


def concepts_table(concepts: Sequence[Concept], held_out: set[str]) -> pa.Table:
    """Return the table of ``concepts.parquet``."""
    rows = [
        {
            "concept": concept.text,
            "codepoints": concept.codepoints,
            "names": list(concept.names.items()),
            "keywords": list(concept.keywords.items()),
            "held_out": concept.codepoints in held_out,
        }
        for concept in concepts
    ]
    return pa.Table.from_pylist(rows, schema=CONCEPTS_SCHEMA)


def drawing_jobs(concepts: Sequence[Concept], drawings: Mapping[str, Drawings]) -> Iterator[tuple[str, str, str]]:
    """Yield ``(codepoints, style, svg)`` for every concept and style."""
    for concept in concepts:
        for style in STYLES:
            yield concept.codepoints, style, drawings[style].svg(concept.codepoints)


def drawings_table(
    jobs: Sequence[tuple[str, str, str]],
    held_out: set[str],
    validation: Mapping[str, str],
    processes: int,
) -> pa.Table:
    """Render all jobs and return the table of ``drawings.parquet``."""
    with ProcessPoolExecutor(processes) as pool:
        images = list(pool.map(webp_drawing, jobs, chunksize=64))
    rows = [
        {
            "codepoints": codepoints,
            "style": style,
            "image": image,
            "splits": splits_of(codepoints, style, held_out, validation),
        }
        for (codepoints, style, _), image in zip(jobs, images, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=DRAWINGS_SCHEMA)


ATTRIBUTION = """\
# Sources of the starter corpus

`tools/build_starter_corpus.py` made the two Parquet files from these packages.

| what | from | copyright | licence |
|---|---|---|---|
| names and keywords | Unicode CLDR annotations, npm `cldr-annotations-full` {cldr} | Unicode, Inc. | Unicode-3.0 (`Unicode-3.0.txt`) |
| drawings, style `twemoji` | Twemoji (<https://github.com/jdecked/twemoji>), npm `@twemoji/svg` {twemoji} | Twitter, Inc. and other contributors | graphics CC-BY-4.0 (`CC-BY-4.0.txt`, <https://creativecommons.org/licenses/by/4.0/>); packaging MIT, Samuel Kopp (`MIT-twemoji-svg.txt`) |
| drawings, style `noto` | Noto Emoji (<https://github.com/googlefonts/noto-emoji>), npm `@iconify-json/noto` {noto} | Google Inc. | Apache-2.0 (`Apache-2.0.txt`) |
| drawings, style `fluent` | Fluent Emoji (<https://github.com/microsoft/fluentui-emoji>), npm `fluentui-emoji` {fluent} | Microsoft Corporation; packaging Mohammad Abu Mattar | MIT (`MIT-fluent-emoji.txt`, `MIT-fluentui-emoji-package.txt`) |

What was changed:

- CLDR: only emoji named in all 24 starter languages were kept, without skin tones and
  flags; keywords equal to the name, repeated keywords and untranslated placeholders
  were dropped; the texts themselves are unchanged.
- Drawings: only the emoji above were kept; each SVG was drawn at {size} x {size} pixels
  (centred where it was not square) and stored as lossy WebP with transparency. Nothing
  was recoloured or redrawn.

The owners of these works do not endorse this project.
"""


def write_licences(npm: Path, folder: Path) -> None:
    """Write the licence texts and ``ATTRIBUTION.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    spdx = json.loads((npm / "spdx-license-list" / "spdx-full.json").read_text("utf-8"))
    mit = spdx["MIT"]["licenseText"]
    microsoft = re.sub(r"Copyright \(c\) .*", "Copyright (c) Microsoft Corporation.", mit, count=1)
    if microsoft == mit:
        raise CorpusBuildError("the MIT text has no copyright line to fill in")
    texts = {
        "Unicode-3.0.txt": (npm / "cldr-annotations-full" / "LICENSE").read_text("utf-8"),
        "CC-BY-4.0.txt": spdx["CC-BY-4.0"]["licenseText"],
        "MIT-twemoji-svg.txt": (npm / "@twemoji" / "svg" / "license").read_text("utf-8"),
        "Apache-2.0.txt": spdx["Apache-2.0"]["licenseText"],
        "MIT-fluent-emoji.txt": microsoft,
        "MIT-fluentui-emoji-package.txt": (npm / "fluentui-emoji" / "LICENSE").read_text("utf-8"),
        "ATTRIBUTION.md": ATTRIBUTION.format(
            cldr=PACKAGES["cldr-annotations-full"],
            twemoji=PACKAGES["@twemoji/svg"],
            noto=PACKAGES["@iconify-json/noto"],
            fluent=PACKAGES["fluentui-emoji"],
            size=SIZE,
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text.strip() + "\n", "utf-8", newline="\n")


def write_montage(path: Path, table: pa.Table, ids: Sequence[str], columns: int) -> None:
    """Write a PNG for the eye: per emoji its id and its drawings in all styles."""
    wanted = set(ids)
    images = {
        (row["codepoints"], row["style"]): row["image"]
        for row in table.select(["codepoints", "style", "image"]).to_pylist()
        if row["codepoints"] in wanted
    }
    cell, label = SIZE * 2 // 3, 12
    width, height = cell * len(STYLES) + 8, cell + label
    rows = -(-len(ids) // columns)
    sheet = Image.new("RGB", (width * columns, height * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for index, codepoints in enumerate(ids):
        left, top = index % columns * width, index // columns * height
        draw.text((left, top), codepoints, fill="black")
        for position, style in enumerate(STYLES):
            image = Image.open(io.BytesIO(images[codepoints, style])).convert("RGBA")
            image = image.resize((cell, cell))
            sheet.paste(image, (left + position * cell, top + label), image)
    sheet.save(path)


# --- command line ----------------------------------------------------------------------


def fetch_packages(folder: Path) -> Path:
    """Install ``PACKAGES`` with npm into ``folder`` and return its ``node_modules``."""
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    options = ["--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *options, *wanted], check=True, stdout=sys.stderr)
    return folder / "node_modules"


def check_packages(npm: Path) -> None:
    """Raise ``CorpusBuildError`` unless ``npm`` holds ``PACKAGES`` at their versions."""
    for name, version in PACKAGES.items():
        manifest = npm / name / "package.json"
        found = json.loads(manifest.read_text("utf-8"))["version"] if manifest.exists() else None
        if found != version:
            raise CorpusBuildError(f"{npm} must hold {name} {version}; it holds {found}")


def warn_about_tools() -> None:
    """Say on stderr which tool versions may change the bytes of the result."""
    for name, version in TOOLS.items():
        found = importlib.metadata.version(name)
        if found != version:
            print(f"warning: {name} is {found}, not {version}: bytes may differ", file=sys.stderr)


def build(npm: Path, output: Path, processes: int, montage_dir: Path | None) -> None:
    """Read the packages in ``npm`` and write the whole corpus to ``output``."""
    check_packages(npm)
    annotations = read_annotations(npm)
    english = {codepoint_id(text): name for text, (name, _) in annotations["en"].items()}
    noto = NotoDrawings(npm)
    drawings: dict[str, Drawings] = {
        "twemoji": TwemojiDrawings(npm),
        "noto": noto,
        "fluent": FluentDrawings(npm, english),
    }
    concepts = select_concepts(annotations, drawings, noto)
    held_out, validation = choose_splits(concepts)
    jobs = list(drawing_jobs(concepts, drawings))
    table = drawings_table(jobs, held_out, validation, processes)

    output.mkdir(parents=True, exist_ok=True)
    files = {
        output / "concepts.parquet": concepts_table(concepts, held_out),
        output / "drawings.parquet": table,
    }
    for path, content in files.items():
        pq.write_table(content, path, compression="zstd", compression_level=19)
        print(f"{path.name}: {content.num_rows} rows, {path.stat().st_size:,} bytes")
    write_licences(npm, output / "LICENSES")
    total = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise CorpusBuildError(f"the corpus takes {total:,} bytes; the limit is {MAX_BYTES:,}")
    if montage_dir is not None:
        write_all_montages(montage_dir, table, [concept.codepoints for concept in concepts])


def write_all_montages(folder: Path, table: pa.Table, ids: Sequence[str]) -> None:
    """Write montages of every concept (pages of 120) and of the Fluent aliases."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(ids), 120):
        page = ids[start : start + 120]
        write_montage(folder / f"concepts-{start:04d}.png", table, page, columns=8)
    aliased = [codepoints for codepoints in ids if codepoints in FLUENT_ALIASES]
    write_montage(folder / "aliases.png", table, aliased, columns=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Build the starter corpus from npm packages.")
    parser.add_argument("--npm-dir", type=Path, help="a node_modules folder with the packages")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write")
    parser.add_argument("--processes", type=int, default=2, help="rendering processes")
    parser.add_argument("--montage-dir", type=Path, help="also write PNG pages to look at")
    options = parser.parse_args(arguments)
    warn_about_tools()
    try:
        if options.npm_dir is not None:
            build(options.npm_dir, options.output, options.processes, options.montage_dir)
        else:
            with tempfile.TemporaryDirectory() as folder:
                npm = fetch_packages(Path(folder))
                build(npm, options.output, options.processes, options.montage_dir)
    except CorpusBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
