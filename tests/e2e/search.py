"""Looks for a word where it should not be: in files and processes, as it is, encoded, and inside what is compressed."""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import zstandard

from catty.errors import BadRequest, HostileArchive
from catty.workspace import heads, packs

Blobs = Iterable[tuple[str, bytes]]
"""(where, content) of what is searched."""

FILE_MAX: Final = 64 << 20
_UNPACKED_MAX: Final = 16 << 20
_DEEP: Final = 3  # compressed inside compressed
_ZLIB: Final = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b\x08")
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


def spellings(word: bytes) -> set[bytes]:
    """The ways in which `word` may stand in something: raw, hex, base64 at each of its three alignments, UTF-16."""
    ways = {word, word.hex().encode(), word.hex().upper().encode(), word.decode().encode("utf-16-le")}
    for before in range(3):
        # The first and last letters depend on what stands around the word.
        whole = base64.b64encode(b"\0" * before + word)
        ways.add(whole[-(-before * 4 // 3) : len(whole) - 4])
    return ways


def layers(data: bytes, deep: int = _DEEP) -> Iterator[bytes]:
    """`data`, and what is compressed in it."""
    yield data
    if deep:
        for unpacked in _unpacked(data):
            yield from layers(unpacked, deep - 1)


def holds(data: bytes, ways: set[bytes]) -> bool:
    """Whether one of `ways` is in `data`."""
    return any(way in data for way in ways)


def _unpacked(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for magic in _ZLIB:
        for at in _every(data, magic):
            with contextlib.suppress(zlib.error):
                yield zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(view[at:], _UNPACKED_MAX)
    for at in _every(data, _ZSTD):
        with contextlib.suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(view[at:])


def _every(data: bytes, part: bytes) -> Iterator[int]:
    at = data.find(part)
    while at >= 0:
        yield at
        at = data.find(part, at + 1)


def files(*roots: Path, since: float = 0.0) -> Blobs:
    """All regular files below `roots` (or they themselves) that were changed after `since`; names count as content.

    What pytest keeps in a directory for temporary files is looked at only where a root lies in it.
    """
    for root in roots:
        for path in [root] if root.is_file() else _below(root):
            try:
                about = path.lstat()
                if not stat.S_ISREG(about.st_mode) or about.st_mtime < since or about.st_size > FILE_MAX:
                    continue
                yield str(path), os.fsencode(path) + b"\0" + path.read_bytes()
            except OSError:  # somebody else's, gone by now
                continue


def _below(root: Path) -> Iterator[Path]:
    for top, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith("pytest-of-")]
        yield from (Path(top) / name for name in names)


def store(root: Path) -> Blobs:
    """Every blob of a snapshot store and every head, read as Catty reads them."""
    for path in (path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        try:
            if path.parent.name == "packs":
                yield from ((f"{path}:{name.hex()}", bytes(blob)) for name, blob in packs.read(data))
            else:
                head, content = heads.parse(data)
                yield str(path), repr(head).encode() + content
        except (BadRequest, HostileArchive) as error:
            raise AssertionError(f"{path} cannot be read: {error}") from None


def processes(what: str, *, inside: int | None = None) -> Blobs:
    """`what` (cmdline, environ) of each process of the host outside of machines; or of those in the machine whose PID 1 is `inside`."""
    wanted = _namespace("self" if inside is None else str(inside))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if _namespace(process.name) == wanted:
                yield str(process), (process / what).read_bytes()
        except OSError:  # it has ended
            continue


def _namespace(process: str) -> str:
    return os.readlink(f"/proc/{process}/ns/pid")
