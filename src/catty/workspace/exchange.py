"""What `/save`, `/restore` and `/sync` have in common: JSON messages and large objects over one WebSocket (docs/snapshots.md,
"Messages"). Knows no sockets: whoever has a connection hands it in as a `Channel`.

A text is one JSON object with a `type`. A binary message is one piece of an object: a byte that says what it is (0x80 added on the
last piece), then up to TRANSFER_MESSAGE_BYTES. A side takes pieces off as fast as it can use them and acknowledges; nobody has more
than TRANSFER_WINDOW_BYTES under way, so memory stays bounded on both sides whatever their speeds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

from catty.constants import MIB, PACK_MAX_BYTES, PASTE_UPLOAD_LIMIT_BYTES, TRANSFER_IDLE_S, TRANSFER_MESSAGE_BYTES
from catty.constants import TRANSFER_WINDOW_BYTES as WINDOW
from catty.errors import BadRequest, CattyError, from_json
from catty.workspace.manifest import MANIFEST_MAX_BYTES
from catty.workspace.model import DIGEST_BYTES

__all__ = ["DIGESTS_PER_MESSAGE", "Channel", "Exchange", "Kind", "Object", "join_digests", "split_digests"]

_LAST: Final = 0x80
_QUEUE_MAX: Final = 1024  # messages; beyond that the connection itself is left unread
_ACK_EVERY: Final = WINDOW // 8
_WORKING_EVERY_S: Final = 10.0
DIGESTS_PER_MESSAGE: Final = TRANSFER_MESSAGE_BYTES // DIGEST_BYTES


class Kind(IntEnum):
    """What an object is."""

    MANIFEST = 0x01
    DELTA = 0x02
    PACK = 0x03
    DIGESTS = 0x04  # of 32 bytes each
    FILE = 0x05  # content of a pasted file
    PATHS = 0x06  # each ended by a NUL


_SIZE_MAX: Final = {
    Kind.MANIFEST: MANIFEST_MAX_BYTES,
    Kind.DELTA: MANIFEST_MAX_BYTES,
    Kind.PACK: PACK_MAX_BYTES,
    Kind.DIGESTS: TRANSFER_MESSAGE_BYTES,
    Kind.FILE: PASTE_UPLOAD_LIMIT_BYTES,
    Kind.PATHS: 64 * MIB,
}


class Object(NamedTuple):
    """A large object, put together again. Its content has not been looked at."""

    kind: Kind
    data: bytes


class Channel(Protocol):
    """A WebSocket connection, whoever made it. Fragmented messages are put together or refused before they get here."""

    async def send(self, message: str | bytes) -> None:
        """Returns once the connection has room for more. Raises ConnectionError when it is gone."""

    async def receive(self) -> str | bytes:
        """The next message. Raises ConnectionError when there will be none."""

    def close(self) -> Awaitable[None] | None:
        """Drop the connection."""


class Exchange:
    """One side of a connection; both sides are alike. Use it as an asynchronous context: it reads from enter to exit.

    Any method raises ConnectionError once the other side is gone, TimeoutError when it has said nothing for `idle` seconds, and
    BadRequest when it breaks the rules.
    """

    def __init__(self, channel: Channel, *, idle: float = TRANSFER_IDLE_S) -> None:
        self.loop = asyncio.get_running_loop()
        self._channel = channel
        self._idle = idle
        self._queue: asyncio.Queue[dict[str, Any] | bytes] = asyncio.Queue(_QUEUE_MAX)
        self._heard = asyncio.Event()  # anything at all, an acknowledgement too
        self._sent = self._acknowledged = 0
        self._received = self._taken = self._told = 0
        self._partial: dict[Kind, bytearray] = {}
        self._sending = asyncio.Lock()
        self._failed: Exception | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._say_working())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, CattyError):
            await self._tell(error)
        if closing := self._channel.close():
            await closing
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fail(self, error: Exception) -> None:
        """Make every call raise `error` from now on: something else that this connection lives from has ended."""
        self._failed = error
        self._heard.set()

    # ------------------------------------------------------------------------------------------ send

    async def send(self, kind: str, **fields: Any) -> None:
        """A JSON message of type `kind`."""
        await self._guarded(self._channel.send(json.dumps({"type": kind, **fields}, separators=(",", ":"))))

    async def send_object(self, kind: Kind, data: bytes) -> None:
        """An object; returns once all of it is on its way. Calls that overlap send one after the other."""
        view = memoryview(data)
        async with self._sending:
            for start in range(0, max(len(view), 1), TRANSFER_MESSAGE_BYTES):
                piece = view[start : start + TRANSFER_MESSAGE_BYTES]
                last = _LAST if start + len(piece) >= len(view) else 0
                await self._room(len(piece))
                self._sent += len(piece)
                await self._guarded(self._channel.send(b"".join((bytes((kind | last,)), piece))))

    async def _room(self, size: int) -> None:
        while self._sent + size - self._acknowledged > WINDOW:
            await self._hear()

    async def _hear(self) -> None:
        self._check()
        self._heard.clear()
        async with asyncio.timeout(self._idle):
            await self._heard.wait()
        self._check()

    def _check(self) -> None:
        if self._failed:
            raise self._failed

    async def _guarded(self, sending: Awaitable[None]) -> None:
        async with asyncio.timeout(self._idle):
            await sending

    async def _tell(self, error: CattyError) -> None:
        """Best effort: what went wrong here, for the other side's user."""
        with suppress(ConnectionError, TimeoutError, CattyError):
            async with asyncio.timeout(1):
                await self.send("error", **error.to_json())

    async def _say_working(self) -> None:
        with suppress(ConnectionError, TimeoutError, CattyError):
            while True:
                await asyncio.sleep(min(_WORKING_EVERY_S, self._idle / 3))
                await self.send("working")

    # ------------------------------------------------------------------------------------------ receive

    async def receive(self) -> dict[str, Any] | Object:
        """The next JSON message or whole object."""
        while True:
            item = await self._next()
            if isinstance(item, dict):
                return item
            if done := await self._take(item):
                return done

    async def expect(self, *kinds: str) -> dict[str, Any]:
        """The next message, which is JSON and one of `kinds`; raises the other side's error if it sends one instead."""
        item = await self.receive()
        if isinstance(item, Object) or item["type"] not in kinds:
            if not isinstance(item, Object) and item["type"] == "error":
                raise from_json(item)
            raise BadRequest(f"expected {' or '.join(kinds)}")
        return item

    async def expect_object(self, *kinds: Kind) -> Object:
        """The next message, which is an object of one of `kinds`; raises the other side's error if it sends one instead."""
        item = await self.receive()
        if not isinstance(item, Object) or item.kind not in kinds:
            if not isinstance(item, Object) and item["type"] == "error":
                raise from_json(item)
            raise BadRequest(f"expected {' or '.join(kind.name for kind in kinds)}")
        return item

    async def _next(self) -> dict[str, Any] | bytes:
        while self._queue.empty():
            await self._hear()
        return self._queue.get_nowait()

    async def _take(self, message: bytes) -> Object | None:
        kind, last = Kind(message[0] & ~_LAST), message[0] & _LAST
        partial = self._partial.setdefault(kind, bytearray())
        if len(partial) + len(message) - 1 > _SIZE_MAX[kind]:
            raise BadRequest(f"{kind.name} too large")
        partial += memoryview(message)[1:]
        self._taken += len(message) - 1
        if self._taken - self._told >= _ACK_EVERY:
            self._told = self._taken
            await self.send("ack", received=self._taken)
        return Object(kind, bytes(self._partial.pop(kind))) if last else None

    async def _read(self) -> None:
        try:
            while True:
                message = await self._channel.receive()
                item = self._parse(message) if isinstance(message, str) else self._count(message)
                if item is not None:
                    await self._queue.put(item)
                self._heard.set()
        except (ConnectionError, CattyError) as error:
            self.fail(error)  # raised once what came before has been given out

    def _parse(self, text: str) -> dict[str, Any] | None:
        try:
            value = json.loads(text) if len(text) <= TRANSFER_MESSAGE_BYTES else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            raise BadRequest("not a message of a transfer")
        if value["type"] == "ack":
            received = value.get("received")
            if not isinstance(received, int) or not self._acknowledged <= received <= self._sent:
                raise BadRequest("acknowledgement of what was not sent")
            self._acknowledged = received
            return None
        return None if value["type"] == "working" else value

    def _count(self, message: bytes) -> bytes:
        if (
            not message
            or len(message) - 1 > TRANSFER_MESSAGE_BYTES
            or message[0] & ~_LAST not in Kind.__members__.values()
        ):
            raise BadRequest("not a piece of an object")
        self._received += len(message) - 1
        if self._received - self._told > WINDOW:
            raise BadRequest("more sent than acknowledged")
        return message


def join_digests(digests: list[bytes]) -> bytes:
    """The content of a DIGESTS object; at most DIGESTS_PER_MESSAGE of them."""
    return b"".join(digests)


def split_digests(data: bytes) -> list[bytes]:
    """Its digests. Raises BadRequest."""
    if len(data) % DIGEST_BYTES:
        raise BadRequest("digests cut short")
    return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]
