"""Workspaces on their way between machines and the store (docs/snapshots.md). Everything that a machine says is checked here.

`dial` gives a socket connected to the machine's `workspace` listener, `token` is the one of its claim.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import picows

from catty.constants import MIB, TRANSFER_MESSAGE_BYTES
from catty.errors import (
    BadRequest,
    BlobsMissing,
    CattyError,
    HeadTaken,
    HostileArchive,
    MachineError,
    RestoreFailed,
    SaveFailed,
    StoreFailed,
)
from catty.server.sessions.control import open_websocket, printable
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
_UNREAD_BYTES: Final = 4 * MIB
_MESSAGE_COST: Final = 128  # bytes of memory beside its content; about
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
    reason: str = "",
    generation: int = 0,
) -> Head | None:
    """Save what changed in the machine since the session's newest snapshot; None: nothing did.

    `generation` is that of the save lease that the caller holds. Raises SaveFailed, StoreFailed, HeadTaken; may be repeated.
    """
    number = max(await store.numbers(session), default=0) + 1  # a damaged head keeps its number
    base_head = await store.latest(session)
    with _blaming_machine(SaveFailed):
        async with _exchange(dial, token, "/save", SAVE_LIMIT_S) as exchange:
            await exchange.send("save", base=base_head.digest if base_head else None)
            base: Manifest | None = None if base_head else EMPTY
            for _ in range(2):
                new, done = await _changes(exchange, store, session, base_head, base)
                if new is None:
                    return None
                try:
                    head = await store.commit(
                        session,
                        new,
                        number=number,
                        complete=done.get("complete") is True,
                        reason=reason,
                        generation=generation,
                    )
                except BlobsMissing as error:
                    _LOG.warning("session %s: %s; the machine sends all again", session, error.message)
                    await exchange.send("resend")
                    continue
                await _tell_committed(exchange, head)
                return head
            raise SaveFailed(reason="the machine does not send all that its files are made of")


async def _changes(
    exchange: Exchange, store: SnapshotStore, session: str, base_head: Head | None, base: Manifest | None
) -> tuple[Manifest | None, dict[str, Any]]:
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
            if base is None and base_head:
                _, base = await store.load(session, base_head.number)
            new = await asyncio.to_thread((base or EMPTY).apply, item.data)
        elif item["type"] == "want-base" and base_head:
            _, base = await store.load(session, base_head.number)
            await exchange.send_object(Kind.MANIFEST, await asyncio.to_thread(base.to_bytes))
        elif item["type"] == "unchanged" and base_head:
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


class _Channel(picows.WSListener):
    """An `exchange.Channel` to a machine; buffers at most _UNREAD_BYTES that nobody has taken yet."""

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._unread = 0
        self._transport: picows.WSTransport | None = None
        self._arrived, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._lost: str | None = None

    async def send(self, message: str | bytes) -> None:
        await self._writable.wait()
        if self._lost is not None or self._transport is None:
            raise ConnectionError(self._lost)
        kind = picows.WSMsgType.TEXT if isinstance(message, str) else picows.WSMsgType.BINARY
        self._transport.send(kind, message)

    async def receive(self) -> str | bytes:
        while not self._messages:
            if self._lost is not None:
                raise ConnectionError(self._lost)
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._unread -= len(message) + _MESSAGE_COST
        if self._unread < _UNREAD_BYTES and self._lost is None and self._transport is not None:
            self._transport.underlying_transport.resume_reading()
        return message

    def close(self) -> None:
        if self._transport is not None:
            self._transport.disconnect()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        match frame.msg_type:
            case picows.WSMsgType.TEXT | picows.WSMsgType.BINARY if frame.fin:
                data = frame.get_payload_as_bytes()
                text = frame.msg_type is picows.WSMsgType.TEXT
                self._messages.append(data.decode("ascii", errors="replace") if text else data)  # ours are pure ASCII
                self._unread += len(data) + _MESSAGE_COST
                if self._unread >= _UNREAD_BYTES:
                    transport.underlying_transport.pause_reading()
                self._arrived.set()
            case picows.WSMsgType.PING | picows.WSMsgType.PONG:
                pass
            case picows.WSMsgType.CLOSE:
                self._end(f"closed by the machine: {printable(frame.get_close_reason() or '')}")
                transport.disconnect()
            case _:
                self._end("a fragmented message")
                transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002  # picows' signature
        self._end("the machine is gone")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _end(self, why: str) -> None:
        self._lost = self._lost or why
        self._arrived.set()
        self._writable.set()


@asynccontextmanager
async def _exchange(dial: Dial, token: str, path: str, limit: float) -> AsyncIterator[Exchange]:
    async with asyncio.timeout(limit):
        channel = _Channel()
        await open_websocket(await dial(), path, token, lambda: channel, TRANSFER_MESSAGE_BYTES + 1)
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
