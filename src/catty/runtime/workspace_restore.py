"""`/restore`: a snapshot becomes files (docs/snapshots.md, "Restore").

Runs before the agent starts. Nothing is deleted; what stands in an entry's way is replaced. A restore that was cut short is simply
done again: files that are right already are not sent again.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any

from catty.constants import BLOB_BYTES
from catty.errors import BadRequest, HostileArchive, MachineError
from catty.runtime.workspace_trees import Trees, in_thread
from catty.workspace.atomic import open_directory, parent_of
from catty.workspace.chunks import ZERO_BLOB, read_file
from catty.workspace.exchange import DIGESTS_PER_MESSAGE, Exchange, Kind, Object, join_digests
from catty.workspace.manifest import Manifest
from catty.workspace.model import Entry
from catty.workspace.model import Kind as EntryKind
from catty.workspace.packs import read
from catty.workspace.scan import Cache
from catty.workspace.walk import Signature

__all__ = ["Restorer", "serve_restore"]

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


async def serve_restore(trees: Trees, exchange: Exchange, request: dict[str, Any]) -> None:  # noqa: ARG001
    """Serve one connection whose first message was `request`."""
    async with trees.busy:
        data = (await exchange.expect_object(Kind.MANIFEST)).data
        trees.baseline = None
        restorer = Restorer(trees, await in_thread(Manifest.from_bytes, data))
        try:
            await in_thread(restorer.prepare)
            lacking = list(restorer.waiting)
            for start in range(0, len(lacking), DIGESTS_PER_MESSAGE):
                await exchange.send_object(Kind.DIGESTS, join_digests(lacking[start : start + DIGESTS_PER_MESSAGE]))
            await exchange.send("need", blobs=len(lacking))
            while isinstance(item := await exchange.receive(), Object):
                if item.kind is not Kind.PACK:
                    raise BadRequest("expected packs")
                await in_thread(restorer.put, item.data)
            if item["type"] != "sent" or restorer.waiting:
                raise BadRequest(f"{len(restorer.waiting)} blobs were not sent")
            trees.cache = await in_thread(restorer.finish)
        except OSError as error:
            raise MachineError(f"the machine cannot write its files: {error}") from error
        finally:
            restorer.close()
        trees.baseline = restorer.manifest
        await exchange.send("restored", digest=restorer.manifest.digest.hex())


class Restorer:
    """Writes the files of `manifest`: `prepare`, then `put` until nothing is `waiting`, then `finish`. All may raise OSError."""

    def __init__(self, trees: Trees, manifest: Manifest) -> None:
        self.manifest = manifest
        self.waiting: dict[bytes, list[tuple[Entry, int]]] = {}
        """Blobs that are still to come, with the places (entry, position in bytes) where each belongs."""
        self._trees = trees
        self._left: dict[bytes, int] = {}  # per file: places to fill
        self._roots = {path: trees.open(path) for path in manifest.entries if b"/" not in path}

    def close(self) -> None:
        """Release the directories."""
        for descriptor in self._roots.values():
            os.close(descriptor)

    def prepare(self) -> None:
        """Make directories, symlinks and empty files; find out which blobs are needed."""
        for entry in self.manifest.entries.values():
            root, path = self._locate(entry)
            if not path:
                continue
            with parent_of(root, path) as (directory, name):
                match entry.kind:
                    case EntryKind.DIR:
                        self._make_directory(directory, name)
                    case EntryKind.SYMLINK:
                        self._make_symlink(directory, name, entry)
                    case EntryKind.FILE:
                        self._expect_file(directory, name, entry)

    def put(self, pack: bytes) -> None:
        """Write the blobs of a pack to where they belong; blobs that nobody waits for are ignored. Raises as `packs.read`."""
        for digest, data in read(pack):
            for entry, position in self.waiting.pop(digest, ()):
                if len(data) != min(BLOB_BYTES, entry.size - position):
                    raise HostileArchive(what=f"a blob of another length than {entry.path[:80]!r} says")
                root, path = self._locate(entry)
                with parent_of(root, path) as (directory, name):
                    descriptor = os.open(name, _WRITE, 0o600, dir_fd=directory)
                try:
                    os.truncate(descriptor, entry.size)
                    _write(descriptor, data, position)
                    self._left[entry.path] -= 1
                    if not self._left[entry.path]:
                        self._settle_file(descriptor, entry)
                finally:
                    os.close(descriptor)

    def finish(self) -> Cache:
        """Give directories their modes and times, which writing into them changed; answers what every file looks like now."""
        for entry in reversed(self.manifest.entries.values()):
            if entry.kind is EntryKind.DIR:
                root, path = self._locate(entry)
                descriptor = open_directory(root, path)
                try:
                    if path:
                        self._trees.own(descriptor)
                        os.fchmod(descriptor, entry.mode)
                    os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
                finally:
                    os.close(descriptor)
        cache = Cache.empty()
        now = time.time_ns()
        for entry in self.manifest.entries.values():
            if entry.kind is EntryKind.FILE:
                root, path = self._locate(entry)
                with parent_of(root, path) as (directory, name):
                    signature = Signature.of(os.stat(name, dir_fd=directory, follow_symlinks=False))
                cache.remember(signature, entry, now)
        return cache

    def _locate(self, entry: Entry) -> tuple[int, bytes]:
        tree, _, path = entry.path.partition(b"/")
        return self._roots[tree], path

    def _make_directory(self, directory: int, name: bytes) -> None:
        if not stat.S_ISDIR(_mode(directory, name)):
            _remove(directory, name)
            os.mkdir(name, 0o700, dir_fd=directory)

    def _make_symlink(self, directory: int, name: bytes, entry: Entry) -> None:
        _remove(directory, name)
        os.symlink(entry.target, name, dir_fd=directory)
        self._trees.own(name, directory)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _expect_file(self, directory: int, name: bytes, entry: Entry) -> None:
        right = _content(directory, name, entry.size) == entry.blobs
        if not right:
            _remove(directory, name)
            for number, digest in enumerate(entry.blobs):
                if digest != ZERO_BLOB:
                    self.waiting.setdefault(digest, []).append((entry, number * BLOB_BYTES))
                    self._left[entry.path] = self._left.get(entry.path, 0) + 1
        if entry.path not in self._left:
            descriptor = os.open(name, _WRITE, 0o600, dir_fd=directory)
            try:
                os.truncate(descriptor, entry.size)
                self._settle_file(descriptor, entry)
            finally:
                os.close(descriptor)

    def _settle_file(self, descriptor: int, entry: Entry) -> None:
        self._trees.own(descriptor)
        os.fchmod(descriptor, entry.mode)  # after the owner, whose change clears setuid
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))


def _mode(directory: int, name: bytes) -> int:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def _content(directory: int, name: bytes, size: int) -> tuple[bytes, ...] | None:
    """The blobs of a file of this size that no other name stands for; None where there is none."""
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(info.st_mode) or info.st_size != size or info.st_nlink != 1:
        return None
    return read_file(directory, name, lambda _name, _data: None).blobs


def _remove(directory: int, name: bytes) -> None:
    mode = _mode(directory, name)
    if stat.S_ISDIR(mode):
        os.rmdir(name, dir_fd=directory)
    elif mode:
        os.unlink(name, dir_fd=directory)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written
