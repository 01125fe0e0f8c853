"""The gateway and the front before it, with a machine that is a bare socket: what each side sees, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from catty.errors import EndpointRefused
from catty.server.access import Door
from catty.server.db.access import AccessStore
from catty.server.db.engine import Database
from catty.server.db.migrate import migrate
from catty.server.db.sessions import Lease, Session, SessionStore
from catty.server.front import Front, Guests
from catty.server.gateway import BUFFER_BYTES, Gateway
from catty.server.sessions.changes import Changes
from catty.server.sessions.machines import Machines
from catty.server.sessions.request import parse_new_session
from catty.server.sessions.states import Event
from catty.server.sessions.timing import Timing
from server.certificate import contexts

ACCEPT = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x=\r\n"
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(65536):
        writer.write(part)
        await writer.drain()


@dataclass
class World:
    """A gateway on a loopback port, one running session, and its machine."""

    database: Database
    sessions: SessionStore
    access: AccessStore
    session: Session
    lease: Lease
    gateway: Gateway
    port: int
    active: list[str]
    answer: bytes = ACCEPT + b"Sec-WebSocket-Protocol: catty.v2\r\n\r\n"
    behave: Behaviour = echo
    heads: list[bytes] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)
    refusal: Exception | None = None
    tls: ssl.SSLContext | None = None

    async def open(
        self, path: str = "connect", token: str | None = "good", rest: bytes = b"", **headers: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """A connection that asked for an upgrade, and the head of the answer."""
        lines: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "a2V5",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "catty.v2",
            "Authorization": f"Bearer {token}" if token is not None else None,
        }
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        if not path.startswith("/"):
            path = f"/v1/sessions/{self.session.label}/{path}"
        head = f"GET {path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
        writer.write(head.encode() + b"\r\n" + rest)
        return reader, writer, await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)

    async def status(self, *arguments: Any, **headers: Any) -> int:
        """The status of an answer."""
        _, writer, head = await self.open(*arguments, **headers)
        writer.close()
        return int(head.split()[1])


@pytest.fixture(params=["plain", "tls"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    server_tls, client_tls = contexts(tmp_path) if request.param == "tls" else (None, None)
    engine = Database(f"sqlite+aiosqlite:///{tmp_path}/catty.db")
    await migrate(engine)
    access, sessions = AccessStore(engine), SessionStore(engine, "server", Changes())
    owner = await access.user("local")
    await access.add_token(owner, "good")
    await access.add_token(owner, "expired", lifetime=-1)
    await access.add_token(await access.user("mallory"), "mallorys")
    session, _ = await sessions.create(owner, parse_new_session({}))
    lease = Lease(session.id, session.lease_generation)
    session = await sessions.happen(lease, session, Event.READY)
    tasks: set[asyncio.Task[None]] = set()

    async def machine(sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                world.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(world.answer)
                await world.behave(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    class SocketMachines(Machines):
        async def dial(self, machine_: str, listener: str, *, wait: float = 0.0) -> socket.socket:
            world.dialled.append(listener)
            if world.refusal is not None:
                raise world.refusal
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            task = asyncio.create_task(machine(theirs))
            tasks.add(task)
            return ours

    def no_engine() -> Any:
        raise AssertionError

    machines = SocketMachines(no_engine, b"k" * 32, Timing())
    active: list[str] = []
    async with Gateway(access, sessions, machines, active.append) as gateway:
        server = await asyncio.get_running_loop().create_server(
            lambda: Front(Door("127.0.0.1"), asyncio.Protocol, gateway.serve, Guests()), "127.0.0.1", 0, ssl=server_tls
        )
        port = server.sockets[0].getsockname()[1]
        world = World(engine, sessions, access, session, lease, gateway, port, active, tls=client_tls)
        yield world
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await engine.close()


async def test_bytes_go_both_ways_untouched(world: World) -> None:
    blob = os.urandom(300_000)
    reader, writer, head = await world.open(rest=b"early")
    assert head.startswith(b"HTTP/1.1 101 ")
    writer.write(blob)
    assert await reader.readexactly(5 + len(blob)) == b"early" + blob
    writer.close()


async def test_what_the_machine_says_with_its_head_arrives(world: World) -> None:
    world.answer += b"first words"
    reader, writer, _ = await world.open()
    assert await reader.readexactly(11) == b"first words"
    writer.close()


async def test_the_machine_gets_a_clean_head(world: World) -> None:
    _, writer, _ = await world.open(
        "connect?view=1&x=y",
        X_Catty_Role="writer",
        Cookie="a=b",
        Sec_WebSocket_Extensions="permessage-deflate",
        X_Evil="1",
    )
    writer.close()
    lines = world.heads[0].decode().splitlines()
    assert lines[0] == "GET /attach HTTP/1.1"
    assert "X-Catty-Role: viewer" in lines
    machine_token = Machines(lambda: None, b"k" * 32, Timing()).token(world.session.machine_id)  # type: ignore[arg-type]
    assert f"Authorization: Bearer {machine_token}" in lines
    text = world.heads[0].lower()
    assert b"good" not in text.replace(machine_token.encode(), b"")
    for foreign in (b"evil", b"cookie", b"extensions", b"4815", b"x=y"):
        assert foreign not in text


async def test_the_client_gets_a_clean_head(world: World) -> None:
    world.answer = ACCEPT + b"Sec-WebSocket-Protocol: evil\r\nSet-Cookie: a=b\r\nSec-WebSocket-Extensions: x\r\n\r\n"
    _, writer, head = await world.open()
    writer.close()
    assert b"Sec-WebSocket-Accept: x=" in head
    assert b"evil" not in head
    assert b"Cookie" not in head
    assert b"Extensions" not in head


@pytest.mark.parametrize(
    ("path", "listener", "target"), [("exec", "terminal", "/exec"), ("sync", "workspace", "/sync")]
)
async def test_paths(world: World, path: str, listener: str, target: str) -> None:
    assert await world.status(path) == 101
    assert world.dialled == [listener]
    assert world.heads[0].startswith(f"GET {target} HTTP/1.1\r\n".encode())
    assert b"X-Catty-Role: writer" in world.heads[0]


@pytest.mark.parametrize(
    ("status", "arguments", "headers"),
    [
        (401, {"token": None}, {}),
        (401, {"token": ""}, {}),
        (401, {"token": "wrong"}, {}),
        (401, {"token": "expired"}, {}),
        (401, {"token": None}, {"Authorization": "Basic good"}),
        (404, {"token": "mallorys"}, {}),
        (404, {"path": "/v1/sessions/no-such-0000/connect"}, {}),
        (404, {"path": "save"}, {}),
        (404, {"path": "/elsewhere"}, {}),
        (403, {}, {"Host": "evil.example"}),
        (403, {}, {"Host": None}),
        (403, {}, {"Origin": "null"}),
        (403, {}, {"Origin": "http://evil.example"}),
        (400, {}, {"Sec_WebSocket_Key": None}),
        (400, {}, {"Upgrade": "h2c"}),
    ],
)
@pytest.mark.parametrize("target", ["connect", "exec", "sync"])
async def test_refused_before_the_machine_hears_of_it(
    world: World, target: str, status: int, arguments: dict[str, Any], headers: dict[str, Any]
) -> None:
    assert await world.status(**{"path": target} | arguments, **headers) == status
    assert world.dialled == []


@pytest.mark.parametrize("protocol", [None, "", "something-else"])
async def test_a_client_of_before_is_told_so(world: World, protocol: str | None) -> None:
    assert await world.status("connect", Sec_WebSocket_Protocol=protocol) == 426
    assert world.dialled == []


async def test_a_session_that_does_not_run(world: World) -> None:
    await world.sessions.happen(world.lease, world.session, Event.STOP)
    assert await world.status() == 409
    assert world.dialled == []


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 401 Unauthorized\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<script>",
        b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\n\r\n",
        b"garbage\r\n\r\n",
        b"x" * 40_000,
        b"",
    ],
)
async def test_a_machine_that_does_not_upgrade(world: World, answer: bytes) -> None:
    world.answer, world.behave = answer, hang_up
    reader, writer, head = await world.open()
    assert head.startswith(b"HTTP/1.1 503 ")
    body = await reader.read()
    writer.close()
    assert b"machine-unreachable" in body
    assert b"evil" not in body
    assert b"script" not in body


async def test_an_endpoint_that_was_replaced(world: World) -> None:
    world.refusal = EndpointRefused(reason="a symlink")
    assert await world.status() == 502


@pytest.mark.parametrize(("path", "times"), [("exec", 2), ("connect", 0), ("sync", 0)])
async def test_an_exec_is_activity_at_both_ends(world: World, path: str, times: int) -> None:
    world.behave = hang_up
    reader, writer, _ = await world.open(path)
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
    while world.gateway.clients[world.session.id]:
        await asyncio.sleep(0)
    assert world.active == [world.session.id] * times


async def test_either_end_closes_the_other(world: World) -> None:
    ended = asyncio.Event()

    async def until_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    world.behave = until_eof
    _, writer, _ = await world.open()
    assert world.gateway.clients[world.session.id] == 1
    writer.close()
    await asyncio.wait_for(ended.wait(), 5)

    async def say_and_leave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")

    world.behave = say_and_leave
    reader, writer, _ = await world.open()
    assert await asyncio.wait_for(reader.read(), 5) == b"bye"
    writer.close()


async def test_stopping_closes_at_once(world: World) -> None:
    reader, writer, _ = await world.open()
    await world.sessions.happen(world.lease, world.session, Event.STOP)
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()


async def test_revoking_the_token_closes(world: World) -> None:
    reader, writer, _ = await world.open()
    await world.access.revoke(world.session.owner)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("towards", ["client", "machine"])
async def test_who_does_not_read_makes_the_other_wait(world: World, towards: str) -> None:
    """A sender gets no further than the buffers of sockets and gateway allow."""
    sent = 0
    stuck = asyncio.Event()

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=0)
        while True:
            writer.write(bytes(65536))
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                stuck.set()
                return
            sent += 65536

    async def machine(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if towards == "client":
            await flood(writer)
        await asyncio.sleep(30)

    world.behave = machine
    _, writer, _ = await world.open()
    client = writer.transport
    assert isinstance(client, asyncio.Transport)
    client.pause_reading()
    task = asyncio.create_task(flood(writer)) if towards == "machine" else None
    await asyncio.wait_for(stuck.wait(), 20)
    buffered = [end.get_write_buffer_size() for splice in world.gateway._live for end in splice._transports]
    assert max(buffered) <= 2 * BUFFER_BYTES
    assert sent < 16 << 20
    if task is not None:
        await task
    writer.close()


# -------------------------------------------------------------------------------------------- the front


async def raw(world: World, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=world.tls)
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 15)
    writer.close()
    return answer


async def test_a_head_without_end(world: World) -> None:
    assert (await raw(world, b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * 20_000)).startswith(b"HTTP/1.1 413 ")


async def test_slow_loris(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catty.server.front.HEAD_S", 0.3)
    assert await raw(world, b"GET / HTTP/1.1\r\nHo") == b""
    assert await raw(world) == b""


def upgrade(world: World) -> bytes:
    head = f"GET /v1/sessions/{world.session.id}/exec HTTP/1.1\r\nHost: localhost\r\nUPGRADE: websocket\r\n"
    return (head + "Connection: upgrade\r\nSec-WebSocket-Key: k\r\nAuthorization: Bearer good\r\n\r\n").encode()


async def hang_up(*_: object) -> None:
    """A machine that says its head and no more."""


async def test_a_head_in_pieces(world: World) -> None:
    world.behave = hang_up
    answer = await raw(world, *(bytes([byte]) for byte in upgrade(world)))
    assert answer.startswith(b"HTTP/1.1 101 ")


async def test_a_client_that_leaves_during_the_handshake(world: World) -> None:
    waiting, over = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        waiting.set()
        await reader.read()
        over.set()

    world.answer, world.behave = b"", silent
    _, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=world.tls)
    writer.write(upgrade(world))
    await asyncio.wait_for(waiting.wait(), 5)
    writer.transport.abort()
    await asyncio.wait_for(over.wait(), 5)
    assert world.gateway.clients[world.session.id] == 0
