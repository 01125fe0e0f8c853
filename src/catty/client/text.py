"""Text of others, made fit for the user's terminal."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["printable", "readable"]

_SEQUENCE: Final = re.compile(
    rb"\x1b\[(?P<csi>(?P<params>[0-?]*)(?P<inner>[ -/]*)(?P<final>[@-~]))"
    rb"|\x1b[]PX^_](?:[^\x07\x1b\x18\x1a]|\x1b(?!\\))*(?:\x07|\x1b\\|[\x18\x1a]|\Z)"  # OSC, DCS, SOS, PM, APC
    rb"|\x1b[ -/]*[0-~]?"
    rb"|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]"
)
_C1: Final = re.compile(
    rb"\xc2+[\x80-\x9f]+"
)  # what may also begin sequences; after the others, whose removal could make one
_NUMBERS: Final = re.compile(rb"[0-9;:]*")
# Colours, the cursor's ways, erasing, inserting, scrolling: what is needed to see what was shown, and leaves nothing behind.
_HARMLESS: Final = frozenset(b"mABCDEFGHIJKLMPSTXZ@`adef")


def printable(text: bytes | str) -> str:
    """What is not printable (names come from machines and from repositories) becomes `?`: no terminal obeys it."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def readable(output: bytes) -> bytes:
    """What a program printed in another terminal, for this one: text, colours and the cursor's ways.

    Without questions, whose answers would be typed into the user's shell, without modes, titles and strings of any kind.
    """
    return _C1.sub(b"", _SEQUENCE.sub(_harmless, output)) + b"\x1b[0m"


def _harmless(match: re.Match[bytes]) -> bytes:
    final, params = match["final"], match["params"]
    if final is None or match["inner"] or final[0] not in _HARMLESS or not _NUMBERS.fullmatch(params):
        return b""
    return b"" if final == b"J" and params == b"3" else match[0]  # the user's own scrollback
