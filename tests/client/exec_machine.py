"""The exec dialect around a real process on this host, for tests of the client; written from docs/design.md, not from the runtime."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import picows

from catty.wire.attach import Exec
from catty.wire.frames import SUBPROTOCOL, FrameType, pack, pack_json, unpack, unpack_json, unpack_size
from catty.wire.sockets import UnixSocket


class ExecMachine:
    """Listens on the Unix socket `path`; `runs` are the connections, oldest first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[_Run] = []

    async def listen(self) -> None:
        sock = UnixSocket(socket.AF_UNIX)
        sock.bind(str(self.path))
        self._server = await picows.ws_create_server(self._accept, sock=sock, use_aiofastnet=False)

    async def close(self) -> None:
        self._server.close()
        for run in self.runs:
            run.transport.disconnect(graceful=False)
            await run.over.wait()

    def _accept(self, request: picows.WSUpgradeRequest) -> Any:
        assert request.path == b"/v1/sessions/x/exec"
        response = picows.WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": SUBPROTOCOL})
        self.runs.append(_Run())
        return picows.WSUpgradeResponseWithListener(response, self.runs[-1])


class _Run(picows.WSListener):
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.over = asyncio.Event()
        self.sizes: list[tuple[int, int]] = []
        self.process: asyncio.subprocess.Process | None = None
        self.master = -1
        self.taken = 0
        self.lost = False
        self.input: asyncio.Queue[bytes] = asyncio.Queue()
        self.signals: asyncio.Queue[str] = asyncio.Queue()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.lost = True
        if self.process is not None and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        elif self.process is None:
            self.over.set()

    def on_ws_frame(self, transport: picows.WSTransport, ws_frame: picows.WSFrame) -> None:
        if ws_frame.msg_type == picows.WSMsgType.CLOSE:
            transport.disconnect()
        if ws_frame.msg_type != picows.WSMsgType.BINARY:
            return
        frame = unpack(ws_frame.get_payload_as_bytes())
        match frame.type:
            case FrameType.START:
                self.command = Exec.from_json(unpack_json(frame))
                self.task = asyncio.ensure_future(self.run())
            case FrameType.IN:
                assert frame.offset == self.taken, "input in order, nothing missing"
                self.taken += len(frame.payload)
                self.input.put_nowait(bytes(frame.payload))
            case FrameType.EOF:
                assert frame.offset == self.taken
                self.input.put_nowait(b"")
            case FrameType.SIGNAL:
                assert self.process is not None
                name = unpack_json(frame)["signal"]
                os.killpg(self.process.pid, signal.Signals["SIG" + name])
                self.signals.put_nowait(name)
            case FrameType.RESIZE:
                self.sizes.append(unpack_size(frame))

    def send(self, message: bytes) -> None:
        if not self.lost:
            self.transport.send(picows.WSMsgType.BINARY, message)

    async def run(self) -> None:
        streams: Any = subprocess.PIPE
        slave = -1
        if self.command.tty:
            self.master, slave = pty.openpty()
            streams = slave
        self.process = await asyncio.create_subprocess_exec(
            *self.command.argv, stdin=streams, stdout=streams, stderr=streams, start_new_session=True
        )
        feeding = asyncio.ensure_future(self.feed())
        self.started.set()
        if self.command.tty:
            os.close(slave)
            await self.pump_pty()
        else:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            await asyncio.gather(
                self.pump(FrameType.OUT, self.process.stdout), self.pump(FrameType.ERR, self.process.stderr)
            )
        code = await self.process.wait()
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        self.send(
            pack_json(FrameType.EXIT, 0, {"code": code if code >= 0 else None, "signal": -code if code < 0 else None})
        )
        self.over.set()

    async def pump(self, type_: FrameType, stream: asyncio.StreamReader) -> None:
        offset = 0
        while data := await stream.read(65536):
            self.send(pack(type_, offset, data))
            offset += len(data)

    async def pump_pty(self) -> None:
        offset = 0
        while data := await asyncio.to_thread(_read, self.master):
            self.send(pack(FrameType.OUT, offset, data))
            offset += len(data)
        os.close(self.master)

    async def feed(self) -> None:
        assert self.process is not None
        while data := await self.input.get():
            if self.command.tty:
                os.write(self.master, data)
            else:
                assert self.process.stdin is not None
                self.process.stdin.write(data)
                await self.process.stdin.drain()
        if self.process.stdin is not None:
            self.process.stdin.close()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
