"""The user's terminal: raw while the attach lasts, and as it was before afterwards, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable
from typing import Any, Final

from catty.errors import DumbTerminal, NotATerminal

__all__ = ["Terminal"]

_READ_BYTES: Final = 65536
_RESTORE_S: Final = 1.0  # a terminal that takes nothing for this long (stopped, hung) is left as it is
_FLAGS: Final = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC


class Terminal:
    """The terminal that standard input and output are.

    It is opened anew: the non-blocking flag belongs to an open file that we would otherwise share with the user's shell. Raises
    NotATerminal or DumbTerminal, naming `what` needs it; `screen`: cursor control is needed as well.
    """

    def __init__(self, what: str, *, screen: bool = True) -> None:
        if not (sys.__stdin__ and sys.__stdout__ and os.isatty(0) and os.isatty(1)):
            raise NotATerminal(what=what)
        term = os.environ.get("TERM", "")
        if screen and term in ("", "dumb"):
            raise DumbTerminal(term=term or "not set")
        self._fd = _open(what)
        self._before: list[Any] | None = None
        self._on_input: Callable[[bytes], None] | None = None
        self._reading = False

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._fd)
            if size.columns and size.lines:
                return size.columns, size.lines
        return 80, 24

    # ------------------------------------------------------------------------------------------ modes of the line

    def make_raw(self) -> None:
        """Every key comes through as it is typed."""
        if self._before is None:
            self._before = termios.tcgetattr(self._fd)
        tty.setraw(self._fd, termios.TCSANOW)

    def restore(self, undo: bytes) -> None:
        """Write `undo` and put the line back as `make_raw()` found it. May be called again, and without a `make_raw()`."""
        if self._before is None:
            return
        self._write_within(undo, _RESTORE_S)
        before, self._before = self._before, None
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcflush(self._fd, termios.TCIFLUSH)  # late mouse reports and answers would be typed into the shell
            termios.tcsetattr(self._fd, termios.TCSANOW, before)

    def close(self) -> None:
        """Give the descriptor back."""
        self.pause_reading()
        os.close(self._fd)

    # ------------------------------------------------------------------------------------------ input

    def start_reading(self, on_input: Callable[[bytes], None]) -> None:
        """Call `on_input` with what is typed; with b"" once the terminal is gone."""
        self._on_input = on_input
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self._reading and self._on_input is not None:
            self._reading = True
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.pause_reading()
        if self._on_input is not None:
            self._on_input(data)

    # ------------------------------------------------------------------------------------------ output

    async def write(self, data: bytes) -> None:
        """Write all of it, waiting while the terminal takes nothing. Raises OSError once it is gone. One writer at a time."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await self._until_writable()

    async def _until_writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(self._fd, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self._fd)

    def _write_within(self, data: bytes, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        rest = memoryview(data)
        with contextlib.suppress(OSError):
            while rest and (left := deadline - time.monotonic()) > 0:
                if select.select([], [self._fd], [], left)[1]:
                    with contextlib.suppress(BlockingIOError):
                        rest = rest[os.write(self._fd, rest) :]


def _open(what: str) -> int:
    for standard in (0, 1):
        with contextlib.suppress(OSError):  # the name may belong to another mount namespace
            return os.open(os.ttyname(standard), _FLAGS)
    with contextlib.suppress(OSError):
        return os.open("/dev/tty", _FLAGS)
    raise NotATerminal(what=what)
