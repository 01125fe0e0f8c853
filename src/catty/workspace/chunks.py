"""Reads a file as the blobs that it is cut into, and notices when somebody writes to it meanwhile."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from catty.constants import BLOB_BYTES
from catty.workspace.model import FILE_BLOBS_MAX, digest
from catty.workspace.walk import Signature

__all__ = ["TRIES", "ZEROS", "ZERO_BLOB", "Content", "cut", "open_file", "read_file"]

TRIES: Final = 3  # then a file that keeps changing is taken as it is, and marked torn
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
ZEROS: Final = bytes(BLOB_BYTES)
ZERO_BLOB: Final = digest(ZEROS)  # what holes in sparse files are made of


class Content(NamedTuple):
    """What was read. `signature` belongs to the content unless `torn`; `started_ns` is the wall clock before reading."""

    signature: Signature
    blobs: tuple[bytes, ...]
    size: int
    torn: bool
    started_ns: int


def open_file(directory: int, name: bytes) -> int:
    """A descriptor of the regular file `name`. Raises OSError, ELOOP where it is anything else."""
    descriptor = os.open(name, _FILE, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "no longer a regular file", name)
    return descriptor


def read_file(directory: int, name: bytes, take: Callable[[bytes, bytes], None]) -> Content:
    """Read the file and hand each blob (digest, content) to `take`; blobs of a try that failed are handed over too. Raises OSError,
    EFBIG for a file too large for a snapshot (they are sparse)."""
    descriptor = open_file(directory, name)
    try:
        for attempt in range(1, TRIES + 1):
            started_ns = time.time_ns()
            before = Signature.of(os.fstat(descriptor))
            if before.size > FILE_BLOBS_MAX * BLOB_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
            blobs, size = [], 0
            for blob in cut(descriptor, before.size):
                blobs.append(blob_name := ZERO_BLOB if blob is ZEROS else digest(blob))
                size += len(blob)
                take(blob_name, blob)
            after = Signature.of(os.fstat(descriptor))
            whole = before == after and size == before.size
            if whole or attempt == TRIES:
                return Content(after, tuple(blobs), size, not whole, started_ns)
        raise AssertionError("unreachable")
    finally:
        os.close(descriptor)


def cut(descriptor: int, size: int) -> Iterator[bytes]:
    """The blobs of the file's first `size` bytes; fewer if it ends before. Holes are not read."""
    position = 0
    while position < size:
        length = min(BLOB_BYTES, size - position)
        hole = length == BLOB_BYTES and _is_hole(descriptor, position)
        blob = ZEROS if hole else _read(descriptor, position, length)
        if blob:
            yield blob
        if len(blob) < length:
            return
        position += length


def _is_hole(descriptor: int, position: int) -> bool:
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA) >= position + BLOB_BYTES
    except OSError as error:
        # ENXIO: no data up to the end, or the end has moved here. Else the file system has no notion of holes.
        return error.errno == errno.ENXIO and os.fstat(descriptor).st_size >= position + BLOB_BYTES


def _read(descriptor: int, position: int, length: int) -> bytes:
    data = os.pread(descriptor, length, position)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), position + len(data))):
        data += more
    return data
