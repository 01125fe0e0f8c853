"""Snapshots in an object store (docs/snapshots.md, "Store").

    OWNER/packs/DIGEST                      blobs; shared by all sessions of one owner, never between owners
    OWNER/sessions/SESSION/heads/000001     one object per snapshot, numbered, create-only

Data goes in before the head that names it, so a reader finds the last complete snapshot whenever the writer was killed. The store
alone holds everything; the index of blobs is a cache beside it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from obstore.exceptions import BaseError

from catty.constants import PACK_BYTES, PACK_MAX_BYTES, SNAPSHOT_REBASE_SHARE
from catty.errors import BadRequest, BlobsMissing, HeadTaken, HostileArchive, SnapshotNotFound, StoreFailed
from catty.workspace import heads, packs
from catty.workspace.blobindex import BlobIndex
from catty.workspace.heads import Head
from catty.workspace.manifest import Manifest
from catty.workspace.model import digest
from catty.workspace.objects import Objects

__all__ = ["SnapshotStore"]

_T = TypeVar("_T")
_TAIL: Final = 64 << 10  # holds the index of most packs, so that one read is enough
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LOG: Final = logging.getLogger(__name__)


class SnapshotStore:
    """The snapshots and blobs of one owner.

    Every method raises StoreFailed where the store itself fails; nothing is half done then, and the call may be repeated.
    """

    def __init__(self, objects: Objects, owner: str, index: Path | None = None) -> None:
        """`index`: the file that caches where blobs lie; None keeps that in memory."""
        self._objects = objects
        self._owner = _clean(owner)
        self._index_path = index
        self._index: BlobIndex | None = None
        self._indexing = asyncio.Lock()

    def close(self) -> None:
        """Release the index."""
        if self._index:
            self._index.close()
            self._index = None

    # ------------------------------------------------------------------------------------------ blobs

    async def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of `digests` that the store does not hold, in their order, each once."""
        wanted = dict.fromkeys(digests)
        index = await self._indexed()
        places = await asyncio.to_thread(index.places, wanted)
        return [name for name in wanted if name not in places]

    async def put_pack(self, pack: bytes) -> None:
        """Take in a pack from outside: every blob is hashed first. Twice is once. Raises BadRequest or HostileArchive."""
        name, tail = await asyncio.to_thread(_verify, pack)
        index = await self._indexed()
        if name in await asyncio.to_thread(index.packs):
            return
        await _guarded(self._objects.put(f"{self._owner}/packs/{name}", pack))
        await asyncio.to_thread(index.add, name, len(pack), tail)

    async def fetch(self, digests: Iterable[bytes]) -> AsyncIterator[bytes]:
        """Packs that together hold these blobs, and possibly others of their frames. Raises BlobsMissing before the first one."""
        wanted = dict.fromkeys(digests)
        index = await self._indexed()
        places = await asyncio.to_thread(index.places, wanted)
        if len(places) < len(wanted):
            raise BlobsMissing(count=len(wanted) - len(places))
        needed: dict[str, set[int]] = {}
        for place in places.values():
            needed.setdefault(place.pack, set()).add(place.frame)
        gathered: list[tuple[packs.Frame, bytes]] = []
        raw = blobs = 0
        for pack, numbers in needed.items():
            async for frame, packed in self._frames(index, pack, sorted(numbers)):
                if raw + frame.raw > PACK_BYTES or blobs + len(frame.blobs) > packs.BLOBS_MAX:
                    yield await asyncio.to_thread(packs.assemble, gathered)
                    gathered, raw, blobs = [], 0, 0
                gathered.append((frame, packed))
                raw += frame.raw
                blobs += len(frame.blobs)
        if gathered:
            yield await asyncio.to_thread(packs.assemble, gathered)

    async def _frames(
        self, index: BlobIndex, pack: str, numbers: list[int]
    ) -> AsyncIterator[tuple[packs.Frame, bytes]]:
        known = await asyncio.to_thread(index.pack, pack)
        frames = [known.frames[number] for number in numbers]
        starts, ends = [frame.offset for frame in frames], [frame.offset + frame.length for frame in frames]
        path = f"{self._owner}/packs/{pack}"
        parts: list[bytes] = []
        failure: Exception | None = None
        try:
            parts = await _guarded(self._objects.ranges(path, starts, ends))
        except (FileNotFoundError, StoreFailed) as error:
            failure = error
        if [len(part) for part in parts] != [frame.length for frame in frames]:
            if failure and await self._size(path) == known.size:
                raise failure
            await asyncio.to_thread(index.forget, pack)  # whoever has its blobs will be asked for them
            raise StoreFailed(reason=f"pack {pack} is gone or cut short") from failure
        for frame, part in zip(frames, parts, strict=True):
            yield frame, part

    async def _indexed(self) -> BlobIndex:
        """The index, brought up to what the store holds when first used."""
        async with self._indexing:
            if self._index is None:
                index = await asyncio.to_thread(BlobIndex, self._index_path)
                try:
                    await self._refresh(index)
                except BaseException:
                    index.close()
                    raise
                self._index = index
            return self._index

    async def _refresh(self, index: BlobIndex) -> None:
        prefix = f"{self._owner}/packs/"
        listed = await _guarded(self._objects.list(prefix))
        stored = {path.removeprefix(prefix): size for path, size in listed.items()}
        known = await asyncio.to_thread(index.packs)
        if any(stored.get(name) != size for name, size in known.items()):  # gone, or cut short
            await asyncio.to_thread(index.clear)
            known = {}
        for name in sorted(stored.keys() - known.keys()):
            try:
                tail, size = await _guarded(self._objects.tail(prefix + name, min(stored[name], _TAIL)))
                length = packs.index_bytes(tail[-packs.FOOTER_BYTES :], size)
                if length > len(tail):
                    tail, size = await _guarded(self._objects.tail(prefix + name, length))
                await asyncio.to_thread(index.add, name, size, tail[-length:])
            except (BadRequest, HostileArchive) as error:
                _LOG.warning("pack %s of %s is unusable: %s", name, self._owner, error.message)

    # ------------------------------------------------------------------------------------------ snapshots

    async def commit(
        self,
        session: str,
        manifest: Manifest,
        *,
        number: int | None = None,
        complete: bool = True,
        reason: str = "",
        generation: int = 0,
    ) -> Head:
        """Make `manifest` snapshot `number` of the session (default: the one after the last).

        Raises BlobsMissing if the store lacks any of its blobs, HeadTaken if that number exists or the last head was written under a
        later lease than `generation`.
        """
        blobs = manifest.blobs()
        index = await self._indexed()
        places = await asyncio.to_thread(index.places, blobs)
        if len(places) < len(blobs):
            raise BlobsMissing(count=len(blobs) - len(places))
        if any(places[name].length != length for name, length in blobs.items()):
            raise HostileArchive(what="a file whose blobs have other lengths than it says")
        numbers = await self.numbers(session)
        last = await self._usable_head(session, numbers)
        newest = max(numbers, default=0)
        number = newest + 1 if number is None else number
        if number <= newest or (last and last.generation > generation):
            raise HeadTaken(number=newest)
        head = Head(
            number=number,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            digest=manifest.digest.hex(),
            base=number,
            files=manifest.files,
            bytes=manifest.size,
            complete=complete,
            reason=reason,
            generation=generation,
        )
        head, content = await self._content(session, head, last, manifest)
        try:
            await _guarded(self._objects.create(self._head_path(session, number), heads.dump(head, content)))
        except FileExistsError:
            raise HeadTaken(number=number) from None
        return head

    async def _content(self, session: str, head: Head, last: Head | None, manifest: Manifest) -> tuple[Head, bytes]:
        """A delta from the last head's base where that is small, else the whole manifest."""
        if last is not None:
            try:
                base_head, content = await self._read(session, last.base)
                if base_head.base == base_head.number:
                    base = await asyncio.to_thread(Manifest.from_bytes, content)
                    delta = await asyncio.to_thread(base.delta, manifest)
                    if len(delta) <= len(content) * SNAPSHOT_REBASE_SHARE:
                        return replace(head, base=base_head.number), delta
            except (SnapshotNotFound, BadRequest, HostileArchive) as error:
                _LOG.warning("base %d of session %s is unusable: %s", last.base, session, error.message)
        return head, await asyncio.to_thread(manifest.to_bytes)

    async def numbers(self, session: str) -> list[int]:
        """The numbers of the session's heads, ascending; empty for a session without snapshots."""
        prefix = f"{self._owner}/sessions/{_clean(session)}/heads/"
        names = (path.removeprefix(prefix) for path in await _guarded(self._objects.list(prefix)))
        return sorted(int(name) for name in names if name.isdecimal())

    async def heads(self, session: str) -> list[Head]:
        """All snapshots of the session, oldest first. Damaged ones are left out."""
        found = [await self._meta(session, number) for number in await self.numbers(session)]
        return [head for head in found if head]

    async def latest(self, session: str) -> Head | None:
        """The newest snapshot that is intact, or None."""
        return await self._usable_head(session, await self.numbers(session))

    async def load(self, session: str, number: int | None = None) -> tuple[Head, Manifest]:
        """Snapshot `number`, or the newest one that is intact. Raises SnapshotNotFound; StoreFailed if the one named is damaged."""
        if number is not None:
            return await self._load(session, number)
        for candidate in reversed(await self.numbers(session)):
            try:
                return await self._load(session, candidate)
            except (StoreFailed, SnapshotNotFound) as error:
                _LOG.warning("snapshot %d of session %s is passed over: %s", candidate, session, error.message)
        raise SnapshotNotFound(label=session, what="snapshot")

    async def delete_session(self, session: str) -> None:
        """Delete all its snapshots. Their blobs may belong to other sessions and stay."""
        for number in reversed(await self.numbers(session)):  # a delta never outlives its base
            await _guarded(self._objects.delete(self._head_path(session, number)))

    async def _load(self, session: str, number: int) -> tuple[Head, Manifest]:
        base_number = number
        try:
            head, content = await self._read(session, number)
            if head.base == number:
                return head, await asyncio.to_thread(Manifest.from_bytes, content)
            base_number = head.base
            _, base_content = await self._read(session, base_number)
            base = await asyncio.to_thread(Manifest.from_bytes, base_content)
            return head, await asyncio.to_thread(base.apply, content)
        except (BadRequest, HostileArchive) as error:
            raise StoreFailed(reason=f"snapshot {number}: {error.message}") from error
        except SnapshotNotFound:
            if base_number == number:
                raise
            raise StoreFailed(
                reason=f"snapshot {number}: snapshot {base_number}, which it builds on, is gone"
            ) from None

    async def _read(self, session: str, number: int) -> tuple[Head, bytes]:
        try:
            data = await _guarded(self._objects.get(self._head_path(session, number)))
        except FileNotFoundError:
            raise SnapshotNotFound(label=session, what=f"snapshot {number}") from None
        return heads.parse(data)

    async def _usable_head(self, session: str, numbers: list[int]) -> Head | None:
        for number in reversed(numbers):
            if head := await self._meta(session, number):
                return head
        return None

    async def _meta(self, session: str, number: int) -> Head | None:
        path = self._head_path(session, number)
        try:
            return heads.parse_meta((await _guarded(self._objects.ranges(path, [0], [heads.PREFIX_BYTES])))[0])
        except StoreFailed as error:  # of an empty object too
            if await self._size(path) != 0:
                raise
            _LOG.warning("head %d of session %s is empty: %s", number, session, error.message)
            return None
        except (BadRequest, FileNotFoundError) as error:
            _LOG.warning("head %d of session %s is unusable: %s", number, session, error)
            return None

    async def _size(self, path: str) -> int | None:
        """Of an object, in bytes; None if it is not there."""
        return (await _guarded(self._objects.list(path.rpartition("/")[0] + "/"))).get(path)

    def _head_path(self, session: str, number: int) -> str:
        return f"{self._owner}/sessions/{_clean(session)}/heads/{number:06d}"


def _verify(pack: bytes) -> tuple[str, bytes]:
    """(name, index and footer) of a pack whose every blob is what its name says."""
    if len(pack) > PACK_MAX_BYTES:
        raise HostileArchive(what="pack too large")
    for _ in packs.read(pack):
        pass
    length = packs.index_bytes(pack[-packs.FOOTER_BYTES :], len(pack))
    return digest(pack).hex(), pack[-length:]


async def _guarded(operation: Awaitable[_T]) -> _T:
    """The same, with the store's own faults as StoreFailed."""
    try:
        return await operation
    except (FileNotFoundError, FileExistsError):
        raise
    except (BaseError, OSError) as error:
        raise StoreFailed(
            reason=str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        ) from error


def _clean(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadRequest(f"{name[:80]!r} cannot name a part of the store")
    return name
