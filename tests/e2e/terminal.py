"""A terminal for tests: a program in a real PTY, and the screen that a person would see."""

from __future__ import annotations

import contextlib
import re
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pyte

COLS, ROWS = 100, 32
# Mouse, focus, paste, alternate screens: set by programs, and a shell would not cope with them.
_MODES = (9, 47, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049, 2004)
_STATUS_LINE = re.compile(
    rb"\a?\x1b7\x1b\[\d+;1H(?:\n\x1b8\x1b\[A\x1b7\x1b\[\d+;1H)?\x1b\[0;?7?m[^\x1b]*(?:\x1b\[0m)?\x1b\[2?K\x1b8"
)


class Terminal:
    """Runs `argv` in a PTY of COLS × ROWS; `screen_text` is what stands on its screen, `raw` every byte it printed."""

    def __init__(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self.screen = pyte.Screen(COLS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = bytearray()
        environment = dict(env) | {"TERM": "xterm-256color"}
        self.process = pexpect.spawn(
            argv[0], list(argv[1:]), cwd=str(cwd), env=environment, dimensions=(ROWS, COLS), timeout=30
        )
        self.process.delaybeforesend = None
        self._line_before: list[Any] = termios.tcgetattr(self.process.child_fd)
        self._line_after: list[Any] = []

    @property
    def screen_text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def pump(self, timeout: float) -> bool:
        """Take in what arrives within `timeout` seconds; False once the program has closed the terminal."""
        try:
            data = self.process.read_nonblocking(65536, timeout)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        # pyte stumbles over private sequences that it does not know (kitty keys, XTVERSION): they paint nothing.
        with contextlib.suppress(TypeError):
            self._stream.feed(data)
        return True

    def wait_for(self, *texts: str, timeout: float = 30) -> str:
        """Until one of `texts` stands on the screen; returns it."""
        deadline = time.monotonic() + timeout
        alive = True
        while True:
            for text in texts:
                if text in self.screen_text:
                    return text
            assert alive, f"ended before {texts} was shown:\n{self.screen_text}"
            assert time.monotonic() < deadline, f"{texts} not shown within {timeout} s:\n{self.screen_text}"
            alive = self.pump(0.2)

    def send(self, data: str | bytes) -> None:
        self.process.send(data)

    def wait_exit(self, timeout: float = 30) -> int:
        """The program's exit code (128 + signal where one ended it)."""
        deadline = time.monotonic() + timeout
        while self.pump(0.2):
            assert time.monotonic() < deadline, f"did not end within {timeout} s:\n{self.screen_text}"
        self._line_after = termios.tcgetattr(self.process.child_fd)
        self.process.close()
        return (
            self.process.exitstatus if self.process.exitstatus is not None else 128 + (self.process.signalstatus or 0)
        )

    def hang_up(self, timeout: float = 30) -> None:
        """Close the terminal under the program, as a lost login does, and wait until the program has ended."""
        self.process.ptyproc.fileobj.close()
        deadline = time.monotonic() + timeout
        while self.process.isalive():
            assert time.monotonic() < deadline, "it outlives its terminal"
            time.sleep(0.01)

    @property
    def printed(self) -> bytes:
        """What the program behind an attach printed: without the client's own line."""
        return _STATUS_LINE.sub(b"", bytes(self.raw))

    def check_fresh(self) -> None:
        """After the exit: the line is as it was, and no mode is left in which a shell could not be used."""
        assert self._line_after == self._line_before
        for mode in _MODES:
            switches = re.findall(rb"\x1b\[\?(?:\d+;)*%d(?:;\d+)*([hl])" % mode, self.raw)
            assert switches[-1:] != [b"h"], f"mode {mode} is left"
        assert re.findall(rb"\x1b\[\?25([hl])", self.raw)[-1:] != [b"l"], "the cursor is left hidden"
        depth = 0  # of the stack of kitty's keyboard modes; alternate screens have one of their own
        for how, count in re.findall(rb"\x1b\[([<>])(\d*)u", self.raw):
            depth = depth + 1 if how == b">" else depth - int(count or 1)
        assert depth <= 0, "kitty's keys are left"


@contextlib.contextmanager
def terminal(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    """A `Terminal` whose program does not outlive the block."""
    term = Terminal(argv, cwd=cwd, env=env)
    try:
        yield term
    finally:
        term.process.close(force=True)
