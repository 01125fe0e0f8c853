"""Objects in a directory or a bucket, through obstore: what the snapshot store needs, durable where it says so.

obstore's directory store writes a temporary file and links it into place, but never syncs: after a power cut a name may stand for
an empty file. Here the content is synced before it gets its name, and the name before `create` or `put` returns.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import obstore
from obstore.store import LocalStore, ObjectStore

__all__ = ["Objects"]

_STAGING: Final = "staging"
_STAGING_KEEP_S: Final = 3600  # no write takes this long; what is older was left by a killed process


class Objects:
    """Paths are `/`-separated text. Faults of the store raise obstore's own exceptions, or OSError."""

    def __init__(self, store: ObjectStore) -> None:
        """`store`: any of obstore's but its directory store, for which there is `in_directory`."""
        self._store = store
        self._root: Path | None = None
        self._synced: set[Path] = set()

    @classmethod
    def in_directory(cls, root: Path) -> Objects:
        """A store in the directory `root`, made if need be (0700)."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        objects = cls(LocalStore(root))
        objects._root = root
        for path in (root / _STAGING).glob("*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _STAGING_KEEP_S:
                    path.unlink()
        return objects

    async def get(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        return bytes(await (await obstore.get_async(self._store, path)).bytes_async())

    async def tail(self, path: str, length: int) -> tuple[bytes, int]:
        """Its last `length` bytes (fewer if it is shorter) and its size. Raises FileNotFoundError."""
        result = await obstore.get_async(self._store, path, options={"range": {"suffix": length}})
        return bytes(await result.bytes_async()), result.meta["size"]

    async def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Some stretches of it, `starts[i]` up to but without `ends[i]`."""
        return [bytes(part) for part in await obstore.get_ranges_async(self._store, path, starts=starts, ends=ends)]

    async def put(self, path: str, data: bytes) -> None:
        """Write it whole or not at all, in place of any that was there."""
        await self._write(path, data, overwrite=True)

    async def create(self, path: str, data: bytes) -> None:
        """Write it whole or not at all. Raises FileExistsError if there is one: of several callers exactly one succeeds."""
        try:
            await self._write(path, data, overwrite=False)
        except obstore.exceptions.AlreadyExistsError:
            raise FileExistsError(path) from None

    async def list(self, prefix: str) -> dict[str, int]:
        """Paths below the directory `prefix`, with their sizes."""
        return {meta["path"]: meta["size"] async for batch in obstore.list(self._store, prefix) for meta in batch}

    async def delete(self, path: str) -> None:
        """Nothing happens if it is not there."""
        with suppress(FileNotFoundError):
            await obstore.delete_async(self._store, path)

    async def _write(self, path: str, data: bytes, *, overwrite: bool) -> None:
        if self._root is None:
            mode = "overwrite" if overwrite else "create"
            await obstore.put_async(self._store, path, data, mode=mode, use_multipart=False)  # type: ignore[arg-type]
            return
        staged = f"{_STAGING}/{uuid.uuid4().hex}"
        try:
            await obstore.put_async(self._store, staged, data, use_multipart=False)
            await asyncio.to_thread(_sync, self._root / staged)
            await obstore.rename_async(self._store, staged, path, overwrite=overwrite)
        except BaseException:
            with suppress(OSError, obstore.exceptions.BaseError):
                obstore.delete(self._store, staged)
            raise
        await asyncio.to_thread(self._sync_directories, (self._root / path).parent)

    def _sync_directories(self, directory: Path) -> None:
        """The names in `directory`; and the first time also its own name, and so on up."""
        _sync(directory)
        while directory != self._root and directory not in self._synced:
            _sync(directory.parent)
            self._synced.add(directory)
            directory = directory.parent


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
