"""Commands in a machine through its runtime: claimed and spoken to as a server and a client do, over its endpoint alone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import picows

from catty.engines.base import Endpoint
from catty.engines.endpoint import dial
from catty.server.sessions.control import Control
from catty.wire.attach import Exec
from catty.wire.claim import AgentLaunch, Claim
from catty.wire.frames import SUBPROTOCOL, FrameType, pack, pack_json, unpack, unpack_json
from catty.wire.sockets import UnixSocket

CALL_S = 60


async def claim(endpoint: Endpoint, machine: str, seconds: float) -> str:
    """Make the blank `machine` a session's, without an agent that would start; the token of its later connections."""
    token = secrets.token_hex(16)
    launch = AgentLaunch(name="shell", start=("/bin/sh",))
    control = await Control.open(await dial(endpoint, "terminal", seconds=seconds), "")
    try:
        hello = await control.request("hello", timeout=CALL_S)
        assert (hello["machine"], hello["claimed"]) == (machine, False)
        text = Claim(machine=machine, session=machine, label="brave-tiger-1234", token=token, agent=launch).to_text()
        await control.request("claim", timeout=CALL_S, claim=text)
    finally:
        control.close()
    return token


async def execute(endpoint: Endpoint, token: str, script: str, user: str) -> tuple[int, str]:
    """Exit code and output of a shell script in a claimed machine."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    output = bytearray()
    sock = UnixSocket.adopt(await dial(endpoint, "terminal", seconds=CALL_S))
    transport, _ = await picows.ws_connect(
        lambda: _Listener(done, output.extend),
        "ws://machine/exec",
        socket_factory=lambda _url: sock,
        extra_headers={"Authorization": f"Bearer {token}", "Sec-WebSocket-Protocol": SUBPROTOCOL},
        use_aiofastnet=False,
    )
    try:
        words = ("sh", "-c", f"exec 2>&1; {script}")
        command = Exec(words, user=user, cwd="/")
        transport.send(picows.WSMsgType.BINARY, pack_json(FrameType.START, 0, command.to_json()))
        transport.send(picows.WSMsgType.BINARY, pack(FrameType.EOF, 0))
        async with asyncio.timeout(CALL_S):
            code = await done
    finally:
        transport.disconnect()
    return code, output.decode().strip()


class _Listener(picows.WSListener):
    def __init__(self, done: asyncio.Future[int], write: Callable[[bytes], None]) -> None:
        self._done = done
        self._write = write

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is not picows.WSMsgType.BINARY:
            return
        said = unpack(frame.get_payload_as_bytes())
        if said.type in (FrameType.OUT, FrameType.ERR):
            self._write(bytes(said.payload))
        elif said.type is FrameType.EXIT and not self._done.done():
            value = unpack_json(said)
            self._done.set_result(value["code"] if value["code"] is not None else 128 + value["signal"])

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError("the machine closed the connection"))
