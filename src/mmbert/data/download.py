"""Images from addresses of the web: downloaded side by side, checked, and noted, so that an interrupted run goes on.

Addresses and file names go in; JPEG files come out, with ``links.jsonl`` beside them: one line for each address, with
what became of it. Only http and https are followed, and no answer may grow beyond a bound.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from mmbert import __version__
from mmbert.errors import DataError, ImageError
from mmbert.vision.images import load_image

JOURNAL = "links.jsonl"
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers that another try may mend; any other error is for good."""
LONGEST_WAIT = 30.0

Link = tuple[str, str, str]
"""File name below the folder of images, address, and where the address stands."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a download may take.

    Args:
        workers: downloads at a time.
        timeout: seconds until a silent server is given up.
        tries: for an answer that another try may mend.
        first_wait: seconds before the second try; doubled for each further one.
        max_bytes: of one answer.
        side: images whose longer side has more pixels are made smaller; None keeps them.
    """

    workers: int = 16
    timeout: float = 15.0
    tries: int = 3
    first_wait: float = 1.0
    max_bytes: int = 20_000_000
    side: int | None = 512


@dataclass(slots=True)
class Downloaded:
    """What became of the addresses.

    Args:
        saved: images saved by this run.
        already: images that were there.
        dead: addresses without a usable image, of this run and earlier ones.
        reasons: why, with how many.
    """

    saved: int = 0
    already: int = 0
    dead: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        numbers = {"saved": self.saved, "already": self.already, "dead": self.dead}
        return {**numbers, "reasons": dict(self.reasons)}  # asdict would count a Counter's pairs


class _Dead(Exception):
    """An address gives no usable image; ``passing``: perhaps later."""

    def __init__(self, reason: str, *, passing: bool = False, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.passing, self.after = reason, passing, after


class _OnlyWeb(urllib.request.HTTPRedirectHandler):
    """Follows no redirect out of http and https (the library's own would follow one to ftp)."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    links: Iterable[Link],
    out: Path,
    limits: Limits | None = None,
    *,
    again: bool = False,
    progress: Callable[[Downloaded], None] | None = None,
) -> Downloaded:
    """Download images.

    Args:
        links: what to download.
        out: folder of the images; made where it is not there.
        limits: what a download may take.
        again: try dead addresses of earlier runs again.
        progress: told after each address.

    Raises:
        DataError: the folder cannot be written, or its journal is damaged.
    """
    limits = limits or Limits()
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = _read_journal(out / JOURNAL)
        with (out / JOURNAL).open("a", encoding="utf-8") as journal:
            return _Download(out, limits, known, again, progress).run(links, journal)
    except OSError as error:
        raise DataError(
            f"cannot be written: {error.strerror}", where=str(out), hint="check space and rights"
        ) from error


class _Download:
    def __init__(
        self,
        out: Path,
        limits: Limits,
        known: dict[str, str],
        again: bool,
        progress: Callable[[Downloaded], None] | None,
    ) -> None:
        self.out, self.limits, self.known, self.again, self.progress = out, limits, known, again, progress
        self.result = Downloaded()
        self.opener = urllib.request.build_opener(_OnlyWeb)

    def run(self, links: Iterable[Link], journal: io.TextIOBase) -> Downloaded:
        """All links, ``workers`` at a time; only a few are looked ahead, however many there are."""
        running: dict[Future[str], Link] = {}
        with ThreadPoolExecutor(self.limits.workers) as pool:
            try:
                for link in self._open(links):
                    running[pool.submit(self._fetch, link)] = link
                    if len(running) >= 2 * self.limits.workers:
                        self._settle(running, journal)
                while running:
                    self._settle(running, journal)
            except BaseException:  # an interrupt too: do not start what waits
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return self.result

    def _open(self, links: Iterable[Link]) -> Iterator[Link]:
        """Those that are not settled yet."""
        for link in links:
            name = link[0]
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DataError(f"{name!r} lies outside the folder of images", where=link[2])
            reason = self.known.get(name)
            if (self.out / name).is_file():
                self.result.already += 1
            elif reason and not self.again:
                self._dead(reason)
            else:
                yield link
                continue
            self._tell()

    def _settle(self, running: dict[Future[str], Link], journal: io.TextIOBase) -> None:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            name, url, where = running.pop(future)
            reason = future.result()
            if reason:
                self._dead(reason)
            else:
                self.result.saved += 1
            entry = {"file": name, "url": url, "where": where, "dead": reason or None}
            journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._tell()
        journal.flush()

    def _dead(self, reason: str) -> None:
        self.result.dead += 1
        self.result.reasons[reason] += 1

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.result)

    def _fetch(self, link: Link) -> str:
        """Save one image; why not, where that failed."""
        name, url, _ = link
        for trial in range(1, self.limits.tries + 1):
            try:
                jpeg = as_jpeg(self._get(url), self.limits.side)
            except _Dead as dead:
                if not dead.passing or trial == self.limits.tries:
                    return dead.reason
                time.sleep(min(max(self.limits.first_wait * 2 ** (trial - 1), dead.after), LONGEST_WAIT))
            except ImageError as error:
                return f"not a usable image: {error.message}"
            else:
                _write(self.out / name, jpeg)
                return ""
        raise AssertionError("unreachable")

    def _get(self, url: str) -> bytes:
        try:
            _check_scheme(url)
            request = urllib.request.Request(_quoted(url), headers={"User-Agent": f"mm-bert/{__version__}"})
            with self.opener.open(request, timeout=self.limits.timeout) as answer:
                claimed = _claimed_bytes(answer.headers.get("Content-Length"))
                body: bytes = b"" if claimed > self.limits.max_bytes else answer.read(self.limits.max_bytes + 1)
        except urllib.error.HTTPError as error:
            passing = error.code in PASSING
            raise _Dead(f"HTTP {error.code}", passing=passing, after=_retry_after(error)) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise _Dead(_why(error), passing=True) from error
        except ValueError as error:  # an address that cannot be read
            raise _Dead("not an address") from error
        if max(claimed, len(body)) > self.limits.max_bytes:
            raise _Dead(f"larger than {self.limits.max_bytes:,} bytes")
        if len(body) < claimed:  # the library notices only where it is asked for everything
            raise _Dead("the answer was cut short", passing=True)
        return body


def as_jpeg(data: bytes, side: int | None) -> bytes:
    """An encoded image as JPEG, its longer side at most ``side`` pixels; a JPEG that needs no change stays as it is.

    Raises:
        ImageError: it is damaged or no image.
    """
    image = load_image(data, where="download")
    if (side is None or max(image.size) <= side) and data.startswith(b"\xff\xd8\xff"):
        return data
    if side is not None and max(image.size) > side:
        image.thumbnail((side, side), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise _Dead("neither http nor https")


def _quoted(url: str) -> str:
    """The address with blanks and letters outside of ASCII written as the protocol wants them."""
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait."""
    given = (error.headers.get("Retry-After") or "").strip()
    if given.isdecimal():
        return float(given)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _claimed_bytes(given: str | None) -> int:
    """What the server says the answer has; 0 where it says nothing."""
    return int(given) if given is not None and given.strip().isdecimal() else 0


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError) or "timed out" in str(reason):
        return "no answer in time"
    return f"no connection ({type(reason).__name__})"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, path)  # noqa: PTH105


def _read_journal(path: Path) -> dict[str, str]:
    """File name -> why its address is dead ("" where it is not); a line cut short by a crash is the last one."""
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found[entry["file"]] = entry["dead"] or ""
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise DataError("is damaged", where=f"{path}:{number}", hint="remove the line") from error
            path.write_bytes(b"\n".join(lines[:-1]) + b"\n")
    return found
