"""API keys: made at random, kept as hashes, compared in constant time.

A key has 256 random bits, so a plain hash of it cannot be searched; the slow hashes that passwords need would only
slow every request down.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path

from mmbert.errors import ConfigError, UsageError

PREFIX = "mmb_"


def new_key(file: Path, name: str) -> str:
    """Make a key and add its hash to ``file``; the key itself is kept nowhere.

    Raises:
        UsageError: there is a key of that name, or the file cannot be written.
    """
    keys = read_keys(file) if file.is_file() else {}
    if name in keys:
        raise UsageError(f"there is a key {name!r} already", where=str(file), hint="take its line out first")
    key = PREFIX + secrets.token_urlsafe(32)
    keys[name] = _hash(key)
    part = file.with_name(file.name + ".part")
    try:
        part.touch(mode=0o600)
        part.write_text(json.dumps(keys, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise UsageError(
            f"the key cannot be kept: {error.strerror}", where=str(file), hint="does the folder exist?"
        ) from error
    return key


def read_keys(file: Path) -> dict[str, str]:
    """Name -> hash.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        keys = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(keys, dict) or not all(isinstance(v, str) and len(v) == 64 for v in keys.values()):
            raise ValueError("not an object of names and hashes")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the keys: {error}", where=str(file), hint=f"mmbert serve --keys {file} --new-key NAME"
        ) from error
    return keys


def sent_key(header: str | None) -> str | None:
    """The key in an ``Authorization`` header; None where there is none."""
    scheme, _, key = (header or "").partition(" ")
    return (key.strip() or None) if scheme.lower() == "bearer" else None


def owner(keys: dict[str, str], header: str | None) -> str | None:
    """Whose key an ``Authorization`` header has; None: nobody's. Every hash is compared, whichever fits."""
    given = _hash(sent_key(header) or "")
    found = None
    for name, known in keys.items():
        if hmac.compare_digest(known, given):
            found = name
    return found


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
