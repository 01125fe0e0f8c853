"""A pasted text that is the path of an image or document on the user's machine (terminals paste that when a file is dropped)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from catty import constants

__all__ = ["file_in"]

_SUFFIXES: Final = frozenset(
    f".{name}" for name in ["png", "jpg", "jpeg", "gif", "webp", "bmp", "svg", "pdf", "txt", "md", "json", "xml", "csv"]
)
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)


def file_in(text: bytes) -> Path | None:
    """The file whose absolute path `text` is, quoted, escaped or as a `file://` address; None if it is none we would upload."""
    name = text.strip()
    if not name or any(byte < 0x20 for byte in name):
        return None
    if len(name) > 1 and name[0] == name[-1] and name[0] in b"'\"":
        name = name[1:-1]
    elif name.startswith(b"file://"):
        name = unquote_to_bytes(name[7:].removeprefix(b"localhost"))
    elif not os.path.exists(name):
        name = _ESCAPED.sub(rb"\1", name)
    path = Path(os.fsdecode(name))
    try:
        fits = path.is_absolute() and path.suffix.lower() in _SUFFIXES and path.is_file()
        return path if fits and path.stat().st_size <= constants.PASTE_UPLOAD_LIMIT_BYTES else None
    except (OSError, ValueError):
        return None
