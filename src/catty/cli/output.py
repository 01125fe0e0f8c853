"""How commands print: errors, tables, ages, JSON, progress. Whatever it is told, the terminal gets nothing to obey."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from catty.client.text import printable
from catty.errors import CattyError

__all__ = ["Steps", "age", "confirm", "note", "print_error", "print_json", "size", "table"]

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def print_error(error: CattyError) -> None:
    """`error: message [code]` and, on a line of its own, what to do."""
    print(printable(f"error: {error.message} [{error.code}]"), file=sys.stderr)
    if error.hint:
        print(f"  → {printable(error.hint)}", file=sys.stderr)


def note(text: str) -> None:
    """A remark beside the result, so on standard error."""
    print(printable(f"note: {text}"), file=sys.stderr)


def print_json(value: Any) -> None:
    """For scripts, on standard output."""
    print(json.dumps(value, indent=2))


def age(moment: str | None, now: float | None = None) -> str:
    """How long ago an RFC 3339 time was, in its largest unit: `3m`, `2d`; `-` for never."""
    if not moment:
        return "-"
    then = datetime.fromisoformat(moment)
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = max(0.0, (time.time() if now is None else now) - then.timestamp())
    for unit, letter in _UNITS:
        if seconds >= unit:
            return f"{seconds // unit:.0f}{letter}"
    return f"{seconds:.0f}s"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def confirm(question: str) -> bool:
    """Ask on standard error; Enter means yes. False where nobody can answer."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")


class Steps:
    """What a longer command does now: one line that is rewritten on a terminal, a line per step otherwise (on standard error)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._shown = ""

    def say(self, text: str) -> None:
        """Show this step."""
        text = printable(text)
        if text == self._shown:
            return
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)
        self._shown = text

    def bar(self, text: str, done: int, total: int, *, detail: str = "") -> None:
        """Show how far a step is; only on a terminal, where it can be rewritten."""
        if not self._live:
            return
        share = min(1.0, done / total) if total else 1.0
        filled = round(share * 20)
        self.say(f"{text} [{'#' * filled}{'.' * (20 - filled)}] {share:4.0%} {detail}")

    def step(self, text: str, done: int, total: int) -> None:
        """Show one of several steps: as a bar on a terminal, as a line otherwise."""
        if self._live:
            self.bar(text, done, total)
        else:
            self.say(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._live and self._shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
        self._shown = ""

    def done(self, text: str) -> None:
        """Replace the line by a result that stays."""
        self.clear()
        print(printable(text), file=self._stream, flush=True)
