"""The input of the terminal: each byte that a client types is taken once, and reaches the PTY once.

Taken: appended to a memfd whose position is the end of all input. Around it the client's offset is written to the shared page: the
intent before, the result after. Whoever finds an intent compares the position with it and knows how much was taken.
Fed: a second open file of the same memfd, whose position is the end of what was fed, is spliced into a pipe and that into the PTY.
Positions and pipe are the kernel's, so a kill -9 between any two instructions neither loses nor doubles a key.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import termios
import time
from typing import Final

from catty.constants import KIB
from catty.errors import BadRequest
from catty.runtime.page import CLIENT_ID_MAX, CLIENTS, Intent, Page

__all__ = ["InputLog"]

_STEP: Final = 4 * KIB  # what a PTY takes at once
_PUNCH_STEP: Final = 64 * KIB
_PAGE: Final = mmap.PAGESIZE


class InputLog:
    """The log in the memfd `file`, its other open file `reader`, the pipe towards the PTY, and the page.

    What an earlier process was taking when it was killed is settled at once.
    """

    def __init__(self, file: int, reader: int, pipe_out: int, pipe_in: int, page: Page) -> None:
        self._file = file
        self._reader = reader
        self._pipe_out = pipe_out
        self._pipe_in = pipe_in
        self._page = page
        self._can_splice = True
        self._end = os.lseek(file, 0, os.SEEK_CUR)
        self._slots = page.clients()
        intent = page.intent
        if intent is not None:
            page.set_taken(intent.slot, intent.offset + self._end - intent.position)
            page.intent = None
        self._punched = max(0, (self.fed - 4 * _PUNCH_STEP) // _PAGE * _PAGE)

    @property
    def end(self) -> int:
        """Bytes taken so far, of all clients."""
        return self._end

    @property
    def fed(self) -> int:
        """Bytes of them that the PTY has taken."""
        return os.lseek(self._reader, 0, os.SEEK_CUR) - self._in_pipe()

    @property
    def pending(self) -> int:
        """Bytes taken that the PTY has not."""
        return self._end - self.fed

    @property
    def known(self) -> int:
        """Clients that were ever registered, but for those forgotten."""
        return len(self._slots)

    def register(self, client: str, attached: set[str]) -> int:
        """Remember a client over its reconnects. Returns the end of its input that was taken: 0 for one not known.

        Where there is no room, the one not heard of for longest is forgotten, of those that are not `attached`.
        Raises BadRequest if the id is too long.
        """
        name = client.encode()
        if not 0 < len(name) <= CLIENT_ID_MAX:
            raise BadRequest("client id must have 1 to 64 characters")
        now = time.monotonic_ns()
        slot = self._slots.get(name)
        if slot is None:
            slot = self._free_slot({other.encode() for other in attached})
            self._page.add_client(slot, name, now)
            self._slots[name] = slot
        self._page.set_used_at(slot, now)
        return self._page.taken(slot)

    def taken(self, client: str) -> int:
        """End of the input taken from a registered client."""
        return self._page.taken(self._slots[client.encode()])

    def take(self, client: str, offset: int, data: bytes | memoryview) -> int:
        """Take what is new of input that a registered client sent at `offset`. Returns the end of its input that was taken.

        Raises BadRequest if it would leave a gap.
        """
        slot = self._slots[client.encode()]
        known = self._page.taken(slot)
        if offset > known:
            raise BadRequest(f"input from {offset} leaves a gap after {known}")
        news = memoryview(data)[known - offset :]
        if not news:
            return known
        self._page.intent = Intent(slot, self._end, known)
        taken = os.write(self._file, news)
        self._end += taken
        self._page.set_taken(slot, known + taken)
        now = time.monotonic_ns()
        self._page.set_used_at(slot, now)
        self._page.touch(output=False, now=now)
        self._page.intent = None
        return known + taken

    def feed(self, target: int) -> bool:
        """Give the non-blocking PTY `target` what it takes now. Returns whether everything was fed."""
        while True:
            if not self._in_pipe():
                if os.lseek(self._reader, 0, os.SEEK_CUR) == self._end:
                    self._punch()
                    return True
                os.splice(self._reader, self._pipe_in, _STEP, flags=os.SPLICE_F_NONBLOCK)
            try:
                if self._can_splice:
                    os.splice(self._pipe_out, target, _STEP, flags=os.SPLICE_F_NONBLOCK)
                else:
                    self._copy(target)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.EINVAL or not self._can_splice:
                    raise
                self._can_splice = False  # gVisor: a PTY that knows no splice

    def drop_pending(self) -> None:
        """Forget what was taken and not fed: it was meant for a program that has ended."""
        os.lseek(self._reader, self._end, os.SEEK_SET)
        while self._in_pipe():
            os.read(self._pipe_out, _STEP)

    def _copy(self, target: int) -> None:
        data = os.read(self._pipe_out, _STEP)
        written = 0
        while written < len(data):
            try:
                written += os.write(target, data[written:])
            except BlockingIOError:
                # A pipe takes nothing back at its front: what is left is read again from the file, and the pipe is empty now.
                os.lseek(self._reader, written - len(data), os.SEEK_CUR)
                raise

    def _in_pipe(self) -> int:
        (count,) = struct.unpack("i", fcntl.ioctl(self._pipe_out, termios.FIONREAD, b"\0\0\0\0"))
        return int(count)

    def _free_slot(self, attached: set[bytes]) -> int:
        if len(self._slots) < CLIENTS:
            return next(iter(set(range(CLIENTS)) - set(self._slots.values())))
        idle = [name for name in self._slots if name not in attached]
        if not idle:
            raise BadRequest("too many clients")
        oldest = min(idle, key=lambda name: self._page.used_at(self._slots[name]))
        return self._slots.pop(oldest)

    def _punch(self) -> None:
        """Give back the pages of what was fed."""
        old = self._end // _PAGE * _PAGE
        if old - self._punched >= _PUNCH_STEP:
            with mmap.mmap(self._file, old - self._punched, offset=self._punched) as pages:
                pages.madvise(mmap.MADV_REMOVE)
            self._punched = old
