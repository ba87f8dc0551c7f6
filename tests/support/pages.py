"""Reading HTML pages in tests."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Elements as (tag, attributes, text directly inside); fails on tags that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)
        self.close()
        assert not self._open, f"not closed: {self._open[-1][:2]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element: tuple[str, dict[str, str | None], list[str]] = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1][2].append(data)

    def all(self, tag: str, css: str | None = None) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attrs, "".join(text).strip())
            for name, attrs, text in self.elements
            if name == tag and (css is None or css in (attrs.get("class") or "").split())
        ]


def outside_references(page: str) -> list[str]:
    """Everything that a browser would fetch, and scripts that the page's policy does not name by their hash."""
    parsed = Page(page)
    links = [
        value
        for _, attrs, _ in parsed.elements
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "data", "action", "poster") and not (value or "").startswith("data:")
    ]
    return links + re.findall(r"@import|url\(", page) + [tag for tag, *_ in _other_scripts(parsed)]


def _other_scripts(parsed: Page) -> list[tuple[str, dict[str, str | None], list[str]]]:
    """Scripts that are neither data nor named by the policy."""
    policies = [attrs.get("content") or "" for attrs, _ in parsed.all("meta") if "http-equiv" in attrs]
    scripts = [
        one
        for one in parsed.elements
        if one[0] == "script" and one[1] != {"type": "application/json", "id": "attention"}
    ]
    digests = [base64.b64encode(hashlib.sha256("".join(text).encode()).digest()).decode() for *_, text in scripts]
    return [
        one
        for one, digest in zip(scripts, digests, strict=True)
        if one[1] or not any(f"'sha256-{digest}'" in policy for policy in policies)
    ]
