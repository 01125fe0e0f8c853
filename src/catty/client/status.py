"""The one line at the bottom of the screen that is ours: offline, notices, help. No I/O: what to write, as bytes.

Nothing of the screen's content is known here, so what the line covers is painted anew by the program afterwards (a change of size
makes it). Where lines scroll (no alternate screen), the text is first moved up by one line: it is in the scrollback then, not lost.
"""

from __future__ import annotations

from typing import Final

__all__ = ["HELP", "StatusLine", "offline"]

HELP: Final = "~. leave   ~? this help   ~s sync   ~^Z suspend   ~~ a tilde   (each directly after Enter)"


def offline(seconds: float, keys: int) -> str:
    """The text while the connection is away."""
    return f"reconnecting, {seconds:.0f} s, {keys} key{'' if keys == 1 else 's'} kept; ~. to leave"


class StatusLine:
    """Whether the line is shown, and what shows, changes and removes it."""

    def __init__(self) -> None:
        self.text = ""  # "" while it is not shown
        self._row = 0

    def show(self, text: str, cols: int, rows: int, *, scrolls: bool) -> bytes:
        """What to write so that `text` is shown; `scrolls`: the program writes lines that scroll."""
        text = "".join(letter if letter.isprintable() else "·" for letter in text)
        make_room = b""
        if not self.text and scrolls:
            make_room = b"\x1b7\x1b[%d;1H\n\x1b8\x1b[A" % rows
        self.text, self._row = text, rows
        shown = f" catty: {text}"[: cols - 1].encode()
        return make_room + b"\x1b7\x1b[%d;1H\x1b[0;7m%s\x1b[0m\x1b[K\x1b8" % (rows, shown)

    def remove(self) -> bytes:
        """What to write so that the line is empty again; nothing if it is not shown."""
        if not self.text:
            return b""
        self.text = ""
        return b"\x1b7\x1b[%d;1H\x1b[0m\x1b[2K\x1b8" % self._row
