"""A machine as a local process: the real runtime on this host, in a temporary directory, spoken to over its own endpoint.

    async with LocalMachine(["bash", "--norc"]) as machine:
        await machine.claim()
        await machine.start()
        client = await machine.attach()
        await client.type(b"echo hi\\r")
        await client.until(b"hi")

It runs as the user of the tests, without routes, capabilities or CA bundle, which belong to PID 1 alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import picows

from catty.wire import control, frames
from catty.wire.attach import Exec, Resume, Resumed
from catty.wire.claim import AgentLaunch, Claim
from catty.wire.frames import Frame, FrameType
from catty.wire.sockets import UnixSocket

PATIENCE_S = 10.0


class LocalMachine:
    """See the module's text. `argv` is the agent's command line, `launch` its whole description instead."""

    def __init__(
        self,
        argv: Sequence[str] = ("/bin/sh",),
        *,
        launch: AgentLaunch | None = None,
        env: Mapping[str, str] | None = None,
        secrets_pending: bool = False,
        settings: Mapping[str, str] | None = None,
        interpreter: Sequence[str] = (sys.executable,),
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="catty-m"))
        self.endpoint, self.workspace, self.home = (self.directory / n for n in ("endpoint", "workspace", "home"))
        for path in (self.endpoint, self.workspace, self.home):
            path.mkdir()
        launch = launch or AgentLaunch(name="test", start=tuple(argv))
        self.claim_ = Claim(
            machine="local",
            session="00000000-0000-0000-0000-000000000001",
            label="brave-tiger-1234",
            token="c0ffee",
            agent=launch,
            env=dict(env or {}),
            secrets_pending=secrets_pending,
        )
        self._settings = dict(settings or {})
        self._interpreter = tuple(interpreter)
        self.process: asyncio.subprocess.Process | None = None
        self.control: ControlClient | None = None

    async def __aenter__(self) -> Self:
        own = {
            "CATTY_MACHINE": self.claim_.machine,
            "CATTY_ENDPOINT": str(self.endpoint),
            "CATTY_WORKSPACE_DIR": str(self.workspace),
            "CATTY_AGENT_HOME": str(self.home),
            "CATTY_AGENT_UID": str(os.getuid()),
        }
        self.process = await asyncio.create_subprocess_exec(
            *self._interpreter,
            "-m",
            "catty.runtime.init",
            env=os.environ | own | self._settings,
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.control is not None:
            self.control.close()
        assert self.process is not None
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def dial(self, listener: str = "terminal") -> socket.socket:
        """A connected, non-blocking socket; waits until something listens."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            sock = UnixSocket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, str(self.endpoint / listener))
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.01)
            else:
                return sock

    async def connect(self, path: str, *, token: str | None = None, role: str = "") -> Wire:
        """A WebSocket to the terminal; `token` None is the claim's, "" none."""
        token = self.claim_.token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if role:
            headers["X-Catty-Role"] = role
        sock = await self.dial()
        _, wire = await picows.ws_connect(
            Wire,
            f"ws://machine{path}",
            socket_factory=lambda _url: sock,
            extra_headers=headers,
            use_aiofastnet=False,
            websocket_handshake_timeout=PATIENCE_S,
        )
        assert isinstance(wire, Wire)
        return wire

    async def claim(self) -> ControlClient:
        """Claim the machine; the control connection, which stays open as `self.control`."""
        self.control = ControlClient(await self.connect("/control", token=""))
        await self.control.request("claim", claim=self.claim_.to_text())
        return self.control

    async def start(self) -> None:
        """The workspace is in place: let the agent start."""
        assert self.control is not None
        await self.control.request("start")

    async def attach(self, *, role: str = "writer", **fields: Any) -> AttachClient:
        """An attached client, once it has its answer. `fields` are those of `wire.attach.Resume`."""
        resume = replace(Resume(os.urandom(8).hex(), 80, 24), **fields)
        client = AttachClient(await self.connect("/attach", role=role), resume)
        await client.open()
        return client

    async def exec(self, *argv: str, stdin: bytes = b"", **fields: Any) -> tuple[int | None, bytes, bytes]:
        """(exit code, standard output, standard error) of a program; `fields` are those of `wire.attach.Exec`."""
        program = await self.program(*argv, **fields)
        await program.feed(stdin, end=True)
        return await program.wait()

    async def program(self, *argv: str, **fields: Any) -> ExecClient:
        """A program that has been started."""
        wire = await self.connect("/exec")
        wire.send(frames.pack_json(FrameType.START, 0, Exec(tuple(argv), **fields).to_json()))
        return ExecClient(wire)

    async def pid_of(self, name: str) -> int:
        """The pid of the runtime's process `terminal` or `workspace`, once it runs."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while not (pids := self._children(name)):
            assert time.monotonic() < deadline, f"{name} does not run"
            await asyncio.sleep(0.005)
        return pids[0]

    async def kill(self, name: str) -> None:
        """kill -9 of one of the runtime's processes; returns once it is gone."""
        pid = await self.pid_of(name)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: pid not in self._children(name))

    def _children(self, name: str) -> list[int]:
        assert self.process is not None
        found = []
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if f"catty.runtime.{name}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(pid))
        return found


class Wire(picows.WSListener):
    """A client's end of a WebSocket: whole messages in, `closed` once it has ended, with the close code if there was one."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.transport: picows.WSTransport | None = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            code: Any = frame.get_close_code()
            if not self.closed.done():
                self.closed.set_result((int(code), frame.get_close_reason() or ""))
            transport.send_close()
            transport.disconnect()
        elif frame.msg_type == picows.WSMsgType.TEXT:
            self.messages.put_nowait(frame.get_payload_as_utf8_text())
        elif frame.msg_type == picows.WSMsgType.BINARY:
            self.messages.put_nowait(frame.get_payload_as_bytes())

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        if not self.closed.done():
            self.closed.set_result((1006, ""))
        self.messages.put_nowait(None)

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    def send(self, message: bytes | str) -> None:
        assert self.transport is not None
        kind = picows.WSMsgType.TEXT if isinstance(message, str) else picows.WSMsgType.BINARY
        self.transport.send(kind, message)

    async def receive(self, patience: float = PATIENCE_S) -> bytes | str:
        """The next message. Raises ConnectionError once the connection has ended."""
        async with asyncio.timeout(patience):
            message = await self.messages.get()
        if message is None:
            self.messages.put_nowait(None)
            raise ConnectionError(*self.closed.result())
        return message

    def hold(self, *, held: bool) -> None:
        """Stop reading from the socket, as a client does whose terminal stands still."""
        assert self.transport is not None
        transport: Any = self.transport.underlying_transport
        if held:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def cut(self) -> None:
        """End the connection without a word."""
        assert self.transport is not None
        self.transport.disconnect(False)


class ControlClient:
    """The server's side of /control."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._task = asyncio.create_task(self._read())

    async def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """The reply. Raises RuntimeError with the error's code if it is refused, ConnectionError if the connection ends."""
        reply = await self.raw(op, **fields)
        if not reply["ok"]:
            raise RuntimeError(reply["error"], reply["message"])
        return reply

    async def raw(self, op: str, **fields: Any) -> dict[str, Any]:
        if self.wire.closed.done():
            raise ConnectionError(*self.wire.closed.result())
        self._number += 1
        future = self._replies[self._number] = asyncio.get_running_loop().create_future()
        self.wire.send(control.dump({"id": self._number, "op": op, **fields}))
        async with asyncio.timeout(PATIENCE_S * 2):
            reply: dict[str, Any] = await future
        return reply

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of that name; others before it are passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self.events.get())["event"] != name:
                pass
        return event

    def close(self) -> None:
        self._task.cancel()
        self.wire.cut()

    async def _read(self) -> None:
        try:
            while True:
                message = control.parse(await self.wire.receive(3600))
                if "event" in message:
                    self.events.put_nowait(message)
                else:
                    self._replies.pop(message["id"]).set_result(message)
        except ConnectionError as error:
            for future in self._replies.values():
                future.set_exception(error)


class AttachClient:
    """A plain client: keeps what it gets, acknowledges it (unless `silent`), never reconnects by itself.

    `output` is everything since its start or its last repainted screen, whose end stands at offset `position`.
    """

    def __init__(self, wire: Wire, resume: Resume) -> None:
        self.wire = wire
        self.resume = resume
        self.resumed: Resumed | None = None
        self.output = bytearray()
        self.position = resume.output
        self.snapshots: list[bytes] = []
        self.notices: list[dict[str, Any]] = []
        self.sizes: list[tuple[int, int]] = []
        self.exit: dict[str, Any] | None = None
        self.taken = 0
        self.sent = 0
        self.silent = False
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.wire.send(frames.pack_json(FrameType.RESUME, self.resume.output, self.resume.to_json()))
        message = await self.wire.receive()
        assert isinstance(message, bytes)
        frame = frames.unpack(message)
        assert frame.type is FrameType.RESUMED, frame
        self.resumed = Resumed.from_json(frames.unpack_json(frame), frame.offset)
        self.position = frame.offset
        self.taken = self.sent = self.resumed.input
        self._task = asyncio.create_task(self._read())

    async def type(self, data: bytes) -> None:
        self.wire.send(frames.pack(FrameType.IN, self.sent, data))
        self.sent += len(data)

    def resize(self, cols: int, rows: int) -> None:
        self.wire.send(frames.pack_size(cols, rows))

    def acknowledge(self, offset: int | None = None) -> None:
        self.wire.send(frames.pack(FrameType.ACK, self.position if offset is None else offset))

    async def until(self, wanted: bytes | Callable[[], bool], patience: float = PATIENCE_S) -> bytes:
        """Wait until the output (or a repainted screen) holds some bytes, or something is true. Returns the output."""

        def there() -> bool:
            if callable(wanted):
                return wanted()
            return wanted in self.output or any(wanted in screen for screen in self.snapshots)

        try:
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(there)
        except TimeoutError:
            raise AssertionError(f"{wanted!r} did not come; last: {bytes(self.output[-300:])!r}") from None
        return bytes(self.output)

    async def close(self) -> None:
        """Go away as a client that was told to."""
        assert self.wire.transport is not None
        self.wire.transport.send_close(picows.WSCloseCode.OK)
        self.wire.transport.disconnect()
        await self.wire.closed
        if self._task is not None:
            await self._task

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                message = await self.wire.receive(3600)
                assert isinstance(message, bytes)
                self._take(frames.unpack(message))
                async with self._changed:
                    self._changed.notify_all()

    def _take(self, frame: Frame) -> None:
        if frame.type is FrameType.OUT:
            assert frame.offset == self.position, f"OUT at {frame.offset}, expected {self.position}"
            self.output += frame.payload
            self.position += len(frame.payload)
        elif frame.type is FrameType.SNAPSHOT:
            self.snapshots.append(bytes(frame.payload))
            self.position = frame.offset
        elif frame.type is FrameType.ACK:
            self.taken = frame.offset
        elif frame.type is FrameType.NOTICE:
            self.notices.append(frames.unpack_json(frame))
        elif frame.type is FrameType.RESIZE:
            self.sizes.append(frames.unpack_size(frame))
        elif frame.type is FrameType.EXIT:
            self.exit = frames.unpack_json(frame) | {"offset": frame.offset}
        if not self.silent and frame.type in (FrameType.OUT, FrameType.SNAPSHOT):
            self.acknowledge()


class ExecClient:
    """A running program; `stdout` and `stderr` grow as they come."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.acknowledged = 0
        self._sent = 0

    async def feed(self, data: bytes, *, end: bool = False) -> None:
        for at in range(0, len(data), 1 << 16):
            part = data[at : at + (1 << 16)]
            self.wire.send(frames.pack(FrameType.IN, self._sent, part))
            self._sent += len(part)
        if end:
            self.wire.send(frames.pack(FrameType.EOF, self._sent))

    def signal(self, name: str) -> None:
        self.wire.send(frames.pack_json(FrameType.SIGNAL, 0, {"signal": name}))

    async def until(self, wanted: bytes) -> None:
        while wanted not in self.stdout:
            assert await self._step() is None

    async def wait(self) -> tuple[int | None, bytes, bytes]:
        """Until it ends. A program ended by a signal has that number, negative, as its code."""
        while True:
            end = await self._step()
            if end is not None:
                code = end["code"] if end["signal"] is None else -end["signal"]
                return code, bytes(self.stdout), bytes(self.stderr)

    async def _step(self) -> dict[str, Any] | None:
        message = await self.wire.receive()
        assert isinstance(message, bytes)
        frame = frames.unpack(message)
        if frame.type is FrameType.OUT:
            assert frame.offset == len(self.stdout)
            self.stdout += frame.payload
        elif frame.type is FrameType.ERR:
            assert frame.offset == len(self.stderr)
            self.stderr += frame.payload
        elif frame.type is FrameType.ACK:
            self.acknowledged = frame.offset
        elif frame.type is FrameType.EXIT:
            return frames.unpack_json(frame)
        return None


async def eventually(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], patience: float = PATIENCE_S) -> None:
    """Wait until a condition holds that sends no event: looks again and again."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)
