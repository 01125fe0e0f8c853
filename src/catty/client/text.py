"""Text of others, made fit for the user's terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: bytes | str) -> str:
    """What is not printable (names come from machines and from repositories) becomes `?`: no terminal obeys it."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return "".join(letter if letter.isprintable() else "?" for letter in text)
