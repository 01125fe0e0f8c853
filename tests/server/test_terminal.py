"""Terminals and programs through the whole server, with the real runtime behind it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import picows
import pytest
from sqlalchemy import update

from catty.server.db.schema import sessions as table
from catty.server.main import Server
from catty.wire import frames
from catty.wire.attach import Exec, Resume
from catty.wire.sockets import UnixSocket
from runtime.support import AttachClient, ExecClient, Wire
from server.process_engine import ProcessEngine
from server.server_process import ServerProcess
from server.support import Rest

Json = dict[str, Any]


async def connect(socket_path: Path, token: str, path: str) -> Wire:
    """A WebSocket to a server."""
    sock = UnixSocket(socket.AF_UNIX)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, str(socket_path))
    _, wire = await picows.ws_connect(
        Wire,
        f"ws://catty{path}",
        socket_factory=lambda _: sock,
        extra_headers={"Authorization": f"Bearer {token}", "Sec-WebSocket-Protocol": frames.SUBPROTOCOL},
        use_aiofastnet=False,
    )
    assert isinstance(wire, Wire)
    return wire


@contextlib.asynccontextmanager
async def attached(
    socket_path: Path, token: str, session: Json, query: str = "", **resume: Any
) -> AsyncIterator[AttachClient]:
    wire = await connect(socket_path, token, f"/v1/sessions/{session['label']}/connect{query}")
    client = AttachClient(wire, replace(Resume(os.urandom(8).hex(), 80, 24), **resume))
    await client.open()
    try:
        yield client
    finally:
        await client.close()


async def program(server: Server, session: Json, *argv: str) -> ExecClient:
    wire = await connect(server.settings.socket_path, server.token, f"/v1/sessions/{session['id']}/exec")
    wire.send(frames.pack_json(frames.FrameType.START, 0, Exec(argv).to_json()))
    return ExecClient(wire)


async def test_typing_and_seeing(server: Server, rest: Rest) -> None:
    session = await rest.running()
    async with attached(server.settings.socket_path, server.token, session) as client:
        await client.type(b"echo $((6*7))-answer\r")
        await client.until(b"42-answer")
        assert server.gateway.clients[session["id"]] == 1


async def test_a_viewer_cannot_type(server: Server, rest: Rest) -> None:
    session = await rest.running()
    path, token = server.settings.socket_path, server.token
    async with attached(path, token, session) as writer:
        wire = await connect(path, token, f"/v1/sessions/{session['id']}/connect?view=1")
        viewer = AttachClient(wire, Resume("viewer", 80, 24))
        await viewer.open()
        await writer.type(b"echo se''en\r")
        await viewer.until(b"seen")
        await viewer.type(b"echo evil\r")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(wire.closed), 1)
        await writer.type(b"echo do''ne\r")
        assert b"evil" not in await writer.until(b"done")
        await viewer.close()


async def test_much_output_arrives_whole(server: Server, rest: Rest) -> None:
    session = await rest.running()
    count = 20 << 20
    running = await program(server, session, "sh", "-c", f"head -c {count} /dev/zero | tr '\\0' x")
    await running.feed(b"", end=True)
    code, output, _ = await running.wait()
    running.wire.cut()
    assert code == 0
    assert hashlib.sha256(output).digest() == hashlib.sha256(b"x" * count).digest()


async def test_secrets_reach_programs_early_and_late(server: Server, rest: Rest) -> None:
    session = await rest.running(secrets={"EARLY": "one"})
    await rest("POST", f"/v1/sessions/{session['id']}/secrets", {"secrets": {"LATE": "two"}})
    running = await program(server, session, "sh", "-c", "echo $EARLY-$LATE")
    await running.feed(b"", end=True)
    assert await running.wait() == (0, b"one-two\n", b"")
    running.wire.cut()


async def test_an_exec_is_activity(server: Server, rest: Rest) -> None:
    session = await rest.running()
    before = (await rest("GET", f"/v1/sessions/{session['id']}"))["last_activity_at"]
    await asyncio.sleep(0.3)
    running = await program(server, session, "true")
    await running.feed(b"", end=True)
    await running.wait()
    running.wire.cut()
    async with asyncio.timeout(10):
        while (await rest("GET", f"/v1/sessions/{session['id']}"))["last_activity_at"] <= before:
            await asyncio.sleep(0.05)


async def test_the_end_is_announced_and_closes_the_terminal(server: Server, rest: Rest) -> None:
    session = await rest.running()
    async with attached(server.settings.socket_path, server.token, session) as client:
        await client.until(lambda: bool(client.output or client.snapshots))
        await server.database.execute(update(table).values(ttl_sec=4))
        await client.until(lambda: bool(client.notices))
        assert (client.notices[0]["code"], client.notices[0]["level"]) == ("ttl", "warning")
        await asyncio.wait_for(asyncio.shield(client.wire.closed), 20)
        stopped = await rest.until(session["id"], lambda now: now["state"] == "stopped")
        assert stopped["reason"] == "ttl"
    with pytest.raises(picows.WSError):
        await connect(server.settings.socket_path, server.token, f"/v1/sessions/{session['id']}/connect")


async def test_stop_closes_terminals(server: Server, rest: Rest) -> None:
    session = await rest.running()
    async with attached(server.settings.socket_path, server.token, session) as client:
        await rest("POST", f"/v1/sessions/{session['id']}/stop")
        await asyncio.wait_for(asyncio.shield(client.wire.closed), 5)


async def test_a_killed_server_loses_no_byte(short: Path, engine: ProcessEngine) -> None:
    """The machine's log is exact: what was printed while there was no server comes after, and nothing twice."""
    process = ServerProcess(short)
    await process.start()
    try:
        async with process.client() as client:
            session = await client.running()
            token = client.token
        path = process.data / "api.sock"
        name = os.urandom(8).hex()
        async with attached(path, token, session, client=name) as first:
            await first.type(b"for i in $(seq 40); do echo line-$i; sleep 0.05; done; echo al''l\r")
            await first.until(b"line-5\r\n")
            await process.end(signal.SIGKILL)
            await first.wire.closed
        await process.start()
        seen = {"epoch": first.resumed.epoch, "output": first.position} if first.resumed else {}
        async with attached(path, token, session, client=name, input=first.sent, **seen) as second:
            assert second.resumed is not None
            assert second.resumed.exact
            assert second.resumed.input == first.sent
            whole = bytes(first.output) + await second.until(b"all\r\n")
        assert [int(number) for number in re.findall(rb"line-(\d+)\r\n", whole)] == list(range(1, 41))
    finally:
        await process.end(signal.SIGKILL)
