"""Workspaces on their way between machines and the store (docs/snapshots.md). Everything that a machine says is checked here.

`dial` gives a socket connected to the machine's `workspace` listener, `token` is the one of its claim.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from catty.constants import TRANSFER_MESSAGE_BYTES
from catty.errors import (
    BadRequest,
    BlobsMissing,
    CattyError,
    HeadTaken,
    HostileArchive,
    MachineError,
    RestoreFailed,
    SaveFailed,
    SnapshotNotFound,
    StoreFailed,
)
from catty.server.sessions.control import open_websocket, printable
from catty.wire.channel import Channel
from catty.workspace.exchange import Exchange, Kind, Object, split_digests
from catty.workspace.heads import Head
from catty.workspace.manifest import EMPTY, Manifest
from catty.workspace.packs import parse_index
from catty.workspace.store import SnapshotStore

__all__ = ["Dial", "Progress", "restore", "save"]

Dial = Callable[[], Awaitable[socket.socket]]
Progress = Callable[[int, int], None]
"""Called with (blobs sent, blobs in all)."""

SAVE_LIMIT_S: Final = 1800.0
RESTORE_LIMIT_S: Final = 1800.0
SAVE_BYTES_MAX: Final = 64 << 30  # of packs in one save; a machine that sends more is up to no good
_DIGESTS_MAX: Final = 1 << 22
_LOG: Final = logging.getLogger(__name__)


async def restore(
    dial: Dial, token: str, store: SnapshotStore, manifest: Manifest, progress: Progress = lambda _sent, _all: None
) -> None:
    """Make the machine's trees what `manifest` says. Raises RestoreFailed, StoreFailed; may be repeated."""
    with _blaming_machine(RestoreFailed):
        async with _exchange(dial, token, "/restore", RESTORE_LIMIT_S) as exchange:
            await exchange.send("restore")
            await exchange.send_object(Kind.MANIFEST, await asyncio.to_thread(manifest.to_bytes))
            known = await asyncio.to_thread(manifest.blobs)
            lacking: dict[bytes, None] = {}
            while isinstance(item := await exchange.receive(), Object):
                if item.kind is not Kind.DIGESTS or len(lacking) > _DIGESTS_MAX:
                    raise BadRequest("expected digests")
                lacking.update(dict.fromkeys(split_digests(item.data)))
                if not lacking.keys() <= known.keys():
                    raise HostileArchive(what="a machine that asks for blobs of others")
            _expected(item, "need")
            sent = 0
            async for pack in store.fetch(lacking):
                await exchange.send_object(Kind.PACK, pack)
                sent += await asyncio.to_thread(_count, pack, lacking)
                progress(sent, len(lacking))
            await exchange.send("sent")
            reply = await exchange.receive()
            if isinstance(reply, Object):
                raise BadRequest("expected restored")
            _expected(reply, "restored")


async def save(
    dial: Dial,
    token: str,
    store: SnapshotStore,
    session: str,
    *,
    conversation: Sequence[str] | None = None,
    reason: str = "",
    generation: int = 0,
) -> Head | None:
    """Save what changed in the machine since the session's newest snapshot; None: nothing did.

    `conversation`: the paths of the agent's home that belong to it (`AgentLaunch.conversation`); None leaves that to the machine's
    claim, and where it has none (a helper that salvages) keeps of the home what the last snapshot has.
    `generation` is that of the save lease that the caller holds. Raises SaveFailed, StoreFailed, HeadTaken; may be repeated.
    """
    base = _Base(store, session, await store.latest(session))
    for last_try in (False, True):
        with _blaming_machine(SaveFailed):
            try:
                async with _exchange(dial, token, "/save", SAVE_LIMIT_S) as exchange:
                    paths = {} if conversation is None else {"conversation": list(conversation)}
                    return await _save(exchange, store, base, paths, reason=reason, generation=generation)
            except _BaseUnusable as unusable:
                if last_try:
                    raise StoreFailed(reason=str(unusable)) from unusable
                base = await _intact(store, session)
    raise AssertionError("unreachable")


class _BaseUnusable(Exception):
    """The snapshot that the machine was to compare with is damaged, as only reading all of it tells."""


class _Base:
    """The snapshot that a save builds on, read when it is needed; `head` None: there is none."""

    def __init__(self, store: SnapshotStore, session: str, head: Head | None, manifest: Manifest | None = None) -> None:
        self._store, self.session, self.head = store, session, head
        self._manifest = manifest if head else EMPTY

    async def manifest(self) -> Manifest:
        """Raises _BaseUnusable."""
        if self._manifest is None:
            try:
                _, self._manifest = await self._store.load(self.session, self.head.number if self.head else None)
            except (StoreFailed, SnapshotNotFound) as error:
                raise _BaseUnusable(error.message) from error
        return self._manifest


async def _intact(store: SnapshotStore, session: str) -> _Base:
    try:
        return _Base(store, session, *await store.load(session))
    except SnapshotNotFound:
        return _Base(store, session, None)


async def _save(
    exchange: Exchange, store: SnapshotStore, base: _Base, paths: dict[str, Any], *, reason: str, generation: int
) -> Head | None:
    number = max(await store.numbers(base.session), default=0) + 1  # a damaged head keeps its number
    await exchange.send("save", base=base.head.digest if base.head else None, **paths)
    for _ in range(2):
        new, done = await _changes(exchange, store, base)
        if new is None:
            return None
        complete = done.get("complete") is True
        try:
            head = await store.commit(
                base.session, new, number=number, complete=complete, reason=reason, generation=generation
            )
        except BlobsMissing as error:
            _LOG.warning("session %s: %s; the machine sends all again", base.session, error.message)
            await exchange.send("resend")
            continue
        await _tell_committed(exchange, head)
        return head
    raise SaveFailed(reason="the machine does not send all that its files are made of")


async def _changes(exchange: Exchange, store: SnapshotStore, base: _Base) -> tuple[Manifest | None, dict[str, Any]]:
    """Take in what the machine sends: (its new manifest or None for no news, its report)."""
    new: Manifest | None = None
    received = 0
    while True:
        item = await exchange.receive()
        if isinstance(item, Object):
            received += len(item.data)
            if received > SAVE_BYTES_MAX:
                raise HostileArchive(what="a save without end")
            if item.kind is Kind.PACK:
                await store.put_pack(item.data)
                continue
            if item.kind is not Kind.DELTA or new is not None:
                raise BadRequest(f"unexpected {item.kind.name}")
            new = await asyncio.to_thread((await base.manifest()).apply, item.data)
        elif item["type"] == "want-base" and base.head:
            await exchange.send_object(Kind.MANIFEST, await asyncio.to_thread((await base.manifest()).to_bytes))
        elif item["type"] == "unchanged" and base.head:
            return None, item
        else:
            _expected(item, "done")
            if new is None:
                raise BadRequest("done without a delta")
            return new, item


async def _tell_committed(exchange: Exchange, head: Head) -> None:
    """The snapshot is safe already: a machine that does not hear of it only sends the same again."""
    try:
        await exchange.send("committed", number=head.number)
    except (ConnectionError, TimeoutError, CattyError) as error:
        _LOG.warning("a machine did not hear that it was saved: %s", error)


def _count(pack: bytes, wanted: dict[bytes, None]) -> int:
    return sum(name in wanted for name in parse_index(pack, len(pack)).digests())


def _expected(item: dict[str, Any], kind: str) -> None:
    """Not `Exchange.expect`: an error that a machine made up must not pass for one of ours."""
    if item["type"] == "error":
        raise MachineError(printable(item.get("message", "")))
    if item["type"] != kind:
        raise BadRequest(f"expected {kind}")


@asynccontextmanager
async def _exchange(dial: Dial, token: str, path: str, limit: float) -> AsyncIterator[Exchange]:
    async with asyncio.timeout(limit):
        channel = Channel()
        await open_websocket(await dial(), path, token, lambda: channel, TRANSFER_MESSAGE_BYTES + 1)
        if not channel.connected:
            raise ConnectionError("closed in the handshake")
        async with Exchange(channel) as exchange:
            yield exchange


@contextmanager
def _blaming_machine(error_type: type[RestoreFailed | SaveFailed]) -> Iterator[None]:
    """What a machine did wrong, or failed to do, as one error; the store's own errors stay what they are."""
    try:
        yield
    except (StoreFailed, HeadTaken, error_type):
        raise
    except CattyError as error:
        raise error_type(reason=error.message) from error
    except TimeoutError as error:
        raise error_type(reason="it took too long") from error
    except OSError as error:
        raise error_type(reason=f"connection lost ({error})" if str(error) else "connection lost") from error
