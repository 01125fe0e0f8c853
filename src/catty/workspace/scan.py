"""From files on disk to entries, reading only what may have changed since the last look."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from catty.workspace.chunks import read_file
from catty.workspace.model import Entry, Kind
from catty.workspace.walk import Found, Signature, look, nothing, walk

__all__ = ["RACY_NS", "Cache", "Scanner"]

# A file written within this time before it was read may be written again without its times telling: the clock that stamps files
# ticks every 10 ms at worst.
RACY_NS: Final = 50_000_000

_PERMISSIONS: Final = 0o7777


@dataclass(slots=True)
class Cache:
    """What was last read, by path with the tree's name in front: (signature, entry) where the signature can be trusted."""

    known: dict[bytes, tuple[Signature, Entry]]

    @classmethod
    def empty(cls) -> Cache:
        """One that knows nothing."""
        return cls({})

    def entry(self, path: bytes, signature: Signature) -> Entry | None:
        """The entry, if the file has this signature still."""
        known = self.known.get(path)
        return known[1] if known and known[0] == signature else None

    def remember(self, signature: Signature, entry: Entry, read_ns: int) -> None:
        """`read_ns`: the wall clock before it was read."""
        if signature.ctime_ns < read_ns - RACY_NS and not entry.torn:
            self.known[entry.path] = (signature, entry)
        else:
            self.known.pop(entry.path, None)


def _unneeded(digest: bytes) -> bool:  # noqa: ARG001  # the shape of `needed`
    return False


def _drop(digest: bytes, data: bytes) -> None:
    """Takes a blob and does nothing with it."""


class Scanner:
    """Scans the directory `root` (a descriptor that stays the caller's), whose paths get the tree's name `tree` in front."""

    def __init__(
        self,
        root: int,
        tree: bytes,
        cache: Cache,
        *,
        exclude: Callable[[bytes, bool], bool] = nothing,
        needed: Callable[[bytes], bool] = _unneeded,
        take: Callable[[bytes, bytes], None] = _drop,
    ) -> None:
        """`exclude` as in `walk`. A file is read when the cache does not know it or one of its blobs is `needed(digest)`; each blob
        that is read goes to `take(digest, content)`. Both are called again and again, in order."""
        self._root, self._tree, self._cache = root, tree, cache
        self._exclude, self._needed, self._take = exclude, needed, take
        self.skipped: list[tuple[bytes, str]] = []  # (path, why), of all scans
        self.torn: list[bytes] = []

    def scan(self) -> Iterator[Entry]:
        """Every entry of the tree, in tree order, the tree's own first."""
        signature = Signature.of(os.fstat(self._root))
        yield Entry(self._tree, Kind.DIR, signature.mode & _PERMISSIONS, signature.mtime_ns)
        yield from self.scan_below(b"")

    def scan_below(self, path: bytes) -> Iterator[Entry]:
        """Every entry below the directory `path` (relative to the root), in tree order. Raises OSError where it is no directory."""
        for found in walk(self._root, path, exclude=self._exclude, skipped=self._skip):
            if entry := self._entry(found):
                yield entry

    def one(self, directory: int, name: bytes, path: bytes) -> Entry | None:
        """The entry of `name` in the open `directory`, known as `path` (relative to the root); None if there is none."""
        found = look(directory, name, path, self._exclude, self._skip)
        return self._entry(found) if found else None

    def _skip(self, path: bytes, why: str) -> None:
        self.skipped.append((self._tree + b"/" + path, why))

    def _entry(self, found: Found) -> Entry | None:
        """None where it cannot be read, which is reported, or has vanished, as if it had never been there."""
        path = self._tree + b"/" + found.path
        mode, mtime_ns = found.signature.mode & _PERMISSIONS, found.signature.mtime_ns
        if found.kind is Kind.DIR:
            return Entry(path, Kind.DIR, mode, mtime_ns)
        try:
            if found.kind is Kind.SYMLINK:
                target = os.readlink(found.name, dir_fd=found.directory)
                return Entry(path, Kind.SYMLINK, mode, mtime_ns, target=target)
            known = self._cache.entry(path, found.signature)
            if known and not any(map(self._needed, known.blobs)):
                return known
            return self._read(found, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._skip(found.path, error.strerror or "unreadable")
            return None

    def _read(self, found: Found, path: bytes) -> Entry:
        content = read_file(found.directory, found.name, self._take)
        signature = content.signature
        entry = Entry(
            path,
            Kind.FILE,
            signature.mode & _PERMISSIONS,
            signature.mtime_ns,
            content.size,
            content.blobs,
            torn=content.torn,
        )
        if content.torn:
            self.torn.append(path)
        self._cache.remember(signature, entry, content.started_ns)
        return entry
