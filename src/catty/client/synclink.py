"""The remote side of sync-back over `/sync` (docs/snapshots.md, "Sync"): listing, live changes, blobs, pasted files.

All that arrives is hostile: manifests and packs are checked by their readers, a delta's paths here, and nothing is kept that was not
asked for.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from catty.client.gitrules import DirectoryRules
from catty.constants import PASTE_UPLOAD_LIMIT_BYTES
from catty.errors import BadRequest, CattyError, ConnectionLost, HostileArchive, UsageError, from_json
from catty.workspace import packs
from catty.workspace.exchange import DIGESTS_PER_MESSAGE, Exchange, Object, join_digests
from catty.workspace.exchange import Kind as ObjectKind
from catty.workspace.manifest import ENTRIES_MAX, Manifest, parse_delta
from catty.workspace.model import WORKSPACE, Entry, Kind

__all__ = ["Link", "Socket", "put_file"]

_VERSION: Final = 1
_INSIDE: Final = WORKSPACE + b"/"
_TOP: Final = Entry(WORKSPACE, Kind.DIR)
_CLOSE_S: Final = 1.0
_PATHS_BYTES: Final = 1 << 20  # of one PATHS object


class Socket(Protocol):
    """A WebSocket as `client/link.py` makes it: errors are ConnectionLost."""

    async def send(self, message: bytes | str) -> None: ...
    async def receive(self) -> bytes | str: ...
    async def close(self) -> None: ...


class _Channel:
    """The socket in the words of `workspace/exchange.py`."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def send(self, message: str | bytes) -> None:
        try:
            await self._socket.send(message)
        except ConnectionLost as error:
            raise ConnectionError(error.message) from None

    async def receive(self) -> str | bytes:
        try:
            return await self._socket.receive()
        except ConnectionLost as error:
            raise ConnectionError(error.message) from None

    def close(self) -> None:
        """The socket's owner closes it."""


class Link:
    """One connection, as an asynchronous context. `entries` is the remote side now, by paths relative to it."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._exchange = Exchange(_Channel(socket))
        self.entries: dict[bytes, Entry] = {}
        self._news: set[bytes] = set()
        self._arrived = asyncio.Event()
        self._fetching = asyncio.Lock()
        self._wanted: set[bytes] = set()
        self._fetched: dict[bytes, bytes] = {}
        self._fetch_done: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._exchange.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._exchange.__aexit__(kind, error, trace)
        await _close(self._socket)

    async def open(self, rules: DirectoryRules) -> None:
        """Get the listing; from then on changes are told. Raises ConnectionError, TimeoutError, CattyError, as all methods do."""
        for paths in _portions(rules.tracked):
            await self._exchange.send_object(ObjectKind.PATHS, paths)
        sources = [[_text(source.base), _text(source.text)] for source in rules.sources]
        told = {"sources": sources, "prefix": _text(rules.prefix), "ignore_case": rules.ignore_case}
        await self._exchange.send("hello", version=_VERSION, rules=told, known="")
        await self._exchange.expect("listing")
        item = await self._exchange.expect_object(ObjectKind.MANIFEST)
        manifest = await asyncio.to_thread(Manifest.from_bytes, item.data)
        self.entries = {path[len(_INSIDE) :]: e for path, e in manifest.entries.items() if path.startswith(_INSIDE)}
        self._reader = asyncio.create_task(self._read())

    async def changes(self, timeout: float | None) -> set[bytes]:
        """Paths that changed since the last call; waits for one, at most `timeout` seconds (then there may be none)."""
        self._check()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        self._check()
        self._arrived.clear()
        news, self._news = self._news, set()
        return news

    async def fetch(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those of these blobs that are still there. They are in memory all at once: ask for few."""
        async with self._fetching:
            self._check()
            self._wanted, self._fetched = set(digests), {}
            names = list(self._wanted)
            for start in range(0, len(names), DIGESTS_PER_MESSAGE):
                self._fetch_done = asyncio.get_running_loop().create_future()
                digests_now = join_digests(names[start : start + DIGESTS_PER_MESSAGE])
                await self._exchange.send_object(ObjectKind.DIGESTS, digests_now)
                await self._fetch_done
            fetched, self._fetched, self._wanted = self._fetched, {}, set()
            return fetched

    # ------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error:
            raise self._error

    async def _read(self) -> None:
        try:
            while True:
                item = await self._exchange.receive()
                if isinstance(item, Object):
                    await self._on_object(item)
                else:
                    self._on_message(item)
        except (ConnectionError, TimeoutError, CattyError) as error:
            self._error = error
            self._arrived.set()
            if self._fetch_done and not self._fetch_done.done():
                self._fetch_done.set_exception(error)

    async def _on_object(self, item: Object) -> None:
        if item.kind is ObjectKind.DELTA:
            for change in await asyncio.to_thread(lambda: list(parse_delta(item.data))):
                self._change(change)
            self._arrived.set()
        elif item.kind is ObjectKind.PACK and self._fetch_done and not self._fetch_done.done():
            wanted = self._wanted - self._fetched.keys()
            unpacked = await asyncio.to_thread(lambda: {n: bytes(d) for n, d in packs.read(item.data) if n in wanted})
            self._fetched |= unpacked
        else:
            raise BadRequest(f"unexpected {item.kind.name}")

    def _change(self, change: Entry | bytes) -> None:
        full = change.path if isinstance(change, Entry) else change
        if not full.startswith(_INSIDE):
            return
        path = full[len(_INSIDE) :]
        if isinstance(change, Entry):
            Manifest((_TOP, replace(change, path=_INSIDE + b"x")))  # raises HostileArchive on impossible fields
            self.entries[path] = change
            if len(self.entries) > ENTRIES_MAX:
                raise HostileArchive(what=f"more than {ENTRIES_MAX} paths")
        else:
            self.entries.pop(path, None)
        self._news.add(path)

    def _on_message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "blobs":
                if self._fetch_done and not self._fetch_done.done():
                    self._fetch_done.set_result(None)
            case "error":
                raise from_json(message)


async def put_file(connect: Callable[[], Awaitable[Socket]], path: Path) -> str:
    """Put a file of the user's into the machine, over a connection of its own; returns its path there.

    Raises UsageError if it cannot be read or is too large, and what the machine and `connect` raise.
    """
    try:
        data = await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}", hint="Look at its permissions.") from None
    if len(data) > PASTE_UPLOAD_LIMIT_BYTES:
        limit = PASTE_UPLOAD_LIMIT_BYTES >> 20
        raise UsageError(f"'{path.name}' is larger than {limit} MiB", hint="Bring it there by other means.")
    socket = await connect()
    try:
        async with Exchange(_Channel(socket)) as exchange:
            await exchange.send("put", id=1, name=path.name)
            await exchange.send_object(ObjectKind.FILE, data)
            answer = await exchange.expect("put")
    except (ConnectionError, TimeoutError) as error:
        raise ConnectionLost(server="the machine", reason=str(error) or "no answer in time") from None
    finally:
        await _close(socket)
    if not isinstance(answer.get("path"), str):
        raise from_json(answer.get("error"))
    if not answer["path"].isprintable():  # it is going to be typed
        raise BadRequest("a path that cannot be typed")
    return str(answer["path"])


async def _close(socket: Socket) -> None:
    """Close it, and wait until it is: what the loop leaves open when it ends is nobody's."""
    await socket.close()
    with suppress(ConnectionLost, TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            while True:
                await socket.receive()


def _portions(paths: Iterable[bytes]) -> Iterable[bytes]:
    """PATHS objects: each path ended by a NUL."""
    portion = bytearray()
    for path in paths:
        portion += path + b"\0"
        if len(portion) >= _PATHS_BYTES:
            yield bytes(portion)
            portion.clear()
    if portion:
        yield bytes(portion)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
