"""Makes the agent's home ready before each start. Runs in the agent's own process, as its user, just before it is executed.

Symlinks are not followed: a restored home may hold any, and a file that cannot be written this way stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["make_ready", "merged", "write_file"]

PREPARE_S: Final = 60.0  # for the launch's script; the agent starts without it then
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_ready(launch: Mapping[str, Any], home: str, env: Mapping[str, str]) -> tuple[Sequence[str], bool]:
    """Write the files of a `wire.claim.AgentLaunch` (as JSON), run its script, and choose the command line.

    Returns it and whether it resumes a conversation.
    """
    for file in launch.get("files", ()):
        try:
            write_file(home, file)
        except OSError:
            continue
    if launch.get("prepare"):
        _run(launch["prepare"], env)
    if launch.get("resume") and launch.get("transcript") and _exists(home, launch["transcript"]):
        return launch["resume"], True
    return launch["start"], False


def write_file(home: str, file: Mapping[str, Any]) -> None:
    """Put one `wire.claim.AgentFile` below `home`. Raises OSError where a symlink or a non-directory is in the way."""
    *parents, name = file["path"].split("/")
    if not name or any(part in ("", ".", "..") for part in (*parents, name)):
        raise OSError(errno.EINVAL, "not below the home", file["path"])
    directory = os.open(home, _DIRECTORY)
    try:
        for part in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=directory)
            below = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
        existing = _read(directory, name)
        if existing is None:
            _write(directory, name, file["content"], file.get("mode", 0o600))
        elif file.get("merge"):
            text = merged(existing, file["content"])
            if text is not None:
                _write(directory, name, text, file.get("mode", 0o600))
    finally:
        os.close(directory)


def merged(existing: str, content: str) -> str | None:
    """`content`'s keys laid over those of `existing`, both JSON objects; None if nothing changes.

    An existing file that holds no JSON object is of no use to the agent and is replaced.
    """
    over = json.loads(content)
    try:
        base = json.loads(existing)
    except ValueError:
        return content
    if not isinstance(base, dict):
        return content
    result = _overlay(base, over)
    return None if result == base else json.dumps(result, indent=2)


def _overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _read(directory: int, name: str) -> str | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read()


def _write(directory: int, name: str, text: str, mode: int) -> None:
    temporary = f"{name}.catty-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=directory)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def _exists(home: str, pattern: str) -> bool:
    import glob

    return next(glob.iglob(pattern, root_dir=home, include_hidden=True), None) is not None


def _run(script: str, env: Mapping[str, str]) -> None:
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], dict(env), file_actions=null, setpgroup=0)
    deadline = time.monotonic() + PREPARE_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.killpg(pid, 9)
            os.waitpid(pid, 0)
            return
        time.sleep(0.002)
