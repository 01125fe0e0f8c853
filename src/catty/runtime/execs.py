"""`/exec`: programs beside the agent, one per connection (docs/protocol.md, "Exec")."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable
from typing import Final, Self

from catty.constants import KIB, MIB
from catty.errors import BadRequest
from catty.runtime.initlink import InitLink, InitRefused
from catty.runtime.initproto import Message
from catty.runtime.listen import Connection
from catty.wire import frames
from catty.wire.attach import Exec
from catty.wire.frames import Frame, FrameType

__all__ = ["Execs"]

SIGNALS: Final = {name: int(signal.Signals[f"SIG{name}"]) for name in ("INT", "TERM", "HUP", "KILL")}
_CHUNK: Final = 64 * KIB
_INPUT_MAX: Final = 1 * MIB  # input that the program has not read, beyond which the client has to wait
_OPENING_S: Final = 10.0
_END_OF_INPUT: Final = b"\x04"  # what a terminal makes of it


class Execs:
    """All programs that run for clients of this machine."""

    def __init__(self, link: InitLink) -> None:
        self._link = link
        self._ends: dict[int, asyncio.Future[Message]] = {}

    async def serve(self, connection: Connection) -> None:
        """Run what the first message asks for, until it ends or the connection does: then the program is ended."""
        request = await _opening(connection)
        ours, theirs = _terminal(request) if request.tty else _pipes()
        try:
            reply = await self._link.request(
                "spawn",
                tuple(theirs),
                argv=list(request.argv),
                user=request.user,
                cwd=request.cwd,
                env=request.env,
                tty=request.tty,
            )
        except InitRefused as error:
            for fd in set(ours):
                os.close(fd)
            raise BadRequest(str(error)) from None
        finally:
            for fd in set(theirs):
                os.close(fd)
        pid = int(reply["pid"])
        with _Program(connection, self._link, pid, ours, tty=request.tty) as program:
            connection.deliver(program.received, program.writable)
            await self._either(self._end_of(pid), connection)
            if connection.closed is None:
                end = self._ends.pop(pid).result()
                await program.finish(end["code"], end["signal"])
            else:
                self._ends[pid].add_done_callback(lambda _: self._ends.pop(pid))
                await self._link.request("kill", pid=pid)

    def ended(self, event: Message) -> None:
        """init has reaped a program."""
        future = self._end_of(event["pid"])
        if not future.done():
            future.set_result(event)

    def _end_of(self, pid: int) -> asyncio.Future[Message]:
        """The program's end, which may be known before its beginning is."""
        if pid not in self._ends:
            self._ends[pid] = asyncio.get_running_loop().create_future()
        return self._ends[pid]

    async def _either(self, end: asyncio.Future[Message], connection: Connection) -> None:
        closed = asyncio.ensure_future(connection.wait_closed())
        try:
            await asyncio.wait((end, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()


class _Program:
    """Carries bytes between a running program and its client. `ours`: input, output, error; a PTY's master three times."""

    def __init__(
        self, connection: Connection, link: InitLink, pid: int, ours: tuple[int, int, int], *, tty: bool
    ) -> None:
        self._connection = connection
        self._link = link
        self._pid = pid
        self._tty = tty
        self._loop = asyncio.get_running_loop()
        self._fds = set(ours)
        self._outputs = {FrameType.OUT: ours[1]} if tty else {FrameType.OUT: ours[1], FrameType.ERR: ours[2]}
        self._sent = {FrameType.OUT: 0, FrameType.ERR: 0}
        self._input: int | None = ours[0]
        self._unread = bytearray()
        self._received = 0
        self._end_of_input = False
        self._tasks: set[asyncio.Task[Message]] = set()
        for fd in self._fds:
            os.set_blocking(fd, False)

    def __enter__(self) -> Self:
        self.writable()
        return self

    def __exit__(self, *_: object) -> None:
        for fd in tuple(self._fds):
            self._close(fd)

    # ------------------------------------------------------------------------------------ towards the client

    def writable(self) -> None:
        """The connection takes more."""
        for kind, fd in self._outputs.items():
            self._loop.add_reader(fd, self._on_readable, kind)

    async def finish(self, code: int | None, number: int | None) -> None:
        """The program has ended: send what it still said, and how it ended."""
        for kind in tuple(self._outputs):
            while kind in self._outputs and self._forward(kind):
                await self._connection.drained()
        end = {"code": code, "signal": number}
        await self._connection.send(frames.pack_json(FrameType.EXIT, self._sent[FrameType.OUT], end))

    def _on_readable(self, kind: FrameType) -> None:
        self._forward(kind)
        if not self._connection.writable:
            for fd in self._outputs.values():
                self._loop.remove_reader(fd)

    def _forward(self, kind: FrameType) -> bool:
        """Send what the program says now; False if that is nothing."""
        fd = self._outputs[kind]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last one has closed the terminal
            data = b""
        if not data:
            del self._outputs[kind]
            self._loop.remove_reader(fd)
            return False
        self._connection.post(frames.pack(kind, self._sent[kind], data))
        self._sent[kind] += len(data)
        return True

    # ------------------------------------------------------------------------------------ from the client

    def received(self, message: bytes | str) -> None:
        """Handle one message. Raises BadRequest if it does not fit the protocol."""
        if isinstance(message, str):
            raise BadRequest("text on a connection of frames")
        frame = frames.unpack(memoryview(message))
        handler = _HANDLERS.get(frame.type)
        if handler is None:
            raise BadRequest(f"{frame.type.name} frame from a client of exec")
        handler(self, frame)

    def _on_in(self, frame: Frame) -> None:
        if frame.offset != self._received or self._end_of_input:
            raise BadRequest("input out of order")
        self._received += len(frame.payload)
        self._unread += frame.payload
        self._feed()

    def _on_eof(self, _frame: Frame) -> None:
        self._end_of_input = True
        if self._tty:
            self._unread += _END_OF_INPUT
        self._feed()

    def _on_signal(self, frame: Frame) -> None:
        number = SIGNALS.get(str(frames.unpack_json(frame).get("signal")))
        if number is None:
            raise BadRequest("no such signal")
        task = self._loop.create_task(self._link.request("signal", pid=self._pid, signal=number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_resize(self, frame: Frame) -> None:
        cols, rows = frames.unpack_size(frame)
        if self._tty and self._input is not None:
            fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def _on_ping(self, frame: Frame) -> None:
        if self._connection.writable:
            self._connection.post(frames.pack(FrameType.PONG, frame.offset, frame.payload))

    def _ignore(self, _frame: Frame) -> None:
        """ACK of output, PONG: the connection's own backpressure is enough here."""

    def _feed(self) -> None:
        """Give the program what it takes of its input; a program that has closed it gets none, and the client is not told."""
        fd = self._input
        if fd is None:
            self._unread.clear()
        elif self._unread:
            try:
                written = os.write(fd, self._unread[:_CHUNK])
            except BlockingIOError:
                written = 0
            except OSError:
                self._unread.clear()
                self._close_input(fd)
            else:
                del self._unread[:written]
        self._acknowledge()
        if self._unread and fd is not None:
            self._loop.add_writer(fd, self._feed)
        elif fd is not None:
            self._loop.remove_writer(fd)
            if self._end_of_input:
                self._close_input(fd)

    def _acknowledge(self) -> None:
        self._connection.hold(held=len(self._unread) > _INPUT_MAX)
        if self._connection.writable:
            self._connection.post(frames.pack(FrameType.ACK, max(0, self._received - len(self._unread))))

    def _close_input(self, fd: int) -> None:
        self._loop.remove_writer(fd)
        self._input = None
        if not self._tty:
            self._close(fd)

    def _close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.discard(fd)
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)


_HANDLERS: Final[dict[FrameType, Callable[[_Program, Frame], None]]] = {
    FrameType.IN: _Program._on_in,
    FrameType.EOF: _Program._on_eof,
    FrameType.SIGNAL: _Program._on_signal,
    FrameType.RESIZE: _Program._on_resize,
    FrameType.PING: _Program._on_ping,
    FrameType.PONG: _Program._ignore,
    FrameType.ACK: _Program._ignore,
}


async def _opening(connection: Connection) -> Exec:
    try:
        async with asyncio.timeout(_OPENING_S):
            message = await connection.receive()
    except TimeoutError:
        raise BadRequest("no START came") from None
    frame = frames.unpack(message) if isinstance(message, bytes) else None
    if frame is None or frame.type != FrameType.START:
        raise BadRequest("the first message must be START")
    return Exec.from_json(frames.unpack_json(frame))


def _pipes() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(ours, the program's): input, output, error."""
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    ours_err, theirs_err = os.pipe()
    return (ours_in, ours_out, ours_err), (theirs_in, theirs_out, theirs_err)


def _terminal(request: Exec) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    master, slave = os.openpty()
    with contextlib.suppress(OSError):  # sizes beyond what the kernel knows
        cols, rows = min(request.cols, 0xFFFF), min(request.rows, 0xFFFF)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
    return (master,) * 3, (slave,) * 3
