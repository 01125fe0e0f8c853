"""Python environments that Catty makes for itself, from lock files with hashes, in `~/.catty/env/ID`.

`./catty` runs in one; a `catty` that was installed as the light command line (pipx) runs the embedded server in one. An
environment's ID stands in the first line of its lock file (`make lock` writes it), so finding it costs reading one line; another
lock means another ID. It appears under its name only when complete.

This module needs nothing but the standard library: it runs before there is an environment. `python -m catty.setup.environment NAME`
makes environment NAME and prints its interpreter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from catty.client.config import home
from catty.errors import CattyError, EnvironmentFailed, UsageError

__all__ = ["LOCKS", "ensure_environment", "ensure_server_environment", "environment_python"]

LOCKS: Final = Path(__file__).with_name("locks")
_SERVER_IMPORTS: Final = ("aiohttp", "aiosqlite", "alembic", "obstore", "sqlalchemy")
_PIP: Final = (
    "-m",
    "pip",
    "install",
    "--require-hashes",
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--progress-bar=off",
)
# Settings of the user's that would install somewhere else than into the environment.
_MISLEADING: Final = frozenset({"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONPATH", "PYTHONHOME"})

Progress = Callable[[str, int, int], None]
"""Called with (what happens now, steps done, steps in all)."""


def environment_python(name: str) -> Path:
    """Where the interpreter of environment `name` ("server", "dev") is or will be."""
    with (LOCKS / f"{name}.txt").open() as lock:
        identity = lock.readline().split()[1]
    return home().root / "env" / identity / "bin" / "python"


def ensure_server_environment(progress: Progress | None = None) -> Path:
    """An interpreter that has what the server imports: this one if it has, else that of a managed environment.

    The environment holds Catty's dependencies, not Catty: run it with this package's parent directory on PYTHONPATH.
    """
    if all(importlib.util.find_spec(module) for module in _SERVER_IMPORTS):
        return Path(sys.executable)
    return ensure_environment("server", progress)


def ensure_environment(name: str, progress: Progress | None = None) -> Path:
    """The interpreter of environment `name`, made first if need be (20 s, network). Raises EnvironmentFailed; nothing half-made stays."""
    python = environment_python(name)
    if python.exists():
        return python
    root = python.parent.parent
    root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".making-") as work:
        made = Path(work) / "env"
        _fill(made, LOCKS / f"{name}.txt", progress or (lambda _text, _done, _total: None))
        shutil.rmtree(root, ignore_errors=True)  # its interpreter is gone: the system's Python was upgraded
        with contextlib.suppress(OSError):  # another process was faster; its environment is as good
            made.rename(root)
    return python


def _fill(directory: Path, lock: Path, progress: Progress) -> None:
    total = sum("==" in line for line in lock.read_text().splitlines()) + 2
    progress("making a Python environment", 0, total)
    # Named with its version: after an upgrade of the system's Python the link dangles, and the environment is made anew.
    _run([os.path.realpath(sys.executable), "-m", "venv", str(directory)])
    done = 1

    def line_read(line: str) -> None:
        nonlocal done
        verb, _, rest = line.partition(" ")
        if verb in ("Collecting", "Processing", "Ignoring") and done < total - 1:
            # "idna==3.20 (from …", or the path of a wheel
            name = re.split(r"==|-\d|:", rest.split()[0].rpartition("/")[2])[0]
            progress(f"fetching {name}", done, total)
            done += 1
        elif verb == "Installing":
            progress("installing", total - 1, total)

    _run([str(directory / "bin" / "python"), *_PIP, "--requirement", str(lock)], line_read)
    progress("environment complete", total, total)


def _run(command: list[str], each_line: Callable[[str], None] | None = None) -> None:
    """Run `command`; EnvironmentFailed with the line that tells most if it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in _MISLEADING}
    recent: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101  # for the type checker
        for line in process.stdout:
            recent.append(line.strip())
            if each_line:
                each_line(line.strip())
    if process.returncode != 0:
        why = next((line for line in reversed(recent) if line.startswith(("ERROR", "Error"))), " ".join(recent)[-300:])
        raise EnvironmentFailed(reason=why or f"{command[0]} exited with {process.returncode}")


class _Display:
    """Progress on standard error: one line that is written over on a terminal, elsewhere a few lines."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()

    def __call__(self, text: str, done: int, total: int) -> None:
        if self.terminal:
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r\x1b[Kcatty: {text} [{done}/{total}]{end}")
        elif not text.startswith("fetching"):
            sys.stderr.write(f"catty: {text}\n")
        sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Make the environment named by the only argument and print its interpreter; the exit code."""
    try:
        if len(arguments) != 1 or not (LOCKS / f"{arguments[0]}.txt").is_file():
            raise UsageError("the name of one environment is needed", hint="Environments: server, dev.")
        python = ensure_environment(arguments[0], _Display())
    except CattyError as error:
        sys.stderr.write(f"error: {error.message} [{error.code}]\n  → {error.hint}\n")
        return error.exit_code
    sys.stdout.write(f"{python}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
