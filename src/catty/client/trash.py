"""What sync-back removes is kept for a week: `~/.catty/trash/LABEL/TIME/…`, with the paths that it had (docs/workspace.md)."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from catty.constants import MIB, TRASH_KEEP_DAYS

__all__ = ["Trash", "remove_tree"]

_DAY_S: Final = 86400
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Trash:
    """The trash of one session, for one run: all that goes in has the same TIME. `root` is `~/.catty/trash`."""

    def __init__(self, root: Path, label: str) -> None:
        self._home = root / label
        self.directory = self._home / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")

    def take(self, parent: int, name: bytes, path: bytes) -> None:
        """Move `name` in the open directory `parent`, known to the user as `path`, into the trash. It is never in neither place."""
        place = self._free_place(os.path.join(os.fsencode(self.directory), path))
        try:
            os.rename(name, place, src_dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _carry(parent, name, place)

    def _free_place(self, place: bytes) -> bytes:
        """`place`, or with a number behind it if something of that name went into the trash already; its directory is made."""
        top = os.fsencode(self.directory)
        for number in range(1, 1 << 20):
            candidate = place if number == 1 else b"%s~%d" % (place, number)
            try:
                os.makedirs(os.path.dirname(candidate), mode=0o700, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                # A file of a parent's name lies there (it was a file before it was a directory): flat, then.
                place = os.path.join(top, b"%s" % os.path.basename(place))
                candidate = b"%s~%d" % (place, number)
                os.makedirs(top, mode=0o700, exist_ok=True)
            if not os.path.lexists(candidate):
                return candidate
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)

    def sweep(self) -> None:
        """Remove what is older than TRASH_KEEP_DAYS, of this session."""
        oldest = time.time() - TRASH_KEEP_DAYS * _DAY_S
        with contextlib.suppress(FileNotFoundError):
            for run in list(os.scandir(self._home)):
                if run.stat(follow_symlinks=False).st_ctime < oldest:
                    with contextlib.suppress(OSError):
                        remove_tree(Path(run.path))


def remove_tree(directory: Path) -> None:
    """Remove a directory of ours and all in it. Raises OSError where that cannot be.

    Trees come from machines, so they may be deeper than a process has descriptors or a path has room: each directory that is found
    is moved up before it is looked into.
    """
    top = os.open(directory, _DIRECTORY)
    try:
        while names := os.listdir(top):
            for name in names:
                if not _is_directory(name, top):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, _DIRECTORY, dir_fd=top)
                try:
                    for below in os.listdir(inner):
                        if _is_directory(below, inner):
                            os.chmod(below, 0o700, dir_fd=inner)
                            os.rename(below, secrets.token_hex(8), src_dir_fd=inner, dst_dir_fd=top)
                        else:
                            os.unlink(below, dir_fd=inner)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    directory.rmdir()


def _is_directory(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _carry(parent: int, name: bytes, place: bytes) -> None:
    """Move to another file system; on an error nothing is left there."""
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        source = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.mkdir(place, 0o700)
            for inner in map(os.fsencode, os.listdir(source)):
                _carry(source, inner, os.path.join(place, inner))
        finally:
            os.close(source)
        os.rmdir(name, dir_fd=parent)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=parent), place)
    else:
        _copy_file(parent, name, place, found)
    os.unlink(name, dir_fd=parent)


def _copy_file(parent: int, name: bytes, place: bytes, found: os.stat_result) -> None:
    source = os.open(name, _READ, dir_fd=parent)
    try:
        target = os.open(place, _CREATE, stat.S_IMODE(found.st_mode) & 0o777 | 0o600)
        try:
            while data := os.read(source, MIB):
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
            os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fsync(target)
        except BaseException:
            os.unlink(place)
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)
