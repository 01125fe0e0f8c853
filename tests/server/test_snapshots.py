"""The server's side of save and restore against machines that lie, stall, flood or die."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import picows
import pytest
from obstore.store import MemoryStore

from catty.errors import HeadTaken, RestoreFailed, SaveFailed, StoreFailed
from catty.server import snapshots
from catty.server.snapshots import restore, save
from catty.wire.channel import Channel
from catty.wire.sockets import UnixSocket
from catty.workspace.exchange import Exchange, Kind, join_digests
from catty.workspace.manifest import EMPTY, Manifest, dump_delta
from catty.workspace.model import Entry, digest
from catty.workspace.model import Kind as EntryKind
from catty.workspace.objects import Objects
from catty.workspace.packs import PackWriter
from catty.workspace.store import SnapshotStore

Script = Callable[[Exchange], Awaitable[object]]
Dial = Callable[[], Awaitable[socket.socket]]


@pytest.fixture
async def store() -> AsyncIterator[SnapshotStore]:
    store = SnapshotStore(Objects(MemoryStore()), "local")
    yield store
    store.close()


class Hostile:
    """A machine that plays a script on each connection; `requests` are the paths and tokens that it was asked with."""

    def __init__(self, path: str) -> None:
        self.path, self.script = path, None
        self.channels: list[Channel] = []
        self.requests: list[tuple[str, str]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def plays(self, script: Script) -> Dial:
        self.script = script  # type: ignore[assignment]
        return self.dial

    def accept(self, request: picows.WSUpgradeRequest) -> picows.WSListener:
        self.requests.append((request.path.decode(), request.headers.get("authorization", "")))
        self.channels.append(Channel())
        self._tasks.append(asyncio.create_task(self._play(self.channels[-1])))
        return self.channels[-1]

    async def _play(self, channel: Channel) -> None:
        async with Exchange(channel) as exchange:
            await self.script(exchange)  # type: ignore[misc]
            await exchange.receive()  # until the server has had enough

    async def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.path)
        return sock

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Hostile]:
    hostile = Hostile(str(tmp_path / "socket"))
    listener = UnixSocket(socket.AF_UNIX)
    listener.bind(hostile.path)
    server = await picows.ws_create_server(hostile.accept, sock=listener, max_frame_size=4 << 20, use_aiofastnet=False)
    async with server:
        yield hostile
        await hostile.end()


def pack_of(*blobs: bytes) -> bytes:
    writer = PackWriter()
    for blob in blobs:
        writer.add(digest(blob), blob)
    return writer.finish()


ROOT = Entry(b"workspace", EntryKind.DIR, 0o755)
FILE = Entry(b"workspace/f", EntryKind.FILE, size=4, blobs=(digest(b"file"),))
TREE = Manifest([ROOT, FILE])
DONE = {"complete": True, "skipped": [], "skipped_count": 0}


async def honest(exchange: Exchange) -> None:
    await exchange.expect("save")
    await exchange.send_object(Kind.PACK, pack_of(b"file"))
    await exchange.send_object(Kind.DELTA, EMPTY.delta(TREE))
    await exchange.send("done", **DONE)
    await exchange.expect("committed")


async def test_an_honest_machine_is_saved(store: SnapshotStore, machine: Hostile) -> None:
    head = await save(machine.plays(honest), "f00d", store, "s", reason="stop", generation=7)
    assert head
    assert (head.reason, head.generation, head.complete) == ("stop", 7, True)
    assert (await store.load("s"))[1] == TREE
    assert machine.requests == [("/save", "Bearer f00d")]


def says(*items: tuple[Kind, bytes] | str) -> Script:
    """After the request, these objects and messages."""

    async def script(exchange: Exchange) -> None:
        await exchange.receive()
        for item in items:
            if isinstance(item, str):
                await exchange._channel.send(item)
            else:
                await exchange.send_object(*item)

    return script


DELTA = (Kind.DELTA, EMPTY.delta(TREE))
done = json.dumps({"type": "done", **DONE})
LIES = {
    "no blobs": says(DELTA, done, DELTA, done, DELTA, done),
    "done without delta": says(done),
    "two deltas": says(DELTA, DELTA),
    "unchanged from nothing": says('{"type": "unchanged"}'),
    "base of nothing": says('{"type": "want-base"}'),
    "committed by itself": says('{"type": "committed", "number": 1}'),
    "another object": says((Kind.MANIFEST, TREE.to_bytes())),
    "no pack": says((Kind.PACK, b"nonsense")),
    "damaged pack": says((Kind.PACK, pack_of(b"file").replace(b"file", b"evil"))),
    "noise": says((Kind.DELTA, os.urandom(100))),
    "path out": says((Kind.DELTA, dump_delta((), [ROOT, Entry(b"etc/passwd", EntryKind.DIR)])), done),
    "below a symlink": says(
        (
            Kind.DELTA,
            dump_delta((), [ROOT, Entry(b"workspace/l", EntryKind.SYMLINK, target=b"/"), Entry(b"workspace/l/x", EntryKind.DIR)]),
        ),
        done,
    ),
    "no json": says("{"),
    "deep json": says("[" * 100_000),
    "an error of ours": says('{"type": "error", "error": "head-taken", "message": "\x1b[31mred\\u001b"}'),
    "too large": says((Kind.PACK, bytes(21 << 20))),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
async def test_a_machine_that_lies_gets_nothing_saved(store: SnapshotStore, machine: Hostile, lie: str) -> None:
    with pytest.raises(SaveFailed) as caught:
        await save(machine.plays(LIES[lie]), "", store, "s")
    assert caught.value.message.isprintable()
    assert await store.heads("s") == []
    assert await save(machine.plays(honest), "", store, "s")


async def test_blobs_of_another_length_are_refused(store: SnapshotStore, machine: Hostile) -> None:
    liar = Entry(b"workspace/f", EntryKind.FILE, size=5, blobs=FILE.blobs)
    script = says((Kind.PACK, pack_of(b"file")), (Kind.DELTA, dump_delta((), [ROOT, liar])), done)
    with pytest.raises(SaveFailed, match="length"):
        await save(machine.plays(script), "", store, "s")


async def test_a_machine_that_stalls_is_given_up(
    store: SnapshotStore, machine: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SAVE_LIMIT_S", 0.2)
    with pytest.raises(SaveFailed, match="too long"):
        await save(machine.plays(says()), "", store, "s")


async def test_a_machine_that_sends_without_end_is_given_up(
    store: SnapshotStore, machine: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SAVE_BYTES_MAX", 1 << 20)
    packs = [(Kind.PACK, pack_of(os.urandom(300_000))) for _ in range(5)]
    with pytest.raises(SaveFailed, match="without end"):
        await save(machine.plays(says(*packs)), "", store, "s")


async def test_a_machine_that_dies_leaves_the_last_snapshot(store: SnapshotStore, machine: Hostile) -> None:
    await save(machine.plays(honest), "", store, "s")

    async def dies(exchange: Exchange) -> None:
        await exchange.receive()
        await exchange.send_object(Kind.PACK, pack_of(b"more"))
        machine.channels[-1].close()

    with pytest.raises(SaveFailed):
        await save(machine.plays(dies), "", store, "s")
    assert (await store.load("s"))[1] == TREE


async def test_nobody_there(store: SnapshotStore, tmp_path: Path) -> None:
    async def dial() -> socket.socket:
        raise ConnectionRefusedError

    with pytest.raises(SaveFailed):
        await save(dial, "", store, "s")
    with pytest.raises(RestoreFailed):
        await restore(dial, "", store, TREE)


async def test_fragmented_messages_are_refused(store: SnapshotStore, machine: Hostile) -> None:
    async def fragments(exchange: Exchange) -> None:
        await exchange.receive()
        transport = machine.channels[-1]._transport
        assert transport
        transport.send(picows.WSMsgType.BINARY, b"\x03half", fin=False)

    with pytest.raises(SaveFailed, match="fragment"):
        await save(machine.plays(fragments), "", store, "s")


async def test_somebody_else_saved_meanwhile(store: SnapshotStore, machine: Hostile) -> None:
    async def slow(exchange: Exchange) -> None:
        await exchange.expect("save")
        await exchange.send_object(Kind.PACK, pack_of(b"file"))
        await store.commit("s", Manifest([ROOT]))
        await exchange.send_object(Kind.DELTA, EMPTY.delta(TREE))
        await exchange.send("done", **DONE)

    with pytest.raises(HeadTaken):
        await save(machine.plays(slow), "", store, "s")
    assert (await store.load("s"))[1] == Manifest([ROOT])


async def test_damaged_heads_do_not_end_saving(machine: Hostile, tmp_path: Path) -> None:
    store = SnapshotStore(Objects.in_directory(tmp_path / "store"), "local")
    for damaged in (1, 2):
        await save(machine.plays(honest), "", store, "s")
        (tmp_path / f"store/local/sessions/s/heads/00000{damaged}").write_bytes(b"damaged")
    head = await save(machine.plays(honest), "", store, "s")
    assert head
    assert head.number == 3
    store.close()


def honest_about(content: bytes) -> Script:
    """A machine whose only file has this content, and that remembers no earlier save."""

    async def script(exchange: Exchange) -> None:
        request = await exchange.expect("save")
        base = EMPTY
        if request["base"] is not None:
            await exchange.send("want-base")
            base = Manifest.from_bytes((await exchange.expect_object(Kind.MANIFEST)).data)
        await exchange.send_object(Kind.PACK, pack_of(content))
        await exchange.send_object(Kind.DELTA, base.delta(tree_of(content)))
        await exchange.send("done", **DONE)
        await exchange.expect("committed")

    return script


def tree_of(content: bytes) -> Manifest:
    file = Entry(b"workspace/f", EntryKind.FILE, size=len(content), blobs=(digest(content),))
    return Manifest([ROOT, file])


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda data: data[:20], lambda data: data[:-5], lambda data: data[:-40] + bytes(40)]
)
async def test_saving_goes_on_however_the_last_head_is_damaged(
    machine: Hostile, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store = SnapshotStore(Objects.in_directory(tmp_path / "store"), "local")
    for content in (b"one", b"two"):
        await save(machine.plays(honest_about(content)), "", store, "s")
    last = tmp_path / "store/local/sessions/s/heads/000002"
    last.write_bytes(damage(last.read_bytes()))
    assert (await store.load("s"))[1] == tree_of(b"one")
    assert 1 in [head.number for head in await store.heads("s")]
    head = await save(machine.plays(honest_about(b"three")), "", store, "s")
    assert head
    assert head.number == 3
    assert (await store.load("s"))[1] == tree_of(b"three")
    store.close()


async def test_saving_goes_on_if_no_head_is_intact(machine: Hostile, tmp_path: Path) -> None:
    store = SnapshotStore(Objects.in_directory(tmp_path / "store"), "local")
    await save(machine.plays(honest_about(b"one")), "", store, "s")
    only = tmp_path / "store/local/sessions/s/heads/000001"
    only.write_bytes(only.read_bytes()[:-1])
    await save(machine.plays(honest_about(b"two")), "", store, "s")
    assert (await store.load("s"))[1] == tree_of(b"two")
    store.close()


async def test_a_store_that_fails_is_not_the_machines_fault(
    store: SnapshotStore, machine: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._objects, "put", full)
    with pytest.raises(StoreFailed, match="No space"):
        await save(machine.plays(honest), "", store, "s")


async def test_a_machine_asks_for_no_blobs_but_its_own(store: SnapshotStore, machine: Hostile) -> None:
    await store.put_pack(pack_of(b"file", b"somebody else's"))

    async def greedy(exchange: Exchange) -> None:
        await exchange.expect("restore")
        await exchange.expect_object(Kind.MANIFEST)
        await exchange.send_object(Kind.DIGESTS, join_digests([digest(b"somebody else's")]))
        await exchange.send("need", blobs=1)

    with pytest.raises(RestoreFailed, match="of others"):
        await restore(machine.plays(greedy), "", store, TREE)


@pytest.mark.parametrize(
    "script",
    [
        says('{"type": "restored"}'),
        says((Kind.PACK, b"")),
        says('{"type": "need", "blobs": 0}', '{"type": "need"}'),
        says('{"type": "need", "blobs": 0}', (Kind.DIGESTS, b"")),
        says('{"type": "error", "error": "snapshot-not-found", "message": "no"}'),
    ],
)
async def test_a_machine_that_restores_wrongly_is_told_from_one_that_does(
    store: SnapshotStore, machine: Hostile, script: Script
) -> None:
    with pytest.raises(RestoreFailed):
        await restore(machine.plays(script), "", store, Manifest([ROOT]))
