"""Turn lines of text or images into vectors (a .npy file or JSON lines)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from mmbert.cli.common import (
    DeviceOption,
    Int8Option,
    JsonOption,
    ModelOption,
    load_model,
    note,
    output_path,
    print_json,
    show_progress,
)
from mmbert.errors import DataError, UsageError
from mmbert.files import whole_file

if TYPE_CHECKING:
    import numpy as np


def embed(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or folders of them.", show_default=False)
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", "-t", help="A file with one text per line; - is standard input.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write: .npy (one row per input) or .jsonl. Default: JSON lines."),
    ] = None,
    model: ModelOption = "starter",
    device: DeviceOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Turn lines of text or images into vectors.

    Each input becomes one unit-length vector; the vectors of texts and images are comparable by their dot product.
    Row i of a .npy file belongs to line i of the text, or to image i in the order given (folders sorted by name).

    Examples:

      mmbert embed --text captions.txt --out captions.npy
      echo "ein Elefant" | mmbert embed --text -
      mmbert embed photos/ --out photos.npy --json
    """
    if (text is None) == (not images):
        raise UsageError("give either image files or --text FILE", hint="texts: mmbert embed --text captions.txt")
    if out is not None and output_path(out).suffix not in (".npy", ".jsonl"):
        raise UsageError(f"cannot tell the format of {out}", hint="name the file .npy or .jsonl")

    if text is not None:
        sources = read_lines(text)
        encoder = load_model(model, device, int8=int8)
        vectors = encoder.encode_text(sources, progress=show_progress())
    else:
        from mmbert.data.row_records import check_name, shown

        paths = find_images(images or [])
        sources = [str(path) for path in paths]
        if out is None or out.suffix != ".npy":  # which has the numbers alone
            for source in sources:
                check_name(source, shown(source))
        encoder = load_model(model, device, int8=int8)
        vectors = encoder.encode_images(paths, progress=show_progress())

    summary: dict[str, Any] = {
        "model": model,
        "fingerprint": encoder.fingerprint,
        "count": len(sources),
        "size": int(vectors.shape[1]),
    }
    if out is not None:
        write(out, sources, vectors)
        if as_json:
            print_json(summary | {"out": out})
        else:
            note(f"{len(sources)} vectors of {vectors.shape[1]} numbers in {out}")
    elif as_json:
        print_json(summary | {"items": list(_items(sources, vectors))})
    else:
        _write_lines(sys.stdout, sources, vectors)


def read_lines(source: str, becomes: str = "vector") -> list[str]:
    """The lines of a UTF-8 text file, or of standard input for ``-``; ends of line removed.

    Args:
        source: file or ``-``.
        becomes: what is made of each line, for the message.

    Raises:
        DataError: no such file, not UTF-8, no lines, or an empty line (results are told apart by line number).
    """
    where = "standard input" if source == "-" else source
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        # Not splitlines(): U+2028 and its like may stand inside a caption.
        lines = [line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n")]
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text", where=f"{where}:{line}", hint="save the file as UTF-8") from error
    if not lines[-1]:
        lines.pop()  # the end of the last line, not a line of its own
    if not lines:
        raise DataError("it holds no text", where=where)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(
                "empty line", where=f"{where}:{number}", hint=f"remove it: every line becomes one {becomes}"
            )
    return lines


def find_images(given: Sequence[Path]) -> list[Path]:
    """Image files in the order given; a folder stands for the images that other commands find in it, sorted by path.

    Raises:
        DataError: a path does not exist, or a folder holds no images.
    """
    from mmbert.data.sources.folder import list_images

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = list_images(path)
            if not inside:
                raise DataError("no images in this folder", where=str(path))
            found.extend(path / name for name in inside)
        elif path.exists():
            found.append(path)
        else:
            raise DataError("no such file", where=str(path))
    return found


def write(out: Path, sources: Sequence[str], vectors: np.ndarray) -> None:
    """Write vectors to ``out``; an interrupted run leaves no half-written file under that name."""
    import numpy as np

    with whole_file(out) as part:
        if out.suffix == ".npy":
            with part.open("wb") as binary:
                np.save(binary, vectors)
        else:
            with part.open("w", encoding="utf-8") as lines:
                _write_lines(lines, sources, vectors)


def _items(sources: Sequence[str], vectors: np.ndarray) -> Iterator[dict[str, Any]]:
    for source, vector in zip(sources, vectors, strict=True):
        yield {"source": source, "vector": [round(float(x), 7) for x in vector]}


def _write_lines(stream: TextIO, sources: Sequence[str], vectors: np.ndarray) -> None:
    for item in _items(sources, vectors):
        stream.write(json.dumps(item, ensure_ascii=False) + "\n")
