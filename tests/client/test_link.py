"""The WebSocket to a session: whole messages, bounded, given up when it is silent; refusals become the server's errors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from catty import constants
from catty.client import link
from catty.client.config import Server
from catty.client.link import WebSocket, connect, session_path
from catty.errors import CattyError, ConnectionLost, NotLoggedIn, RemoteError, ServerUnreachable, SessionNotRunning

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Peer:
    """A server of raw bytes: `serve` gets the connection after the upgrade's head was answered by `answer`."""

    def __init__(self, path: Path) -> None:
        self.server = Server(f"unix:{path}", "token")
        self.path = path
        self.answer = b""
        self.head = b""

    async def start(self, serve: Serve) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.head = await reader.readuntil(b"\r\n\r\n")
            if self.answer:
                writer.write(self.answer)
            else:
                key = next(line for line in self.head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
                accepted = base64.b64encode(hashlib.sha1(key.split(b": ")[1] + GUID).digest())
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
                writer.write(b"Sec-WebSocket-Accept: " + accepted + b"\r\n\r\n")
            try:
                await serve(reader, writer)
            finally:
                writer.close()

        self.listener = await asyncio.start_unix_server(accept, self.path)

    async def connect(self) -> WebSocket:
        return await connect(self.server, session_path("a label", "connect"))


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    made = Peer(tmp_path / "s")
    yield made
    made.listener.close()


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    size = len(payload)
    head = bytes([opcode | (0x80 if fin else 0)])
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    return head + length + payload


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def test_the_head_is_ours(peer: Peer) -> None:
    await peer.start(silence)
    socket = await peer.connect()
    assert peer.head.startswith(b"GET /v1/sessions/a%20label/connect HTTP/1.1\r\n")
    assert b"Authorization: Bearer token\r\n" in peer.head
    assert b"Sec-WebSocket-Protocol: catty.v2\r\n" in peer.head
    await socket.close()


async def test_messages_in_pieces_are_whole(peer: Peer) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            frame(2, b"one") + frame(2, b"t", fin=False) + frame(9, b"?") + frame(0, b"w", fin=False) + frame(0, b"o")
        )
        writer.write(frame(1, b"drei") + frame(2, b"x" * 100_000) + frame(8, (1000).to_bytes(2) + b"bye"))
        await silence(reader, writer)

    await peer.start(serve)
    socket = await peer.connect()
    assert [await socket.receive() for _ in range(4)] == [b"one", b"two", "drei", b"x" * 100_000]
    with pytest.raises(ConnectionLost, match="bye"):
        await socket.receive()


@pytest.mark.parametrize("fin", [True, False])
async def test_a_message_too_long_ends_the_connection(peer: Peer, fin: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(6):
            writer.write(frame(2 if fin else 0, b"x" * (5 << 20 if fin else 1 << 20), fin=fin))
        await silence(reader, writer)

    await peer.start(serve)
    socket = await peer.connect()
    with pytest.raises(ConnectionLost):
        await socket.receive()


async def test_what_is_not_read_stops_the_sender(peer: Peer) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(64):
            writer.write(frame(2, b"x" * (1 << 20)))
            await writer.drain()
            sent += 1
        await silence(reader, writer)

    await peer.start(serve)
    socket = await peer.connect()
    while not socket._paused:
        await asyncio.sleep(0.01)
    assert sent < 10
    received = 0
    while received < 64 << 20:
        received += len(await socket.receive())
    await socket.close()


async def test_what_the_peer_does_not_read_makes_send_wait(peer: Peer) -> None:
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await silence(reader, writer)

    await peer.start(serve)
    socket = await peer.connect()

    async def send_much() -> None:
        for _ in range(64):
            await socket.send(b"x" * (1 << 20))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send_much(), 0.3)
    go_on.set()
    await asyncio.wait_for(socket.send(b"x"), 10)
    await socket.close()


async def test_a_silent_peer_is_given_up(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(constants, "PING_GIVE_UP_S", 0.2)
    await peer.start(silence)
    socket = await peer.connect()
    with pytest.raises(ConnectionLost, match="nothing heard"):
        await asyncio.wait_for(socket.receive(), 5)


async def test_a_peer_that_answers_pings_is_kept(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "PING_EVERY_S", 0.02)
    monkeypatch.setattr(constants, "PING_GIVE_UP_S", 0.1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(frame(10, b""))

    await peer.start(serve)
    socket = await peer.connect()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(socket.receive(), 0.5)
    await socket.close()


async def test_a_probe_without_answer_ends_it(peer: Peer) -> None:
    await peer.start(silence)
    socket = await peer.connect()
    socket.probe(0.1)
    with pytest.raises(ConnectionLost, match="no answer"):
        await asyncio.wait_for(socket.receive(), 5)
    with pytest.raises(ConnectionLost):
        await socket.send(b"x")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            b"409 Conflict\r\n\r\n" + b'{"error":"session-not-running","message":"session x is stopped"}',
            SessionNotRunning,
        ),
        (b"401 Unauthorized\r\nContent-Length: 0\r\n\r\n", NotLoggedIn),
        (b"502 Bad Gateway\r\nContent-Length: 2\r\n\r\nxx", RemoteError),
        (b"302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n", RemoteError),
        (b"garbage\r\n\r\n", CattyError),
    ],
)
async def test_refusals(peer: Peer, answer: bytes, error: type[CattyError]) -> None:
    peer.answer = b"HTTP/1.1 " + answer

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.drain()

    await peer.start(serve)
    with pytest.raises(error):
        await peer.connect()


async def test_nobody_there(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerUnreachable):
        await peer.connect()
    monkeypatch.setattr(link, "CONNECT_TIMEOUT_S", 0.2)
    peer.answer = b" "  # the beginning of an answer that never comes
    await peer.start(silence)
    with pytest.raises(ServerUnreachable, match="no answer in time"):
        await peer.connect()


async def test_without_a_token_nothing_is_sent_elsewhere() -> None:
    with pytest.raises(NotLoggedIn):
        await connect(Server("https://127.0.0.1:9"), "/x")
