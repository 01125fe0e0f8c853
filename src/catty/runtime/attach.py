"""`/attach`: one client's connection to the console, in offset frames (docs/protocol.md, "Attach")."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from catty.constants import ACK_WINDOW_BYTES, KIB
from catty.errors import BadRequest
from catty.runtime.console import Console, Size
from catty.runtime.initproto import Message
from catty.runtime.listen import Connection
from catty.runtime.pacing import Pace
from catty.wire import frames
from catty.wire.attach import Resume, Resumed
from catty.wire.frames import Frame, FrameType

__all__ = ["ROLE_HEADER", "Attachment", "attach"]

ROLE_HEADER: Final = "x-catty-role"
_CHUNK: Final = 64 * KIB
_NOTICES_MAX: Final = 16
_OPENING_S: Final = 10.0  # for a client's first message

Restart = Callable[[Size], Awaitable[None]]


async def attach(connection: Connection, console: Console, epoch: str, restart: Restart) -> None:
    """Serve one client until its connection ends. `restart` starts an agent that has exited, in a PTY of some size."""
    viewer = connection.headers.get(ROLE_HEADER, "writer") == "viewer"
    resume = await _opening(connection)
    size = (min(resume.cols, 0xFFFF), min(resume.rows, 0xFFFF))
    if resume.fresh and not viewer and console.agent["state"] == "exited":
        await restart(size)
    attachment = Attachment(connection, console, resume, viewer=viewer)
    for other in tuple(console.clients):
        if isinstance(other, Attachment) and other.name == attachment.name:
            other.supersede()
    console.attach(attachment)
    try:
        attachment.begin(epoch)
        connection.deliver(attachment.received, attachment.writable)
        await connection.wait_closed()
    finally:
        console.detach(attachment)


async def _opening(connection: Connection) -> Resume:
    try:
        async with asyncio.timeout(_OPENING_S):
            message = await connection.receive()
    except TimeoutError:
        raise BadRequest("no RESUME came") from None
    frame = frames.unpack(message) if isinstance(message, bytes) else None
    if frame is None or frame.type != FrameType.RESUME:
        raise BadRequest("the first message must be RESUME")
    return Resume.from_json(frames.unpack_json(frame), frame.offset)


class Attachment:
    """One connection. Nothing waits in here but what is due once the connection is writable again; see `console.Client`."""

    def __init__(self, connection: Connection, console: Console, resume: Resume, *, viewer: bool) -> None:
        self.name = resume.client
        self.size: Size | None = None if viewer else (min(resume.cols, 0xFFFF), min(resume.rows, 0xFFFF))
        self._connection = connection
        self._console = console
        self._resume = resume
        self._viewer = viewer
        self._exact = False
        self._begun = False
        self._exited = False  # EXIT has been sent for the present end of the agent
        self._size_due = False
        self._ack_due = False
        self._notices: deque[Message] = deque(maxlen=_NOTICES_MAX)
        self.pace = Pace(console.output.end, viewer=viewer, now=time.monotonic())

    def begin(self, epoch: str) -> None:
        """Answer RESUME, and send what the client lacks."""
        console, resume = self._console, self._resume
        log = console.output
        if not self._viewer and not resume.epoch and console.unseen:
            self._exact, position = True, 0
        else:
            self._exact = resume.epoch == epoch and log.start <= resume.output <= log.end
            position = resume.output if self._exact else log.end
        self.pace = Pace(position, viewer=self._viewer, now=time.monotonic())
        taken = 0
        if not self._viewer:
            taken = console.input.register(self.name, {client.name for client in console.clients})
        cols, rows = console.size
        resumed = Resumed(epoch, position, taken, ACK_WINDOW_BYTES, self._exact, cols, rows)
        self._connection.post(frames.pack_json(FrameType.RESUMED, position, resumed.to_json()))
        self._begun = True
        if not self._exact:
            self._repaint()
        if console.agent["state"] == "waiting":
            self.notice(waiting_notice(console.agent))
        self.pump()

    def supersede(self) -> None:
        """The same client has come back on another connection; this one is dead, though nobody has noticed yet."""
        self._console.detach(self)
        self._connection.close(1000, "the client has come back")

    # ------------------------------------------------------------------------------------ towards the client

    def pump(self) -> None:
        """Send output, as far as the window and the connection take it; then the exit if there is one."""
        console, pace, connection = self._console, self.pace, self._connection
        log = console.output
        while connection.writable and connection.closed is None and pace.sent < log.end and pace.room:
            if pace.must_skip(log.start, log.end):
                self._repaint()
                continue
            data = log.read(pace.sent, min(_CHUNK, pace.room))
            connection.post(frames.pack(FrameType.OUT, pace.sent, data))
            pace.send(pace.sent + len(data), time.monotonic())
        if console.exit_at is None:
            self._exited = False
        elif not (self._exited or console.ending) and pace.sent >= console.exit_at and connection.writable:
            self._exited = True
            exit_ = {"code": console.agent["code"], "signal": console.agent["signal"]}
            connection.post(frames.pack_json(FrameType.EXIT, console.exit_at, exit_))

    def size_changed(self) -> None:
        if not self._begun:
            return  # RESUMED will say it
        if self._connection.writable:
            self._connection.post(frames.pack_size(*self._console.size))
        else:
            self._size_due = True

    def input_fed(self) -> None:
        if self._viewer or self._console.input_held or not self._connection.writable:
            self._ack_due = not self._viewer
            return
        self._ack_due = False
        self._connection.post(frames.pack(FrameType.ACK, self._console.input.taken(self.name)))

    def notice(self, notice: Message) -> None:
        if self._connection.writable:
            self._connection.post(frames.pack_json(FrameType.NOTICE, 0, notice))
        else:
            self._notices.append(notice)

    def writable(self) -> None:
        """The connection takes more: send what became due meanwhile."""
        if self._size_due:
            self._size_due = False
            self.size_changed()
        if self._ack_due:
            self.input_fed()
        while self._notices and self._connection.writable:
            self.notice(self._notices.popleft())
        self.pump()

    def _repaint(self) -> None:
        end = self._console.output.end
        self._connection.post(frames.pack(FrameType.SNAPSHOT, end, self._console.screen.repaint()))
        self.pace.repainted(end, time.monotonic())
        self._console.provoke_repaint()

    # ------------------------------------------------------------------------------------ from the client

    def received(self, message: bytes | str) -> None:
        """Handle one message. Raises BadRequest if it does not fit the protocol."""
        if isinstance(message, str):
            raise BadRequest("text on a connection of frames")
        frame = frames.unpack(memoryview(message))
        if frame.type == FrameType.IN:
            self._on_input(frame)
        elif frame.type == FrameType.ACK:
            self._on_ack(frame)
        elif frame.type == FrameType.RESIZE:
            if not self._viewer:
                self.size = frames.unpack_size(frame)
                self._console.resize()
        elif frame.type == FrameType.PING:
            if self._connection.writable:  # else it gets signs of life enough, or reads nothing
                self._connection.post(frames.pack(FrameType.PONG, frame.offset, frame.payload))
        elif frame.type != FrameType.PONG:
            raise BadRequest(f"{frame.type.name} frame from a client")

    def _on_input(self, frame: Frame) -> None:
        if self._viewer:
            raise BadRequest("a viewer cannot type")
        self._console.type(self.name, frame.offset, frame.payload)
        self.input_fed()

    def _on_ack(self, frame: Frame) -> None:
        if frame.offset > self.pace.sent:
            raise BadRequest("acknowledges output that was never sent")
        self.pace.acknowledge(frame.offset, time.monotonic())
        self.pump()
        self._console.acknowledged()


def waiting_notice(agent: Message) -> Message:
    """What a client is told while the agent waits."""
    if agent["wants"] == "secrets":
        message = "the agent waits for your secrets: `catty connect` from where they are kept brings them"
    else:
        message = "the agent starts once the workspace is in place"
    return {"level": "info", "code": f"waiting-{agent['wants']}", "message": message}
