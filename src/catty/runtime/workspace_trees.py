"""The two trees of a machine that belong to snapshots, and what the workspace process knows of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeVar

from catty.constants import SAVE_EXCLUDES
from catty.workspace.ignore import Rules, Source
from catty.workspace.manifest import Manifest
from catty.workspace.model import HOME, WORKSPACE
from catty.workspace.scan import Cache

__all__ = ["Stopped", "Trees", "below", "in_thread", "save_rules"]

_T = TypeVar("_T")
_NICENESS: Final = 10  # of threads that do bulk work: keystrokes come first


class Stopped(Exception):
    """Nobody waits for this work any more."""


@dataclass(slots=True)
class Trees:
    """`workspace` and `home` are directories; their files belong to `uid` and `gid` (left alone where this process is not root).

    `baseline` is the last manifest that the server is known to have: what it restored, or committed last. After a crash of this
    process it is unknown, and the server sends it again.
    """

    workspace: str
    home: str
    uid: int
    gid: int
    cache: Cache = field(default_factory=Cache.empty)
    baseline: Manifest | None = None
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)  # one save or restore at a time

    def open(self, tree: bytes) -> int:
        """A descriptor of the tree's directory, which is the caller's. Raises OSError."""
        path = {WORKSPACE: self.workspace, HOME: self.home}[tree]
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def own(self, target: int | bytes, directory: int | None = None) -> None:
        """Give a file (a descriptor, or a name in `directory`) to the agent."""
        if os.geteuid() != 0:
            return
        if isinstance(target, int):
            os.fchown(target, self.uid, self.gid)
        else:
            os.chown(target, self.uid, self.gid, dir_fd=directory, follow_symlinks=False)


def save_rules() -> Callable[[bytes, bool], bool]:
    """What stays out of every save, as `walk` wants it."""
    return Rules([Source(b"", "\n".join(SAVE_EXCLUDES).encode())]).match


def below(paths: Iterable[str]) -> Callable[[bytes, bool], bool]:
    """Excludes all but `paths` (relative), what lies below them, and the directories that lead there."""
    wanted = [os.fsencode(path).strip(b"/") for path in paths]

    def exclude(path: bytes, is_dir: bool) -> bool:
        return not any(
            path == want or path.startswith(want + b"/") or (is_dir and want.startswith(path + b"/")) for want in wanted
        )

    return exclude


@cache
def _workers() -> ThreadPoolExecutor:
    def be_nice() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)

    return ThreadPoolExecutor(2, "bulk", be_nice)


async def in_thread(work: Callable[..., _T], *args: Any, stop: threading.Event | None = None) -> _T:
    """`work(*args)` in a thread of low priority. If the caller is cancelled, `stop` is set and the end of the work awaited."""

    future = asyncio.get_running_loop().run_in_executor(_workers(), work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop:
            stop.set()
        await asyncio.wait([future])
        raise
