"""Packs: many blobs in one object, the same bytes in transfer and in the store (docs/snapshots.md, "Packs"). No I/O.

    frame … frame | index | footer

A frame is a zstd frame over up to 1 MiB of blobs, one after the other; the index lists each frame's blobs; the footer has a fixed
size, so the end of a pack is enough to know what is in it. Readers take nothing on trust: sizes are bounded before memory is spent
and every blob is hashed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import zstandard

from catty.constants import BLOB_BYTES, MIB, PACK_BYTES, PACK_MAX_BYTES
from catty.errors import BadRequest, HostileArchive
from catty.workspace.model import DIGEST_BYTES, digest

__all__ = ["BLOBS_MAX", "FOOTER_BYTES", "Frame", "Pack", "PackWriter", "assemble", "index_bytes", "parse_index", "read"]

_FRAME_RAW: Final = 1 * MIB
BLOBS_MAX: Final = 1 << 16  # in one pack; bounds its index to 2.3 MiB
_LEVEL: Final = 1
_MAGIC: Final = b"CATPACK1"
_FRAME: Final = struct.Struct(">II")  # compressed bytes, blobs
_BLOB: Final = struct.Struct(f">{DIGEST_BYTES}sI")  # digest, length
_FOOTER: Final = struct.Struct(
    f">II{DIGEST_BYTES}s{len(_MAGIC)}s"
)  # index bytes: packed, raw; digest of the packed ones; magic
FOOTER_BYTES: Final = _FOOTER.size


class Frame(NamedTuple):
    """Where a frame lies in its pack, in bytes, and the (digest, length) of its blobs in order."""

    offset: int
    length: int
    blobs: tuple[tuple[bytes, int], ...]

    @property
    def raw(self) -> int:
        """Bytes of its blobs."""
        return sum(length for _, length in self.blobs)


@dataclass(frozen=True, slots=True)
class Pack:
    """What a pack's index says."""

    frames: tuple[Frame, ...]
    size: int  # bytes of the whole pack

    def digests(self) -> Iterator[bytes]:
        """The names of all its blobs."""
        return (name for frame in self.frames for name, _ in frame.blobs)


class PackWriter:
    """Gathers blobs into a pack of up to PACK_BYTES raw. Holds at most that much."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._reset()

    def _reset(self) -> None:
        self._frames: list[tuple[Frame, bytes]] = []
        self._names: set[bytes] = set()
        self._raw = 0
        self._pending: list[tuple[bytes, int]] = []
        self._pending_data = bytearray()

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    @property
    def full(self) -> bool:
        """Time to `finish`: another blob may not fit."""
        return self._raw + BLOB_BYTES > PACK_BYTES or len(self._names) >= BLOBS_MAX

    @property
    def empty(self) -> bool:
        """Whether it holds no blob."""
        return not self._names

    def add(self, name: bytes, data: bytes | bytearray | memoryview) -> None:
        """Take the blob `data` (1..BLOB_BYTES) whose digest is `name`; one that is in already is not taken again."""
        if not 0 < len(data) <= BLOB_BYTES:
            raise ValueError(f"blob of {len(data)} bytes")
        if self.full:
            raise ValueError("the pack is full")
        if name in self._names:
            return
        if len(self._pending_data) + len(data) > _FRAME_RAW:
            self._close_frame()
        self._names.add(name)
        self._raw += len(data)
        self._pending.append((name, len(data)))
        self._pending_data += data

    def finish(self) -> bytes:
        """The pack; the writer is empty again."""
        self._close_frame()
        pack = assemble(self._frames)
        self._reset()
        return pack

    def _close_frame(self) -> None:
        if self._pending:
            packed = self._compressor.compress(self._pending_data)
            self._frames.append((Frame(0, len(packed), tuple(self._pending)), packed))
            self._pending, self._pending_data = [], bytearray()


def assemble(frames: Sequence[tuple[Frame, bytes]]) -> bytes:
    """A pack of frames that are already compressed (their `offset` does not matter), e.g. of several packs in the store."""
    index = bytearray()
    for frame, packed in frames:
        index += _FRAME.pack(len(packed), len(frame.blobs))
        index += b"".join(_BLOB.pack(name, length) for name, length in frame.blobs)
    packed_index = zstandard.ZstdCompressor(level=_LEVEL).compress(bytes(index))
    footer = _FOOTER.pack(len(packed_index), len(index), digest(packed_index), _MAGIC)
    return b"".join((*(packed for _, packed in frames), packed_index, footer))


def index_bytes(footer: bytes, size: int) -> int:
    """How many of the last bytes of a pack of `size` bytes are index and footer. Raises BadRequest on what is no footer."""
    if len(footer) != FOOTER_BYTES:
        raise BadRequest("pack cut short")
    packed, raw, _, magic = _FOOTER.unpack(footer)
    if magic != _MAGIC:
        raise BadRequest("not a pack")
    if raw > BLOBS_MAX * (_BLOB.size + _FRAME.size) or packed + FOOTER_BYTES > size or size > PACK_MAX_BYTES:
        raise HostileArchive(what="pack index too large")
    return int(packed) + FOOTER_BYTES


def parse_index(tail: bytes, size: int) -> Pack:
    """The index in the last bytes of a pack of `size` bytes. Raises BadRequest or HostileArchive."""
    length = index_bytes(tail[-FOOTER_BYTES:], size)
    if len(tail) < length:
        raise BadRequest("pack cut short")
    _, raw_length, checksum, _ = _FOOTER.unpack(tail[-FOOTER_BYTES:])
    packed = tail[-length:-FOOTER_BYTES]
    if digest(packed) != checksum:
        raise BadRequest("pack damaged")
    index = _decompress(packed, raw_length) if raw_length else b""
    frames: list[Frame] = []
    position = offset = blobs = 0
    while position < len(index):
        if len(index) - position < _FRAME.size:
            raise BadRequest("pack index cut short")
        frame_length, count = _FRAME.unpack_from(index, position)
        position += _FRAME.size
        if not 0 < count <= (len(index) - position) // _BLOB.size:
            raise BadRequest("pack index cut short")
        content = tuple(_BLOB.iter_unpack(index[position : position + count * _BLOB.size]))
        frame = Frame(offset, frame_length, content)
        position += count * _BLOB.size
        offset += frame_length
        blobs += count
        if frame.raw > _FRAME_RAW or not all(0 < blob_length <= BLOB_BYTES for _, blob_length in content):
            raise HostileArchive(what="impossible sizes in a pack")
        frames.append(frame)
    if blobs > BLOBS_MAX or offset != size - length:
        raise HostileArchive(what="impossible sizes in a pack")
    return Pack(tuple(frames), size)


def read(pack: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(digest, content) of each blob, one frame in memory at a time; every blob is hashed. Raises BadRequest or HostileArchive."""
    view = memoryview(pack)
    for frame in parse_index(pack, len(pack)).frames:
        yield from read_frame(frame, view[frame.offset : frame.offset + frame.length])


def read_frame(frame: Frame, packed: bytes | memoryview) -> Iterable[tuple[bytes, memoryview]]:
    """The blobs of one frame, checked as in `read`."""
    content = memoryview(_decompress(packed, frame.raw))
    position = 0
    for name, length in frame.blobs:
        blob = content[position : position + length]
        position += length
        if digest(blob) != name:
            raise HostileArchive(what="a blob that is not what its name says")
        yield name, blob


def _decompress(packed: bytes | memoryview, raw: int) -> bytes:
    try:
        if zstandard.frame_content_size(packed) != raw:
            raise HostileArchive(what="sizes in a pack that contradict each other")
        window = max(raw, 1 * MIB)
        return zstandard.ZstdDecompressor(max_window_size=window).decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError:
        raise BadRequest("pack damaged") from None
