"""A place to measure in: a home of its own for Catty, a small project, an engine; all of it gone in the end, whatever happened."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect

from catty.client.config import home
from catty.setup.environment import ensure_environment

__all__ = ["Ran", "Stage", "run", "stage", "until_shown"]

ROOT = Path(__file__).parents[1]
_SECONDS = 120
_COLS, _ROWS = 100, 32


@dataclass(frozen=True)
class Ran:
    """A command that succeeded: wall time and CPU time (its own and that of the processes it waited for), in ms."""

    wall: float
    cpu: float
    out: str


@dataclass(frozen=True)
class Stage:
    """`env` is for processes that measure; `home` is Catty's, `project` a small repository."""

    command: str
    home: Path
    project: Path
    env: dict[str, str]

    def catty(self, *words: str, cwd: Path | None = None) -> Ran:
        """A command of Catty's, from its start to its end."""
        return run([self.command, *words], env=self.env, cwd=cwd or self.project)

    def new(self, *words: str) -> tuple[Ran, dict[str, Any]]:
        """A detached session, running."""
        ran = self.catty("new", "-d", "--json", "--yes", *words)
        return ran, json.loads(ran.out)

    def spares(self) -> int:
        """How many machines its server has made ready so far."""
        return (self.home / "server/server.log").read_text().count("a machine is kept ready")

    def remove(self, label: str) -> None:
        """End a session, its files too."""
        self.catty("stop", label, "--delete", "--yes")


def run(words: Sequence[str], *, env: dict[str, str], cwd: Path) -> Ran:
    """Run a command that must succeed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{words} exited {process.returncode}: {err.read().decode()}")
        return Ran(1000 * wall, 1000 * (usage.ru_utime + usage.ru_stime), out.read().decode())


def until_shown(
    words: Sequence[str],
    signs: Sequence[Callable[[bytes], bool]],
    *,
    env: dict[str, str],
    cwd: Path,
    leave: bytes = b"",
) -> list[float]:
    """Run a program in a real terminal; ms from its start until its output so far fits each of `signs`, in their order.

    `leave` is then typed; the program is given a moment to end by it, and killed otherwise.
    """
    begun = time.perf_counter()
    program = pexpect.spawn(
        words[0], list(words[1:]), env=env, cwd=str(cwd), dimensions=(_ROWS, _COLS), timeout=_SECONDS
    )
    program.delaybeforesend = None
    output = bytearray()
    times: list[float] = []
    try:
        while len(times) < len(signs):
            try:
                output += program.read_nonblocking(1 << 16, _SECONDS)
            except (pexpect.EOF, pexpect.TIMEOUT):
                raise RuntimeError(f"{words} did not show what was waited for: {bytes(output)!r}") from None
            now = 1000 * (time.perf_counter() - begun)
            while len(times) < len(signs) and signs[len(times)](bytes(output)):
                times.append(now)
        if leave:
            program.send(leave)
            with contextlib.suppress(pexpect.TIMEOUT):
                program.expect(pexpect.EOF, timeout=5)
    finally:
        program.close(force=True)
    return times


@contextlib.contextmanager
def stage(*, spare: bool = False) -> Iterator[Stage]:
    """A stage with the embedded server running and the session image built; sessions, server and files end with the block.

    `spare`: its server keeps a blank machine ready after each `new`, as servers do unless told otherwise.
    """
    ensure_environment("server")
    root = Path(tempfile.mkdtemp(prefix="catty-"))
    catty_home, project = root / "home", root / "project"
    catty_home.mkdir()
    (catty_home / "env").symlink_to(home().root / "env")
    _make_project(project)
    # Of the caller's environment nothing that changes what is measured: PYTHONDONTWRITEBYTECODE alone doubles each start.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CATTY_", "PYTHON"))} | {
        "CATTY_HOME": str(catty_home),
        "CATTY_SERVER_NO_SPARE": "" if spare else "1",
        "CI": "1",
        "TERM": "xterm-256color",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",  # a keyring's own time is not ours
    }
    place = Stage(str(ROOT / "catty"), catty_home, project, env)
    try:
        place.catty("setup", "--yes")
        yield place
    finally:
        for words in (["stop", "--all", "--delete", "--yes"], ["server", "stop"]):
            subprocess.run([place.command, *words], env=env, cwd=project, capture_output=True, check=False, timeout=300)
        shutil.rmtree(root)


def _make_project(directory: Path) -> None:
    """A hundred small files in a git repository."""
    for folder in range(10):
        (directory / f"part{folder}").mkdir(parents=True)
        for number in range(10):
            text = f"def function_{number}() -> int:\n    return {folder * 10 + number}\n" * 20
            (directory / f"part{folder}" / f"module{number}.py").write_text(text)
    git = ["git", "-C", str(directory), "-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
