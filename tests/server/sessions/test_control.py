"""Control and logs of machines that say what they like."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import json
import logging
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import picows
import pytest

from catty.constants import RING_BYTES
from catty.errors import ClaimRefused, MachineError, MachineUnreachable
from catty.server import log
from catty.server.sessions.control import Control, printable
from catty.server.sessions.machines import Machines
from catty.server.sessions.timing import Timing
from catty.wire.control import MESSAGE_MAX_BYTES
from catty.wire.frames import FrameType, pack
from catty.wire.sockets import UnixSocket

Answer = Callable[[picows.WSTransport, dict[str, Any]], None]


class Machine(picows.WSListener):
    """Answers each control request by `answer`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        if transport.request.path == b"/logs":
            self._answer(transport, {})

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is picows.WSMsgType.TEXT:
            self._answer(transport, json.loads(frame.get_payload_as_bytes()))


@contextlib.asynccontextmanager
async def machine(answer: Answer) -> AsyncIterator[Callable[[], socket.socket]]:
    """Gives a function that connects to such a machine."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "socket")
        listener = UnixSocket(socket.AF_UNIX)
        listener.bind(path)

        def connect() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            sock.setblocking(False)
            return sock

        server = await picows.ws_create_server(
            lambda _: Machine(answer), sock=listener, use_aiofastnet=False, max_frame_size=1 << 20
        )
        async with server:
            yield connect
        await asyncio.sleep(0.01)


def say(text: str | bytes, kind: picows.WSMsgType = picows.WSMsgType.TEXT, **flags: bool) -> Answer:
    def answer(transport: picows.WSTransport, _: dict[str, Any]) -> None:
        transport.send(kind, text.encode() if isinstance(text, str) else text, **flags)

    return answer


async def test_request_and_reply() -> None:
    def answer(transport: picows.WSTransport, message: dict[str, Any]) -> None:
        transport.send(picows.WSMsgType.TEXT, json.dumps({"event": "agent-started", "pid": 1}).encode())
        transport.send(picows.WSMsgType.TEXT, json.dumps({"id": 999, "ok": True, "other": 1}).encode())
        transport.send(picows.WSMsgType.TEXT, json.dumps({"id": message["id"], "ok": True, "got": message}).encode())

    async with machine(answer) as connect:
        control = await Control.open(connect(), "token")
        replies = await asyncio.gather(*(control.request("status", timeout=5, n=n) for n in range(10)))
        assert [reply["got"]["n"] for reply in replies] == list(range(10))
        control.close()


@pytest.mark.parametrize(
    "answer",
    [
        say("not json"),
        say("[]"),
        say("[" * 100_000),
        say(b"\xff\xfe"),
        say("{}", picows.WSMsgType.BINARY),
        say("{", fin=False),
        say(b"x" * (MESSAGE_MAX_BYTES + 1)),
        lambda transport, _: transport.disconnect(),
    ],
)
async def test_what_is_no_reply_ends_the_connection(answer: Answer) -> None:
    async with machine(answer) as connect:
        control = await Control.open(connect(), "token")
        with pytest.raises(MachineUnreachable):
            await control.request("status", timeout=5)
        await asyncio.wait_for(control.closed, 5)
        with pytest.raises(MachineUnreachable):
            await control.request("status", timeout=5)


async def test_a_machine_cannot_fill_the_log(tmp_path: Path) -> None:
    gc.collect()  # of what other tests left
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log.set_up(tmp_path / "log")
        async with machine(say(b"\0" * 70_000)) as connect:  # longer than any reply
            control = await Control.open(connect(), "token")
            with pytest.raises(MachineUnreachable):
                await control.request("status", timeout=5)
        del control
        gc.collect()
    finally:
        for handler in root.handlers:
            handler.close()
        logging.basicConfig(level=level, handlers=handlers, force=True)
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("answer", [lambda *_: None, say('{"id": true}'), say('{"id": "1"}'), say('{"id": 1.5}')])
async def test_silence_is_not_waited_for(answer: Answer) -> None:
    async with machine(answer) as connect:
        control = await Control.open(connect(), "token")
        with pytest.raises(MachineUnreachable, match="no reply"):
            await control.request("status", timeout=0.2)
        control.close()


@pytest.mark.parametrize(
    "refusal",
    [
        {"ok": False, "error": "no", "message": "evil \x1b]52;c;AAAA\x07 words" + "x" * 10_000},
        {"ok": "yes"},
        {"message": {"a": ["\x1b"]}},
        {},
    ],
)
async def test_refusals_are_errors_without_escapes(refusal: dict[str, Any]) -> None:
    def answer(transport: picows.WSTransport, message: dict[str, Any]) -> None:
        transport.send(picows.WSMsgType.TEXT, json.dumps({"id": message["id"], **refusal}).encode())

    async with machine(answer) as connect:
        control = await Control.open(connect(), "token")
        for op, error in (("status", MachineError), ("claim", ClaimRefused)):
            with pytest.raises(error) as caught:
                await control.request(op, timeout=5)
            assert "\x1b" not in caught.value.message
            assert len(caught.value.message) < 400
        control.close()


def test_printable() -> None:
    assert printable("a\x1b[2Jb\n") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}"


async def test_a_machine_that_does_not_speak_websocket() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:4815/\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(MachineUnreachable):
        await Control.open(ours, "token")
    theirs.close()


async def test_giving_up_during_the_handshake_closes_the_connection() -> None:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    loop = asyncio.get_running_loop()
    opening = asyncio.create_task(Control.open(ours, "token"))
    assert (await loop.sock_recv(theirs, 65536)).startswith(b"GET /control ")
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(opening, 5)
    assert await asyncio.wait_for(loop.sock_recv(theirs, 1), 5) == b""
    theirs.close()


class Dialling(Machines):
    """Machines at one address."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        super().__init__(lambda: None, b"k" * 32, Timing())  # type: ignore[arg-type, return-value]
        self._connect = connect

    async def dial(self, machine: str, listener: str, *, wait: float = 0.0) -> socket.socket:
        return self._connect()


async def test_logs() -> None:
    def answer(transport: picows.WSTransport, _: dict[str, Any]) -> None:
        for at, part in enumerate((b"a", b"b")):
            transport.send(picows.WSMsgType.BINARY, pack(FrameType.OUT, at, part))
        transport.send_close(picows.WSCloseCode.OK)
        transport.disconnect()

    async with machine(answer) as connect:
        assert await Dialling(connect).logs("m") == b"ab"


async def test_logs_without_end_are_cut() -> None:
    frame = pack(FrameType.OUT, 0, b"x" * (512 << 10))

    def answer(transport: picows.WSTransport, _: dict[str, Any]) -> None:
        for _ in range(2 * RING_BYTES // (512 << 10)):
            transport.send(picows.WSMsgType.BINARY, frame)

    async with machine(answer) as connect:
        assert len(await Dialling(connect).logs("m")) == RING_BYTES


def test_a_machines_token_is_its_own() -> None:
    machines = Dialling(socket.socket)
    assert machines.token("a") == machines.token("a") != machines.token("b")
    assert len(bytes.fromhex(machines.token("a"))) == 32


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("control", picows.WSMsgType.PING, b"x" * 100),
        ("control", picows.WSMsgType.TEXT, b'{"event": "x"}'),
        ("control", picows.WSMsgType.TEXT, b'{"event": "' + b"x" * (60 << 10) + b'"}'),
        ("logs", picows.WSMsgType.PING, b"x" * 100),
        ("logs", picows.WSMsgType.BINARY, pack(FrameType.OUT, 0, b"")),
        ("logs", picows.WSMsgType.BINARY, pack(FrameType.OUT, 0, b"x")),
    ],
)
async def test_a_machine_that_talks_without_end_is_not_listened_to(
    path: str, kind: picows.WSMsgType, content: bytes
) -> None:
    """It never reads: what were answered to its pings would pile up in the server."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    flooding = asyncio.create_task(_flood(theirs, kind, content))
    if path == "control":
        control = await Control.open(ours, "token")
        with pytest.raises(MachineUnreachable, match="closed"):
            await control.request("status", timeout=30)
    else:
        await Dialling(lambda: ours).logs("m")
    assert await asyncio.wait_for(flooding, 10) < 64 << 20  # it heard of the end soon
    theirs.close()


async def _flood(sock: socket.socket, kind: picows.WSMsgType, content: bytes) -> int:
    """Upgrade, then send one frame again and again, until the other side is gone: how many bytes it took."""
    loop = asyncio.get_running_loop()
    request = await loop.sock_recv(sock, 65536)
    key = request.lower().partition(b"sec-websocket-key: ")[0]
    key = request[len(key) :].partition(b": ")[2].partition(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    await loop.sock_sendall(sock, head + accept + b"\r\n\r\n")
    size = bytes([len(content)]) if len(content) < 126 else b"\x7e" + len(content).to_bytes(2, "big")
    many = (bytes([0x80 | kind.value]) + size + content) * max(1, (64 << 10) // len(content))
    sent = 0
    with contextlib.suppress(OSError):
        while True:
            await loop.sock_sendall(sock, many)
            sent += len(many)
    return sent
