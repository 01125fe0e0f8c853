"""Walks a tree of files that somebody may be changing meanwhile, without ever leaving it or following a symlink."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from catty.workspace.atomic import open_directory
from catty.workspace.model import PATH_MAX_BYTES, Kind

__all__ = ["Found", "Signature", "look", "nothing", "walk"]

_OPEN_MAX: Final = 64  # directories at once, however deep the tree: a process has few descriptors
_CLOSED: Final = -1
_TIME_MAX: Final = (1 << 63) - 1  # ns; file systems know years beyond 2262, the formats that times are kept in do not
_KINDS: Final = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIR, stat.S_IFLNK: Kind.SYMLINK}


class Signature(NamedTuple):
    """What tells by a look from outside that a file may have changed. Times in ns; `mode` holds the kind too."""

    mtime_ns: int
    ctime_ns: int
    size: int
    inode: int
    mode: int

    @classmethod
    def of(cls, info: os.stat_result) -> Signature:
        """From a stat."""
        return cls(_in_range(info.st_mtime_ns), _in_range(info.st_ctime_ns), info.st_size, info.st_ino, info.st_mode)

    @property
    def kind(self) -> Kind | None:
        """None for what is never part of a snapshot."""
        return _KINDS.get(stat.S_IFMT(self.mode))


class Found(NamedTuple):
    """Something on the way. `directory` is a descriptor of where `name` lies, open until the walk goes on."""

    path: bytes
    signature: Signature
    kind: Kind
    directory: int
    name: bytes


@dataclass(slots=True)
class _Level:
    descriptor: int  # _CLOSED: given back, as the walk is far below
    path: bytes  # empty, or with a slash at its end
    names: list[bytes]  # still to come, the next one last


def nothing(path: bytes, is_dir: bool) -> bool:  # noqa: ARG001  # the shape of `exclude`
    """Excludes nothing."""
    return False


def walk(
    root: int,
    below: bytes = b"",
    *,
    exclude: Callable[[bytes, bool], bool] = nothing,
    skipped: Callable[[bytes, str], None],
) -> Iterator[Found]:
    """All that lies below the directory `below` of the directory `root`, in tree order; paths are relative to `root`.

    `exclude(path, is_dir)` leaves a path out, and all below it. `skipped(path, why)` hears of what cannot be part of a snapshot:
    sockets, fifos, devices, what is unreadable, paths too long. What vanishes meanwhile was never there.
    """
    levels = [_enter(open_directory(root, below), below and below + b"/")]
    try:
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop()
                if level.descriptor != _CLOSED:
                    os.close(level.descriptor)
                continue
            if level.descriptor == _CLOSED:
                again = _level(root, level.path[:-1], level.path[:-1], skipped)
                if again is None:  # moved or replaced meanwhile
                    level.names.clear()
                    continue
                level.descriptor = again.descriptor
            name = level.names.pop()
            path = level.path + name
            if len(path) > PATH_MAX_BYTES - 16:  # room for the tree's name in front
                skipped(path[:PATH_MAX_BYTES], "path too long")
                continue
            found = look(level.descriptor, name, path, exclude, skipped)
            if found is None:
                continue
            yield found
            if found.kind is Kind.DIR:
                _give_back(levels)
                if deeper := _level(level.descriptor, name, path, skipped):
                    levels.append(deeper)
    finally:
        for level in levels:
            if level.descriptor != _CLOSED:
                os.close(level.descriptor)


def _level(directory: int, name: bytes, path: bytes, skipped: Callable[[bytes, str], None]) -> _Level | None:
    """The directory `name` below `directory`; None if it is gone, or, which is reported, cannot be read or is none any more."""
    try:
        return _enter(open_directory(directory, name), path + b"/")
    except FileNotFoundError:
        return None
    except OSError as error:
        skipped(path, error.strerror or "unreadable")
        return None


def _give_back(levels: list[_Level]) -> None:
    if len(levels) >= _OPEN_MAX:
        level = levels[-_OPEN_MAX]
        if level.descriptor != _CLOSED:
            os.close(level.descriptor)
            level.descriptor = _CLOSED


def look(
    directory: int,
    name: bytes,
    path: bytes,
    exclude: Callable[[bytes, bool], bool],
    skipped: Callable[[bytes, str], None],
) -> Found | None:
    """What `name` in `directory` is now; None for what is gone, excluded or skipped."""
    try:
        signature = Signature.of(os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        skipped(path, error.strerror or "unreadable")
        return None
    kind = signature.kind
    if exclude(path, kind is Kind.DIR):
        return None
    if kind is None:
        skipped(path, "neither file, directory nor symlink")
        return None
    return Found(path, signature, kind, directory, name)


def _in_range(time_ns: int) -> int:
    return max(-_TIME_MAX, min(time_ns, _TIME_MAX))


def _enter(descriptor: int, path: bytes) -> _Level:
    try:
        names = sorted(map(os.fsencode, os.listdir(descriptor)), reverse=True)
    except BaseException:
        os.close(descriptor)
        raise
    return _Level(descriptor, path, names)
