"""Which paths of a tree may have changed: inotify, without ever trusting it to be complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from inotify_simple import INotify, flags  # type: ignore[import-untyped]

from catty.workspace.atomic import open_directory
from catty.workspace.model import Kind
from catty.workspace.walk import walk

__all__ = ["Changes", "Watcher"]

_MASK: Final = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.MODIFY
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.ONLYDIR
    | flags.EXCL_UNLINK
)
_GONE: Final = flags.DELETE | flags.MOVED_FROM


@dataclass(slots=True)
class Changes:
    """What to look at again. `done`: paths that somebody finished with; `open`: files that are being written to and may stay so for
    long; `everything`: events were lost, compare all."""

    done: set[bytes] = field(default_factory=set)
    open: set[bytes] = field(default_factory=set)
    everything: bool = False

    def __bool__(self) -> bool:
        return bool(self.done or self.open or self.everything)


class Watcher:
    """Watches the directory `root` (a descriptor that stays the caller's) and all below it that `exclude` leaves in.

    `fileno` becomes readable when there is something to `read`.
    """

    def __init__(self, root: int, exclude: Callable[[bytes, bool], bool]) -> None:
        self.limited = False
        """The kernel gives no more watches: some directories are not watched."""
        self._root, self._exclude = root, exclude
        self._inotify = INotify(nonblocking=True)
        self._paths: dict[int, bytes] = {}  # by watch, and the other way round
        self._watches: dict[bytes, int] = {}

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return int(self._inotify.fileno())

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()

    def watches(self, path: bytes) -> bool:
        """Whether the directory `path` (relative to the root) is watched."""
        return path in self._watches

    def add_tree(self, path: bytes) -> None:
        """Watch the directory `path` and those below it. Look at their content after that, not before: then nothing is missed."""
        if self._add(path):
            for found in self._below(path):
                self._add(found)

    def drop_tree(self, path: bytes) -> None:
        """Stop watching the directory `path` and those below it."""
        prefix = path + b"/"
        for known in [known for known in self._watches if known == path or known.startswith(prefix)]:
            watch = self._watches.pop(known)
            self._paths.pop(watch, None)
            with suppress(OSError):  # the kernel drops the watch of a directory that is deleted
                self._inotify.rm_watch(watch)

    def read(self) -> Changes:
        """What has happened since the last call; never waits. New directories are not watched yet: they are in `done`."""
        changes = Changes()
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                changes.everything = True
                continue
            directory = self._paths.get(event.wd)
            if event.mask & flags.IGNORED:
                self._forget(event.wd)
            if directory is None or not event.name:
                continue
            name = os.fsencode(event.name)
            path = directory + b"/" + name if directory else name
            if event.mask & flags.ISDIR and event.mask & _GONE:
                self.drop_tree(path)
            if event.mask & flags.MODIFY:
                if path not in changes.done:
                    changes.open.add(path)
            else:
                changes.done.add(path)
                changes.open.discard(path)
        return changes

    def _below(self, path: bytes) -> Iterator[bytes]:
        try:
            for found in walk(self._root, path, exclude=self._exclude, skipped=lambda _path, _why: None):
                if found.kind is Kind.DIR:
                    yield found.path
        except OSError:  # gone again, or no directory any more: whoever looks next will see
            return

    def _add(self, path: bytes) -> bool:
        try:
            directory = open_directory(self._root, path)
        except OSError:
            return False
        try:
            watch = self._inotify.add_watch(f"/proc/self/fd/{directory}", _MASK)
        except OSError as error:
            self.limited = self.limited or error.errno in (errno.ENOSPC, errno.ENOMEM)
            return False
        finally:
            os.close(directory)
        stale = self._paths.get(watch)
        if stale is not None and stale != path:  # the directory was moved here before we saw it go
            self._watches.pop(stale, None)
        self._paths[watch], self._watches[path] = path, watch
        return True

    def _forget(self, watch: int) -> None:
        path = self._paths.pop(watch, None)
        if path is not None and self._watches.get(path) == watch:
            del self._watches[path]
