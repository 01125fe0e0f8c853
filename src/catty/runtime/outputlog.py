"""The output of the terminal: an endless stream of which the last RING_BYTES can be read again.

Bytes go from the PTY into a pipe and from there into a memfd, moved by the kernel. The file's position is the end of the stream; it
belongs to the open file, which `init` shares. So whoever is killed between any two instructions leaves each byte in the PTY, the pipe
or the file, and the next one empties the pipe first. Pages before the ring are given back.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

from catty.constants import KIB, MIB, RING_BYTES

__all__ = ["OutputLog"]

_STEP: Final = 64 * KIB  # a pipe holds that much
_PUNCH_STEP: Final = 1 * MIB
_PAGE: Final = mmap.PAGESIZE


class OutputLog:
    """The log in the memfd `file` and the pipe before it. Bytes that an earlier process left in the pipe are taken at once."""

    def __init__(self, file: int, pipe_out: int, pipe_in: int, ring: int = RING_BYTES) -> None:
        self._file = file
        self._pipe_out = pipe_out
        self._pipe_in = pipe_in
        self._ring = ring
        self._can_splice = True
        self._end = os.lseek(file, 0, os.SEEK_CUR)
        self._settle()
        self._punched = max(0, (self._end - ring - 2 * _PUNCH_STEP) // _PAGE * _PAGE)

    @property
    def end(self) -> int:
        """Bytes printed so far."""
        return self._end

    @property
    def start(self) -> int:
        """Offset of the first byte that can still be read."""
        return max(0, self._end - self._ring)

    def pull(self, source: int, limit: int) -> bool:
        """Append what the non-blocking descriptor `source` has now, until the log ends at `limit`.

        Returns whether `source` was emptied. Raises EOFError at its end.
        """
        while self._end < limit:
            most = min(_STEP, limit - self._end)
            try:
                moved = self._splice(source, most) if self._can_splice else self._copy(source, most)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.EINVAL and self._can_splice:
                    self._can_splice = False  # gVisor: a PTY that knows no splice
                    continue
                if error.errno == errno.EIO:
                    raise EOFError from None
                raise
            if not moved:
                raise EOFError
            self._punch()
        return False

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`, which lies between `start` and `end`."""
        return os.pread(self._file, min(size, self._end - offset), offset)

    def _splice(self, source: int, most: int) -> int:
        moved = os.splice(source, self._pipe_in, most, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        self._settle()
        return moved

    def _copy(self, source: int, most: int) -> int:
        data = os.read(source, most)
        self._end += os.write(self._file, data)
        return len(data)

    def _settle(self) -> None:
        """Move what the pipe holds into the file."""
        while True:
            try:
                moved = os.splice(self._pipe_out, self._file, _STEP, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
            except BlockingIOError:
                return
            if not moved:
                return
            self._end += moved

    def _punch(self) -> None:
        """Give back the pages before the ring, a megabyte at a time."""
        old = self.start // _PAGE * _PAGE
        if old - self._punched >= _PUNCH_STEP:
            with mmap.mmap(self._file, old - self._punched, offset=self._punched) as pages:
                pages.madvise(mmap.MADV_REMOVE)
            self._punched = old
