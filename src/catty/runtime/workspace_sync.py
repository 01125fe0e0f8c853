"""`/sync`: a client sees `/workspace` and every change in it as it happens (docs/snapshots.md, "Sync")."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from catty.constants import PASTE_UPLOAD_LIMIT_BYTES
from catty.errors import BadRequest, CattyError, MachineError
from catty.runtime.workspace_put import put_file
from catty.runtime.workspace_trees import Trees
from catty.runtime.workspace_view import GITIGNORE, ClientRules, View
from catty.workspace.exchange import Exchange, Kind, Object, split_digests
from catty.workspace.ignore import Source
from catty.workspace.model import WORKSPACE

__all__ = ["SYNC_VERSION", "serve_sync"]

SYNC_VERSION: Final = 1
_BATCH_S: Final = 0.03  # after a change was told, the next ones are gathered for this long
_OPEN_S: Final = 0.25  # a file that somebody keeps open and writes to is told this often
_LIMITED_S: Final = 5.0  # a full comparison this often where the kernel gives no more watches
_COMPARE_S: Final = 600.0  # and this often in any case

_T = TypeVar("_T")


async def serve_sync(trees: Trees, exchange: Exchange) -> None:
    """Serve one client until it goes. Raises ConnectionError then."""
    session = _Session(trees, exchange)
    try:
        while True:
            await session.handle(await exchange.receive())
    finally:
        await session.close()


class _Session:
    def __init__(self, trees: Trees, exchange: Exchange) -> None:
        self._trees, self._exchange = trees, exchange
        self._view: View | None = None
        self._looking = asyncio.Lock()  # the view is used by one thread at a time
        self._pusher: asyncio.Task[None] | None = None
        self._put: dict[str, Any] | None = None  # announced; its content comes next
        self._tracked: list[bytes] = []

    async def close(self) -> None:
        """Release everything, even if cancelled meanwhile."""
        try:
            if self._pusher:
                self._pusher.cancel()
                await asyncio.gather(self._pusher, return_exceptions=True)
        finally:
            if self._view:
                self._view.close()

    async def handle(self, item: dict[str, Any] | Object) -> None:
        """One message of the client."""
        if isinstance(item, Object):
            await self._object(item)
        elif item["type"] == "hello" and self._view is None:
            await self._hello(item)
        elif item["type"] == "put" and self._put is None:
            self._put = item
        else:
            await self._exchange.send("unsupported", request=item["type"])

    async def _object(self, item: Object) -> None:
        if item.kind is Kind.PATHS and self._view is None:
            self._tracked += [path for path in item.data.split(b"\0") if path]
        elif item.kind is Kind.DIGESTS and self._view:
            await self._send_blobs(self._view, split_digests(item.data))
        elif item.kind is Kind.FILE and self._put:
            await self._put_file(self._put, item.data)
            self._put = None
        else:
            raise BadRequest(f"unexpected {item.kind.name}")

    async def _hello(self, hello: dict[str, Any]) -> None:
        if hello.get("version") != SYNC_VERSION:
            raise BadRequest(f"this machine speaks version {SYNC_VERSION} of sync")
        rules = hello.get("rules", {})
        try:
            client = ClientRules(
                tuple(Source(_bytes(base), _bytes(text)) for base, text in rules.get("sources", ())),
                tuple(self._tracked),
                _bytes(rules.get("prefix", "")),
                bool(rules.get("ignore_case", False)),
            )
            known = bytes.fromhex(hello.get("known") or "")
        except (AttributeError, TypeError, ValueError, binascii.Error):
            raise BadRequest("not a hello") from None
        if client.prefix and not client.prefix.endswith(b"/"):
            raise BadRequest("prefix without its slash")
        async with self._looking:
            root = self._trees.open(WORKSPACE)
            view = self._view = View(root, self._trees.cache, client)
            manifest = await _finished(view.listing)
            digest = await _finished(lambda: manifest.digest)
        await self._exchange.send("listing", digest=digest.hex(), sent=digest != known, skipped=view.skipped)
        if digest != known:
            await self._exchange.send_object(Kind.MANIFEST, await _finished(manifest.to_bytes))
        self._pusher = asyncio.create_task(self._push(view))

    async def _send_blobs(self, view: View, digests: list[bytes]) -> None:
        content = view.blobs(digests)
        while True:
            async with self._looking:
                item = await _finished(lambda: next(content))
            if isinstance(item, list):
                await self._exchange.send("blobs", missing=[name.hex() for name in item])
                return
            await self._exchange.send_object(Kind.PACK, item)

    async def _put_file(self, request: dict[str, Any], data: bytes) -> None:
        number, name = request.get("id"), request.get("name")
        try:
            if not isinstance(name, str) or len(data) > PASTE_UPLOAD_LIMIT_BYTES:
                raise BadRequest("not a file to put")
            path = await _finished(lambda: put_file(self._trees, name, data))
        except CattyError as error:
            await self._exchange.send("put", id=number, error=error.to_json())
        else:
            await self._exchange.send("put", id=number, path=path)

    async def _push(self, view: View) -> None:
        """Tell of changes: the first at once, those that follow in batches."""
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        open_since: dict[bytes, float] = {}
        compared = time.monotonic()
        try:
            while True:
                every = _LIMITED_S if view.watcher.limited else _COMPARE_S
                due = compared + every
                if open_since:
                    due = min(due, min(open_since.values()) + _OPEN_S)
                loop.add_reader(view.watcher.fileno(), readable.set)
                try:
                    async with asyncio.timeout(max(0.0, due - time.monotonic())):
                        await readable.wait()
                except TimeoutError:
                    pass
                finally:
                    loop.remove_reader(view.watcher.fileno())
                readable.clear()
                async with self._looking:
                    delta, compared = await _finished(lambda: _news(view, open_since, compared, every))  # noqa: B023
                if delta:
                    await self._exchange.send_object(Kind.DELTA, delta)
                await asyncio.sleep(_BATCH_S)
        except (ConnectionError, TimeoutError):
            return  # whoever receives learns of it too
        except (OSError, CattyError) as error:
            self._exchange.fail(MachineError(f"the machine cannot watch its files: {error}"))


def _news(view: View, open_since: dict[bytes, float], compared: float, every: float) -> tuple[bytes | None, float]:
    """(delta or None, when everything was compared last). `open_since`: files being written to, and since when; kept up to date."""
    changes, now = view.watcher.read(), time.monotonic()
    if changes.everything or now - compared >= every or _speaks_of_rules((*changes.done, *changes.open)):
        open_since.clear()
        return view.compare(), time.monotonic()
    for path in changes.done:
        open_since.pop(path, None)
    for path in changes.open:
        open_since.setdefault(path, now)
    waited = [path for path, since in open_since.items() if now - since >= _OPEN_S]
    for path in waited:
        del open_since[path]
    return view.update((*changes.done, *waited)), compared


def _speaks_of_rules(paths: Iterable[bytes]) -> bool:
    return any(path.rpartition(b"/")[2] == GITIGNORE for path in paths)


def _bytes(text: Any) -> bytes:
    """Paths and rules travel as base64: JSON knows no bytes."""
    return base64.b64decode(text, validate=True)


async def _finished(work: Callable[[], _T]) -> _T:
    """`work()` in a thread, whose end is awaited even if the caller is cancelled: it uses descriptors that are closed then."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
