"""The list of entries that is a snapshot, and its bytes (docs/snapshots.md, "Manifest"). No I/O.

Entries stand in tree order: a directory, then all that lies below it, siblings sorted by their names' bytes. The bytes are the same
in transfer and in the store, and bytes from outside are hostile: everything that `Manifest` holds has been checked, so whoever has
one need not look again. A delta says how to get from one manifest to another.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Final

import zstandard
from blake3 import blake3

from catty.constants import BLOB_BYTES, MIB
from catty.errors import BadRequest, HostileArchive
from catty.workspace.model import DIGEST_BYTES, FILE_BLOBS_MAX, HOME, PATH_MAX_BYTES, WORKSPACE, Entry, Kind, check_path

__all__ = ["EMPTY", "ENTRIES_MAX", "MANIFEST_MAX_BYTES", "Manifest", "dump_delta", "parse_delta", "tree_key"]

ENTRIES_MAX: Final = 1 << 21
MANIFEST_MAX_BYTES: Final = 128 * MIB  # as sent and stored
_RAW_MAX: Final = 512 * MIB
_FRAME_RAW: Final = 1 * MIB

_MAGIC: Final = b"CATM\x01"
_FULL: Final = b"F"
_DELTA: Final = b"D"
_LENGTH: Final = struct.Struct(">I")
_RECORD: Final = struct.Struct(">HBBHqQI")  # path length, kind, flags, mode, mtime in ns, size, blobs
_TORN: Final = 1
_REMOVED: Final = ord("-")
_KINDS: Final = {ord(kind.value): kind for kind in Kind}


def tree_key(path: bytes) -> bytes:
    """What paths are sorted by, so that a directory is followed by all that lies below it."""
    return path.replace(b"/", b"\0")


class Manifest:
    """Checked entries in tree order. `entries` maps each path to its entry, in that order; treat it as read-only."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """`entries` in tree order. Raises HostileArchive where they make no tree: see `_checked`."""
        self.entries: dict[bytes, Entry] = {entry.path: entry for entry in _checked(entries)}

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Manifest:
        """The same from entries in any order."""
        return cls(sorted(entries, key=lambda entry: tree_key(entry.path)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises BadRequest or HostileArchive on anything but the bytes of a manifest."""
        return cls(entry for entry in _records(data, _FULL) if isinstance(entry, Entry))

    def to_bytes(self) -> bytes:
        """At most MANIFEST_MAX_BYTES for what any honest tree holds."""
        return _pack(_FULL, map(_record, self.entries.values()))

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3-256 of the uncompressed records: equal manifests have equal digests, whatever compressed them."""
        hasher = blake3()
        for entry in self.entries.values():
            hasher.update(_record(entry))
        return hasher.digest()

    def blobs(self) -> dict[bytes, int]:
        """Every blob once, with its length in bytes, in order of first use. Raises HostileArchive if one has two lengths."""
        found: dict[bytes, int] = {}
        for entry in self.entries.values():
            left = entry.size
            for name in entry.blobs:
                length = min(left, BLOB_BYTES)
                left -= length
                if found.setdefault(name, length) != length:
                    raise HostileArchive(what=f"a blob of two lengths in {entry.path[:80]!r}")
        return found

    @property
    def files(self) -> int:
        """How many files it holds (no directories, no symlinks)."""
        return sum(entry.kind is Kind.FILE for entry in self.entries.values())

    @property
    def size(self) -> int:
        """Bytes in all its files."""
        return sum(entry.size for entry in self.entries.values())

    def delta(self, newer: Manifest) -> bytes:
        """What `apply` needs to make `newer` of this one."""
        removed = (path for path in self.entries if path not in newer.entries)
        return dump_delta(removed, (entry for path, entry in newer.entries.items() if self.entries.get(path) != entry))

    def apply(self, delta: bytes) -> Manifest:
        """Raises BadRequest or HostileArchive on bytes that are no delta of this manifest."""
        entries = dict(self.entries)
        for item in parse_delta(delta):
            if isinstance(item, Entry):
                entries[item.path] = item
            elif entries.pop(item, None) is None:
                raise HostileArchive(what=f"removal of {item[:80]!r}, which is not there")
        return Manifest.of(entries.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.digest)

    def __len__(self) -> int:
        return len(self.entries)


def dump_delta(removed: Iterable[bytes], changed: Iterable[Entry]) -> bytes:
    """The bytes of a delta, from paths that are gone and entries that are new or different, each in any order."""
    records = [(tree_key(path), _removal(path)) for path in removed]
    records += [(tree_key(entry.path), _record(entry)) for entry in changed]
    return _pack(_DELTA, (record for _, record in sorted(records)))


def parse_delta(delta: bytes) -> Iterator[Entry | bytes]:
    """Entries that are new or different, and paths that are gone (without what lay below them, which is named too), in tree order.

    Raises BadRequest or HostileArchive. Paths are clean and unique; whether the result is a tree only `Manifest.apply` can tell.
    """
    return _records(delta, _DELTA)


def _checked(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries; raises HostileArchive unless paths are clean, unique, in order, and each below a directory of the list."""
    previous = b""
    parents: list[bytes] = []
    for count, entry in enumerate(entries):
        if count >= ENTRIES_MAX:
            raise HostileArchive(what=f"more than {ENTRIES_MAX} paths")
        path = check_path(entry.path)
        key = tree_key(path)
        if key <= previous:
            raise HostileArchive(what=f"path {path[:80]!r} out of order")
        previous = key
        parent = path.rpartition(b"/")[0]
        while parents and parents[-1] != parent:
            parents.pop()
        if not parents and (path not in (WORKSPACE, HOME) or entry.kind is not Kind.DIR):
            raise HostileArchive(what=f"path {path[:80]!r} below no directory")
        if entry.kind is Kind.DIR:
            parents.append(path)
        _check_fields(entry)
        yield entry


def _check_fields(entry: Entry) -> None:
    match entry.kind:
        case Kind.FILE:
            honest = not entry.target and len(entry.blobs) == -(-entry.size // BLOB_BYTES)
        case Kind.DIR:
            honest = not (entry.size or entry.blobs or entry.target)
        case Kind.SYMLINK:
            honest = not (entry.size or entry.blobs) and 0 < len(entry.target) <= PATH_MAX_BYTES
            honest = honest and b"\0" not in entry.target
    honest = honest and 0 <= entry.mode <= 0o7777 and 0 <= entry.size < 1 << 63
    if not honest or not -(1 << 63) <= entry.mtime_ns < 1 << 63 or len(entry.blobs) > FILE_BLOBS_MAX:
        raise HostileArchive(what=f"impossible fields of {entry.path[:80]!r}")


def _record(entry: Entry) -> bytes:
    path, kind, flags = entry.path, ord(entry.kind.value), _TORN if entry.torn else 0
    size = len(entry.target) if entry.target else entry.size
    head = _RECORD.pack(len(path), kind, flags, entry.mode, entry.mtime_ns, size, len(entry.blobs))
    return b"".join((head, path, entry.target, *entry.blobs))


def _removal(path: bytes) -> bytes:
    return _RECORD.pack(len(path), _REMOVED, 0, 0, 0, 0, 0) + path


def _pack(form: bytes, records: Iterable[bytes]) -> bytes:
    compressor = zstandard.ZstdCompressor(level=3)
    hasher = blake3()
    parts = [_MAGIC, form]

    def flush(raw: bytes | bytearray) -> None:
        frame = compressor.compress(raw)
        parts.extend((_LENGTH.pack(len(frame)), frame))

    pending = bytearray()
    for record in records:
        hasher.update(record)
        pending += record
        while len(pending) >= _FRAME_RAW:
            flush(pending[:_FRAME_RAW])
            del pending[:_FRAME_RAW]
    if pending:
        flush(pending)
    parts.extend((_LENGTH.pack(0), hasher.digest()))
    return b"".join(parts)


def _raw_frames(data: bytes, form: bytes) -> Iterator[bytes]:
    """The uncompressed pieces; nothing is given more memory than it honestly needs."""
    start = len(_MAGIC) + 1
    if len(data) > MANIFEST_MAX_BYTES or data[:start] != _MAGIC + form:
        raise BadRequest("not a manifest of this version")
    decompressor = zstandard.ZstdDecompressor(max_window_size=_FRAME_RAW)
    hasher, total, position = blake3(), 0, start
    while True:
        if len(data) - position < _LENGTH.size:
            raise BadRequest("manifest cut short")
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if length == 0:
            break
        frame = data[position : position + length]
        position += length
        try:
            total += (size := zstandard.frame_content_size(frame))
            if not 0 < size <= _FRAME_RAW or total > _RAW_MAX:
                raise HostileArchive(what="manifest too large when unpacked")
            raw = decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError:
            raise BadRequest("manifest damaged") from None
        hasher.update(raw)
        yield raw
    if data[position:] != hasher.digest():
        raise BadRequest("manifest damaged")


def _records(data: bytes, form: bytes) -> Iterator[Entry | bytes]:
    """Entries, and paths that a delta removes. The paths of a delta are clean, in order and unique too."""
    rest = b""
    previous = b""
    for count, raw in enumerate(_raw_frames(data, form)):
        buffer = rest + raw if count else raw
        position, end = 0, len(buffer)
        while end - position >= _RECORD.size:
            length, kind, _, _, _, size, blobs = fields = _RECORD.unpack_from(buffer, position)
            extra = size if kind == ord("l") else blobs * DIGEST_BYTES
            if extra > FILE_BLOBS_MAX * DIGEST_BYTES:
                raise HostileArchive(what="manifest record too large")
            start = position + _RECORD.size
            following = start + length + extra
            if following > end:
                break
            path, content = buffer[start : start + length], buffer[start + length : following]
            position = following
            if form == _DELTA:
                if tree_key(check_path(path)) <= previous:
                    raise HostileArchive(what=f"path {path[:80]!r} out of order")
                previous = tree_key(path)
            if kind == _REMOVED and form == _DELTA:
                yield path
            elif kind in _KINDS:
                yield _entry(fields, path, content)
            else:
                raise HostileArchive(what=f"unknown kind of {path[:80]!r}")
        rest = buffer[position:]
    if rest:
        raise BadRequest("manifest cut short")


def _entry(fields: tuple[int, ...], path: bytes, content: bytes) -> Entry:
    """The entry of a record: its fixed fields, its path, its digests or target."""
    _, kind_code, flags, mode, mtime_ns, size, _ = fields
    kind, torn = _KINDS[kind_code], bool(flags & _TORN)
    if kind is Kind.SYMLINK:
        return Entry(path, kind, mode, mtime_ns, target=content, torn=torn)
    cuts = range(0, len(content), DIGEST_BYTES)
    blobs = tuple(content[cut : cut + DIGEST_BYTES] for cut in cuts)
    return Entry(path, kind, mode, mtime_ns, size, blobs, torn=torn)


EMPTY: Final = Manifest(())
