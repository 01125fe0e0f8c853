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
    number = max(await store.numbers(session), default=0) + 1  # a damaged head keeps its number
    base_head = await store.latest(session)
    with _blaming_machine(SaveFailed):
        async with _exchange(dial, token, "/save", SAVE_LIMIT_S) as exchange:
            paths = {} if conversation is None else {"conversation": list(conversation)}
            await exchange.send("save", base=base_head.digest if base_head else None, **paths)
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
