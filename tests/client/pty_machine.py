"""A machine for tests of the client: a program in a real PTY behind the attach dialect, written from docs/design.md alone.

It is no part of the product and shares no code with the runtime, so what both agree on with the client is what is documented. It can
be cut, be made to hold back, and be made again (another epoch), which a real machine does only by accident.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import picows

from catty.wire.attach import Resume, Resumed
from catty.wire.frames import NO_OFFSET, SUBPROTOCOL, FrameType, pack, pack_json, unpack, unpack_json, unpack_size
from catty.wire.sockets import UnixSocket


class PtyMachine:
    """Runs `argv`; listens on the Unix socket `path` while `listening()`."""

    def __init__(self, path: Path, argv: list[str], ring: int = 1 << 20) -> None:
        self.path, self.argv, self.ring = path, argv, ring
        self.epoch = "epoch1"
        self.output = bytearray()
        self.taken: dict[str, int] = {}
        self.keys = bytearray()
        self.sizes: list[tuple[int, int]] = []
        self.acknowledged = 0
        self.connections: list[_Connection] = []
        self.accepted = 0
        self.refusal: tuple[int, bytes] | None = None
        self.hold_answers = False
        self.exit: dict[str, Any] | None = None
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Event()
        self.spawn()

    def spawn(self) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            self.argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        asyncio.get_running_loop().add_reader(self.master, self._read)

    async def listen(self) -> None:
        sock = UnixSocket(socket.AF_UNIX)
        self.path.unlink(missing_ok=True)
        sock.bind(str(self.path))
        self._server = await picows.ws_create_server(self._accept, sock=sock, use_aiofastnet=False)

    def deaf(self) -> None:
        """Stop listening; connections stay."""
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)

    def cut(self) -> None:
        """Lose all connections without a word."""
        for connection in self.connections:
            connection.transport.disconnect(graceful=False)
        self.connections.clear()

    def made_again(self) -> None:
        """Another machine takes the place of this one."""
        self.cut()
        self.epoch += "x"
        self.output.clear()
        self.taken.clear()

    async def close(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
        asyncio.get_running_loop().remove_reader(self.master)
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    async def until(self, condition: Any, timeout: float = 10.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self._arrived.clear()
                await self._arrived.wait()

    def happened(self) -> None:
        self._arrived.set()

    def _accept(self, request: picows.WSUpgradeRequest) -> Any:
        self.accepted += 1
        self.happened()
        if self.refusal:
            response = picows.WSUpgradeResponse.create_error_response(*self.refusal)
            return picows.WSUpgradeResponseWithListener(response, None)
        headers = {"Sec-WebSocket-Protocol": SUBPROTOCOL}
        response = picows.WSUpgradeResponse.create_101_response(headers)
        return picows.WSUpgradeResponseWithListener(response, _Connection(self))

    def _read(self) -> None:
        try:
            data = os.read(self.master, 65536)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.master)
            code = self.process.wait()
            self.exit = {"code": code if code >= 0 else None, "signal": -code if code < 0 else None}
        self.output += data
        for connection in self.connections:
            connection.pump()
        self.happened()


class _Connection(picows.WSListener):
    def __init__(self, machine: PtyMachine) -> None:
        self.machine = machine
        self.client = ""
        self.sent = 0

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self.machine.connections.append(self)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        if self in self.machine.connections:
            self.machine.connections.remove(self)
        self.machine.happened()

    def send(self, message: bytes) -> None:
        self.transport.send(picows.WSMsgType.BINARY, message)

    def on_ws_frame(self, transport: picows.WSTransport, ws_frame: picows.WSFrame) -> None:
        if ws_frame.msg_type == picows.WSMsgType.CLOSE:
            transport.disconnect()
        if ws_frame.msg_type != picows.WSMsgType.BINARY:
            return
        frame = unpack(ws_frame.get_payload_as_bytes())
        machine = self.machine
        if frame.type is FrameType.RESUME:
            if not machine.hold_answers:
                self.resume(Resume.from_json(unpack_json(frame), frame.offset))
        elif frame.type is FrameType.IN:
            mark = machine.taken[self.client]
            assert frame.offset <= mark, "gap in the input"
            news = bytes(frame.payload)[mark - frame.offset :]
            machine.keys += news
            os.write(machine.master, news)
            machine.taken[self.client] = mark + len(news)
            self.send(pack(FrameType.ACK, mark + len(news)))
        elif frame.type is FrameType.RESIZE:
            machine.sizes.append(unpack_size(frame))
            cols, rows = machine.sizes[-1]
            fcntl.ioctl(machine.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            machine.process.send_signal(signal.SIGWINCH)
        elif frame.type is FrameType.ACK:
            machine.acknowledged = frame.offset
        machine.happened()

    def resume(self, hello: Resume) -> None:
        machine = self.machine
        self.client = hello.client
        taken = machine.taken.setdefault(hello.client, hello.input)
        machine.sizes.append((hello.cols, hello.rows))
        end = len(machine.output)
        known = hello.epoch == machine.epoch and hello.output != NO_OFFSET and end - machine.ring <= hello.output <= end
        self.sent = hello.output if known else end
        answer = Resumed(machine.epoch, self.sent, taken, 1 << 20, known, hello.cols, hello.rows)
        self.send(pack_json(FrameType.RESUMED, self.sent, answer.to_json()))
        if not known:
            self.send(pack(FrameType.SNAPSHOT, self.sent, b"\x1b[H\x1b[2J" + machine.output))
        self.pump()

    def pump(self) -> None:
        machine = self.machine
        if not self.client:
            return
        while self.sent < len(machine.output):
            piece = bytes(machine.output[self.sent : self.sent + 65536])
            self.send(pack(FrameType.OUT, self.sent, piece))
            self.sent += len(piece)
        if machine.exit is not None:
            self.send(pack_json(FrameType.EXIT, self.sent, machine.exit))
