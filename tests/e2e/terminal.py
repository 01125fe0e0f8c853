"""A terminal for tests: a program in a real PTY, and the screen that a person would see."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

COLS, ROWS = 100, 32


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
        self.process.close()
        return (
            self.process.exitstatus if self.process.exitstatus is not None else 128 + (self.process.signalstatus or 0)
        )


@contextlib.contextmanager
def terminal(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    """A `Terminal` whose program does not outlive the block."""
    term = Terminal(argv, cwd=cwd, env=env)
    try:
        yield term
    finally:
        term.process.close(force=True)
