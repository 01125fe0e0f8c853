"""A page of memory that `init` shares with each `terminal` that it starts: what a kill -9 must not make anybody forget.

    0     last output, last input: u64 each, nanoseconds of the monotonic clock, 0 = never
    64    the input being taken (see `InputLog`): valid u8, slot u32 at 68, position u64 at 72, offset u64 at 80
    128   CLIENTS records of 96 bytes: used u8, length of the id u8, id at 8, input taken u64 at 72, last use u64 at 80
    …     to the end: what `screen` remembers; length u32, checksum u32, text

A process may be killed between any two writes. Whoever writes here orders its writes so that what is torn is not believed.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from typing import Final, NamedTuple

__all__ = ["CLIENTS", "CLIENT_ID_MAX", "SIZE", "Intent", "Page"]

SIZE: Final = 64 << 10
CLIENTS: Final = 600
CLIENT_ID_MAX: Final = 64  # bytes

_TIMES: Final = 0
_VALID, _SLOT, _INTENT = 64, 68, 72
_RECORDS, _RECORD = 128, 96
_ID, _TAKEN, _USED_AT = 8, 72, 80
_NOTES: Final = _RECORDS + CLIENTS * _RECORD
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_PAIR: Final = struct.Struct("<QQ")
_NOTE: Final = struct.Struct("<II")


class Intent(NamedTuple):
    """Input about to be taken: from the client of `slot`, at its `offset`, to the log's `position`."""

    slot: int
    position: int
    offset: int


class Page:
    """The page in the memfd `fd`."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE)

    def touch(self, *, output: bool, now: int) -> None:
        """Note the time of output or input, in nanoseconds."""
        _U64.pack_into(self._map, _TIMES + (0 if output else 8), now)

    def times(self) -> tuple[int, int]:
        """(last output, last input) as noted; 0 = never."""
        output, keys = _PAIR.unpack_from(self._map, _TIMES)
        return output, keys

    @property
    def intent(self) -> Intent | None:
        """The input that was being taken when the last writer was killed, or is now."""
        if not self._map[_VALID]:
            return None
        (slot,) = _U32.unpack_from(self._map, _SLOT)
        return Intent(slot, *_PAIR.unpack_from(self._map, _INTENT))

    @intent.setter
    def intent(self, intent: Intent | None) -> None:
        self._map[_VALID] = 0
        if intent is not None:
            _U32.pack_into(self._map, _SLOT, intent.slot)
            _PAIR.pack_into(self._map, _INTENT, intent.position, intent.offset)
            self._map[_VALID] = 1

    def clients(self) -> dict[bytes, int]:
        """The slot of each client that has a record."""
        found = {}
        for slot in range(CLIENTS):
            at = _RECORDS + slot * _RECORD
            if self._map[at]:
                found[self._map[at + _ID : at + _ID + self._map[at + 1]]] = slot
        return found

    def add_client(self, slot: int, client: bytes, now: int) -> None:
        """Give a slot to a client that has sent nothing yet."""
        at = _RECORDS + slot * _RECORD
        self._map[at] = 0
        self._map[at + 1] = len(client)
        self._map[at + _ID : at + _ID + len(client)] = client
        _PAIR.pack_into(self._map, at + _TAKEN, 0, now)
        self._map[at] = 1

    def taken(self, slot: int) -> int:
        """End of the input taken from a client."""
        (offset,) = _U64.unpack_from(self._map, _RECORDS + slot * _RECORD + _TAKEN)
        return int(offset)

    def set_taken(self, slot: int, offset: int) -> None:
        """Written while the intent stands, which a reader believes rather than this."""
        _U64.pack_into(self._map, _RECORDS + slot * _RECORD + _TAKEN, offset)

    def used_at(self, slot: int) -> int:
        """When a client was last heard of, in nanoseconds."""
        (when,) = _U64.unpack_from(self._map, _RECORDS + slot * _RECORD + _USED_AT)
        return int(when)

    def set_used_at(self, slot: int, now: int) -> None:
        _U64.pack_into(self._map, _RECORDS + slot * _RECORD + _USED_AT, now)

    @property
    def note(self) -> bytes:
        """What was last noted; empty if nothing, or if it is torn."""
        length, checksum = _NOTE.unpack_from(self._map, _NOTES)
        text = self._map[_NOTES + _NOTE.size : _NOTES + _NOTE.size + length]
        return text if zlib.crc32(text) == checksum else b""

    @note.setter
    def note(self, text: bytes) -> None:
        if _NOTES + _NOTE.size + len(text) > SIZE:
            return
        _NOTE.pack_into(self._map, _NOTES, len(text), zlib.crc32(text))
        self._map[_NOTES + _NOTE.size : _NOTES + _NOTE.size + len(text)] = text
