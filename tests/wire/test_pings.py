"""Whoever pings and does not read gets no answers piled up for it: on every kind of connection that this project has."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from catty.client import link
from catty.client.config import Server
from catty.runtime import listen
from catty.server.sessions.control import open_websocket
from catty.wire.channel import Channel

PINGS = 200_000  # answers to all of them would take 25 MB
PILED_MAX = 4 << 20
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


async def ping(sock: socket.socket, count: int = PINGS, mask: bytes = b"") -> None:
    """Send pings and then a message, and do not read. `mask`: four zeros, for a client's frames."""
    bit = 0x80 if mask else 0
    loop = asyncio.get_running_loop()
    for _ in range(count // 1000):
        await loop.sock_sendall(sock, (bytes([0x89, bit | 120]) + mask + bytes(120)) * 1000)
    await loop.sock_sendall(sock, bytes([0x82, bit | 1]) + mask + b"x")


async def answer(sock: socket.socket) -> None:
    """Accept the upgrade that comes over `sock`."""
    loop = asyncio.get_running_loop()
    head = await loop.sock_recv(sock, 65536)
    key = next(line.split()[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    start = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    await loop.sock_sendall(sock, start + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")


def piled(transport: Any) -> int:
    """Bytes that wait to be sent over a picows transport."""
    return int(transport.underlying_transport.get_write_buffer_size())


async def test_the_servers_end_and_the_channel() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    channel = Channel()
    answering = asyncio.create_task(answer(theirs))
    transport = await open_websocket(ours, "/save", "token", lambda: channel, 1 << 20)
    await answering
    await ping(theirs, 1000)
    assert await channel.receive() == b"x"
    assert piled(transport) < PILED_MAX
    with pytest.raises(ConnectionError, match="pings without end"):
        await asyncio.gather(ping(theirs), channel.receive())
    transport.disconnect(graceful=False)
    theirs.close()


async def test_the_users_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)
        connecting = asyncio.create_task(link.connect(Server(f"unix:{tmp_path / 's'}", "token"), "/"))
        theirs, _ = await asyncio.get_running_loop().sock_accept(listener)
        await answer(theirs)
        client = await connecting
        await ping(theirs)
        assert await client.receive() == b"x"
        assert piled(client._transport) < PILED_MAX
        theirs.close()
        await client.close()


async def test_the_machines_end(tmp_path: Path) -> None:
    left: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def handle(connection: listen.Connection) -> None:
        assert await connection.receive() == b"x"
        left.set_result(piled(connection._transport))

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    server = await listen.serve(listener, {"/": listen.Route(handle)}, token=lambda: "t")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "s"))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        head = (
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        )
        await loop.sock_sendall(sock, head + b"Authorization: Bearer t\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n")
        await ping(sock, mask=bytes(4))
        assert await left < PILED_MAX
    server.close()
