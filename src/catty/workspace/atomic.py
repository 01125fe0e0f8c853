"""System calls that Python does not have: directories opened without a symlink on the way, renames that exchange or never replace.

Each has a portable form that is as safe but for a window of microseconds, used where kernel or file system lack the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Final

__all__ = ["Unsupported", "exchange", "open_directory", "parent_of", "rename_new"]

_OPENAT2: Final = 437  # the same on every architecture of Linux
_BENEATH, _NO_MAGICLINKS, _NO_SYMLINKS = 0x08, 0x02, 0x04
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_O_NOFOLLOW_ANY: Final = 0x20000000  # macOS
_NOREPLACE, _EXCHANGE = (1, 2) if sys.platform == "linux" else (4, 2)  # macOS: RENAME_EXCL, RENAME_SWAP
_MISSING: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_TRIES: Final = 16


class Unsupported(Exception):
    """The kernel or this file system cannot do that."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def open_directory(root: int, path: bytes) -> int:
    """A descriptor of the directory `path` below the directory `root` (b"" = itself).

    Raises OSError: ELOOP or ENOTDIR where a component is a symlink or a file, EXDEV where the path leads out of `root`.
    """
    if b".." in path.split(b"/") or path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    if not path:
        return os.open(b".", _DIRECTORY, dir_fd=root)
    if sys.platform == "darwin":
        return os.open(path, _DIRECTORY & ~os.O_NOFOLLOW | _O_NOFOLLOW_ANY, dir_fd=root)
    if sys.platform == "linux":
        with contextlib.suppress(Unsupported):
            return _openat2(root, path)
    return open_by_steps(root, path)


def open_by_steps(root: int, path: bytes) -> int:
    """`open_directory`, one component after the other."""
    current = os.dup(root)
    try:
        for name in path.split(b"/"):
            following = os.open(name, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _openat2(root: int, path: bytes) -> int:
    how = _OpenHow(_DIRECTORY, 0, _BENEATH | _NO_MAGICLINKS | _NO_SYMLINKS)
    for _ in range(_TRIES):
        descriptor = int(_libc().syscall(_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how)))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):  # a rename somewhere on the way: look again
            break
    # EPERM: what older container runtimes answer to calls that they do not know.
    if number in (errno.ENOSYS, errno.EPERM, errno.EAGAIN):
        raise Unsupported
    raise OSError(number, os.strerror(number), path)


@contextlib.contextmanager
def parent_of(root: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """(descriptor of the directory that `path` lies in, its last name). Errors as `open_directory`."""
    directory, _, name = path.rpartition(b"/")
    descriptor = open_directory(root, directory)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)


def exchange(directory: int, one: bytes, other: bytes) -> None:
    """Two names of a directory swap what they stand for, at once. Raises Unsupported, FileNotFoundError, OSError."""
    _rename(directory, one, other, _EXCHANGE)


def rename_new(directory: int, old: bytes, new: bytes) -> None:
    """Rename `old`, a name that nobody else uses, unless `new` is taken. Raises FileExistsError, FileNotFoundError, OSError."""
    try:
        _rename(directory, old, new, _NOREPLACE)
    except Unsupported:
        try:
            os.link(old, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EMLINK, *_MISSING):
                raise
            if _exists(directory, new):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
            os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            os.unlink(old, dir_fd=directory)


def _exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _rename(directory: int, old: bytes, new: bytes, flags: int) -> None:
    call = getattr(_libc(), "renameatx_np" if sys.platform == "darwin" else "renameat2", None)
    if call is None:
        raise Unsupported
    if call(directory, old, directory, new, flags) != 0:
        number = ctypes.get_errno()
        if number in _MISSING:
            raise Unsupported
        raise OSError(number, os.strerror(number), new)
