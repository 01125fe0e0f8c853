"""Safe writes into a user's directory, where paths and contents come from a machine and are hostile, and the user works meanwhile.

Nothing is ever followed out of the directory, nothing that differs from what the caller expects is ever lost: a new version is made
under a temporary name beside its place and *exchanged* with what stands there; only then is that looked at, and put back if it is
not what was expected. Names starting with `TEMP_PREFIX` are ours; after a crash `recover` tells what to do with one.

OSErrors (disk full, permission denied, a parent that is a symlink: ELOOP, ENOTDIR) are raised with everything as it was.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import signal
import stat
import sys
import unicodedata
from collections.abc import Callable
from typing import Final, Self

from catty.errors import HostileArchive
from catty.workspace import atomic
from catty.workspace.chunks import ZEROS, read_file
from catty.workspace.model import Entry, Kind, check_path

__all__ = ["TEMP_PREFIX", "Applier", "Keep", "Staged", "check_target", "is_git_name", "look", "plain_name", "same"]

TEMP_PREFIX: Final = b".catty-tmp-"

Keep = Callable[[int, bytes, bytes], None]
"""Called with (descriptor of a directory, name in it, path): moves that file or symlink to where it is kept, or raises OSError."""

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Code points that HFS+ ignores in names: `.g\u200cit` is `.git` to it.
_IGNORED: Final = dict.fromkeys((*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF))


def plain_name(name: bytes) -> str:
    """What the most forgiving file system takes `name` for: no case, no invisible characters, no stream, no final dots and spaces."""
    text = name.decode("utf-8", "surrogateescape").translate(_IGNORED).partition(":")[0].rstrip(". ")
    return unicodedata.normalize("NFC", text).casefold()


def is_git_name(name: bytes) -> bool:
    """Whether a file system might take `name` for `.git`."""
    return plain_name(name) in (".git", "git~1")


def check_target(path: bytes) -> bytes:
    """`path` if a machine may write there, else HostileArchive: unclean paths, git directories, our own temporary names."""
    for name in check_path(path).split(b"/"):
        if is_git_name(name) or name.startswith(TEMP_PREFIX):
            raise HostileArchive(what=f"path {path[:80]!r}")
    return path


def look(directory: int, name: bytes, path: bytes) -> Entry | None:
    """What stands under `name` in an open directory, as the entry of `path`; None for nothing.

    What cannot be part of a snapshot, and a file that changes while it is read, gives an entry equal to nothing (size -1).
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            return Entry(path, Kind.DIR, stat.S_IMODE(found.st_mode), found.st_mtime_ns)
        if stat.S_ISLNK(found.st_mode):
            return Entry(path, Kind.SYMLINK, 0o777, found.st_mtime_ns, target=os.readlink(name, dir_fd=directory))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ELOOP, "not a regular file", name)
        content = read_file(directory, name, lambda *_: None)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL):  # it became something else between two calls
            return _strange(path)
        raise
    mode, mtime_ns = stat.S_IMODE(content.signature.mode), content.signature.mtime_ns
    return _strange(path) if content.torn else Entry(path, Kind.FILE, mode, mtime_ns, content.size, content.blobs)


def _strange(path: bytes) -> Entry:
    return Entry(path, Kind.FILE, size=-1, torn=True)


def same(one: Entry | None, other: Entry | None) -> bool:
    """Whether a user would see no difference. Modes count for files only, and of these the exec bit."""
    if one is None or other is None:
        return one is other
    if one.kind is other.kind is not Kind.FILE:
        return one.target == other.target
    return one.same_content(other) and one.size >= 0


class Applier:
    """Writes below `root`, an open directory. `keep` gets what is removed, and what may still be written to by someone; with
    `keep_replaced` every old version."""

    def __init__(self, root: int, keep: Keep) -> None:
        self.root = root
        self.keep = keep
        self.keep_replaced = False

    def look(self, path: bytes) -> Entry | None:
        """What stands at `path` now; see the function. Nothing where a parent is missing or no directory."""
        try:
            with atomic.parent_of(self.root, path) as (parent, name):
                return look(parent, name, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def stage(self, path: bytes, mode: int) -> Staged:
        """A new, empty file for `path`, under a temporary name; `mode` without setuid, setgid and sticky, less the user's umask."""
        parent, temp = self._temporary(path)
        try:
            descriptor = os.open(temp, _CREATE, mode & 0o777 | 0o600, dir_fd=parent)
        except BaseException:
            os.close(parent)
            raise
        return Staged(self, parent, temp, path, descriptor)

    def stage_symlink(self, path: bytes, target: bytes) -> Staged:
        """A new symlink for `path`, under a temporary name."""
        parent, temp = self._temporary(path)
        try:
            os.symlink(target, temp, dir_fd=parent)
        except BaseException:
            os.close(parent)
            raise
        return Staged(self, parent, temp, path, None)

    def make_dir(self, path: bytes) -> bool:
        """Make a directory, parents not included; False where something else stands. One that is there already is fine."""
        with atomic.parent_of(self.root, check_target(path)) as (parent, name):
            try:
                os.mkdir(name, dir_fd=parent)
            except FileExistsError:
                return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
            return True

    def remove(self, path: bytes, expected: Entry) -> bool:
        """Hand `path` to `keep` if it is what is expected (a directory: if it is empty, remove it); False if it is not.

        True where it is gone already.
        """
        try:
            with atomic.parent_of(self.root, check_target(path)) as (parent, name):
                if expected.kind is Kind.DIR:
                    os.rmdir(name, dir_fd=parent)
                    return True
                return self._take_out(parent, name, path, expected)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                return False
            raise

    def _take_out(self, parent: int, name: bytes, path: bytes, expected: Entry) -> bool:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return False
        temp = _temporary_name()
        os.rename(name, temp, src_dir_fd=parent, dst_dir_fd=parent)
        try:
            if same(look(parent, temp, path), expected):
                self.keep(parent, temp, path)
                return True
        except OSError:
            self._put_back(parent, temp, name, path)
            raise
        self._put_back(parent, temp, name, path)
        return False

    def _put_back(self, parent: int, temp: bytes, name: bytes, path: bytes) -> None:
        """`temp` under its own name again; kept elsewhere if that was taken meanwhile."""
        try:
            atomic.rename_new(parent, temp, name)
        except FileExistsError:
            self.keep(parent, temp, path)

    def _temporary(self, path: bytes) -> tuple[int, bytes]:
        directory = check_target(path).rpartition(b"/")[0]
        return atomic.open_directory(self.root, directory), _temporary_name()


class Staged:
    """A version that is ready, or being made, under a temporary name; a context manager that removes it unless it was placed."""

    def __init__(self, applier: Applier, parent: int, temp: bytes, path: bytes, descriptor: int | None) -> None:
        self._applier = applier
        self._parent: int = parent
        self._temp: bytes | None = temp
        self._descriptor = descriptor
        self._directory = path.rpartition(b"/")[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_writing(durable=False)
        if self._temp is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temp, dir_fd=self._parent)
        os.close(self._parent)

    @property
    def temp(self) -> bytes:
        """The path that it has while it is not placed."""
        return os.path.join(self._directory, self._temp or b"")

    def write(self, data: bytes | memoryview) -> None:
        """Append to the content."""
        if self._descriptor is None:
            raise ValueError("no longer open for writing")
        if data == ZEROS:  # a hole: a sparse file may be far larger than the disk
            os.lseek(self._descriptor, len(data), os.SEEK_CUR)
            return
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def place(self, path: bytes, expected: Entry | None) -> bool:
        """Put it at `path` (in the directory it was staged for) in place of `expected`, None = nothing.

        False if something else stands there; that is as it was, and the version can be placed elsewhere. Raises BlockingIOError where
        somebody else writes the same name at the same moments: try again later.
        """
        name = check_target(path).rpartition(b"/")[2]
        if self._temp is None:
            raise ValueError("placed already")
        self._finish_writing(durable=True)
        self._check_parent()
        if expected is None:
            try:
                atomic.rename_new(self._parent, self._temp, name)
            except FileExistsError:
                return False
            self._temp = None
            return True
        with contextlib.suppress(atomic.Unsupported):
            return self._exchange(name, path, expected)
        return self._replace(name, path, expected)

    def _exchange(self, name: bytes, path: bytes, expected: Entry) -> bool:
        parent, temp = self._parent, self._temp or b""
        mine = _identity(parent, temp)
        try:
            atomic.exchange(parent, temp, name)
        except FileNotFoundError:
            return False
        try:
            fits = same(look(parent, temp, path), expected)
        except OSError:
            fits = False
        if fits:
            self._temp = None
            self._dispose(temp, path)
            return True
        with contextlib.suppress(FileNotFoundError):
            atomic.exchange(parent, temp, name)
        if _identity(parent, temp) != mine:
            # Somebody replaced our version before we took it back: theirs is the newest and goes back, the one before is kept.
            with contextlib.suppress(FileNotFoundError):
                atomic.exchange(parent, temp, name)
            self._temp = None
            self._applier.keep(parent, temp, path)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        return False

    def _replace(self, name: bytes, path: bytes, expected: Entry) -> bool:
        """Without an exchange: the old version steps aside, so for a moment nothing stands there; nothing is overwritten."""
        parent, aside = self._parent, _temporary_name()
        try:
            os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=parent)
        except FileNotFoundError:
            return False
        try:
            fits = same(look(parent, aside, path), expected)
            if fits:
                atomic.rename_new(parent, self._temp or b"", name)
        except OSError as error:
            self._applier._put_back(parent, aside, name, path)
            if isinstance(error, FileExistsError):
                return False
            raise
        if not fits:
            self._applier._put_back(parent, aside, name, path)
            return False
        self._temp = None
        self._dispose(aside, path)
        return True

    def _dispose(self, temp: bytes, path: bytes) -> None:
        """The old version goes, unless a program has it open: what that still writes is kept."""
        if self._applier.keep_replaced or _open_elsewhere(self._parent, temp):
            self._applier.keep(self._parent, temp, path)
        else:
            os.unlink(temp, dir_fd=self._parent)

    def _finish_writing(self, *, durable: bool) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                if durable:
                    os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))  # it may end in a hole
                    os.fsync(descriptor)  # a name that survives a power cut must have its content
            finally:
                os.close(descriptor)

    def _check_parent(self) -> None:
        """Long writes leave time to move the directory away: what we hold must still be what the path says."""
        descriptor = atomic.open_directory(self._applier.root, self._directory)
        try:
            if not os.path.sameopenfile(descriptor, self._parent):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self._directory)
        finally:
            os.close(descriptor)


def _identity(directory: int, name: bytes) -> tuple[int, int] | None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _temporary_name() -> bytes:
    return TEMP_PREFIX + secrets.token_hex(8).encode()


def _open_elsewhere(directory: int, name: bytes) -> bool:
    """Whether some program has this file open. Linux gives a lease to none but the only one; elsewhere nobody knows: False."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # who opens it now must not end us by the default SIGIO
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)  # ends the lease too
    return False
