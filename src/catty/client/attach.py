"""The attach: the user's terminal and a session's, for as long as the user likes, over connections that come and go.

What is decided lies in cores without I/O (`wire.resume`, `client.keys`, `client.modes`, `client.status`); this shell moves the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from catty import constants
from catty.client import status
from catty.client.debug import debug
from catty.client.keys import HOLD_S, Action, Forward, Interrupt, Keys, Leave, Local, Paste
from catty.client.link import Connector, WebSocket
from catty.client.modes import Modes
from catty.client.paste import file_in
from catty.client.tty import Terminal
from catty.errors import (
    BadRequest,
    CattyError,
    Conflict,
    ConnectionLost,
    NotFound,
    NotLoggedIn,
    SessionEnded,
    UsageError,
)
from catty.wire import resume
from catty.wire.frames import pack_size

__all__ = ["Attach", "AttachOptions", "Outcome"]

LEFT: Final = 130
_IDLE_ACK_S: Final = 0.05
_FIRST_ANSWER_S: Final = 15.0
_ASLEEP_S: Final = 5.0  # the wall clock ran on while ours stood: the machine slept, and the connection is likely dead
_PROBE_S: Final = 3.0
_NOTICE_S: Final = 10.0
_REPAINT_S: Final = 0.2  # between the two changes of size that make a program repaint; closer ones are seen as none
_ROOM_LOW: Final = 64 * constants.KIB  # below this much room for input, typing waits
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT)
_FATAL: Final = (UsageError, NotLoggedIn, NotFound, Conflict)


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """How to attach. `agent` is for messages; `give_up_s`: how long a first connection may take, None: no limit."""

    label: str
    agent: str
    interrupt: Interrupt
    detach: tuple[bytes, ...] = ()
    view: bool = False
    reconnect: bool = True
    give_up_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the exit code, and a line for the user ("" for none)."""

    code: int
    message: str = ""


class Attach:
    """One attach; `run()` it once. `put` uploads a pasted file and gives its path in the machine; `sync_text` is what `~s` shows."""

    def __init__(
        self,
        connect: Connector,
        terminal: Terminal,
        options: AttachOptions,
        *,
        put: Callable[[Path], Awaitable[str]] | None = None,
        sync_text: Callable[[], str] = lambda: "sync-back is off",
    ) -> None:
        self._connect = connect
        self._terminal = terminal
        self._options = options
        self._put = put
        self._sync_text = sync_text
        self._link = resume.ResumeLink(secrets.token_hex(16))
        interrupt = Interrupt.ONCE if options.view else options.interrupt
        self._keys = Keys(interrupt, detach=options.detach, pastes=put is not None and not options.view)
        self._modes = Modes()
        self._line = status.StatusLine()
        self._socket: WebSocket | None = None
        self._begun = time.monotonic()
        self._away_since: float | None = self._begun  # since when there is no answering connection
        self._met = False  # the machine has answered once
        self._notice = ("", 0.0)  # text, until when
        self._writing = asyncio.Lock()
        self._shown = resume.Mark(0, 0)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deferred: bytearray | None = None  # typed after a paste whose upload is under way
        self.painted = asyncio.Event()  # set once something of the session stands on the terminal

    async def run(self) -> Outcome:
        """Attach until the user leaves, the agent exits or the session ends. The terminal is restored whatever happens.

        Raises the error that makes going on senseless.
        """
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[Outcome] = self._loop.create_future()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        try:
            self._terminal.make_raw()
            self._terminal.start_reading(self._on_input)
            self._spawn(self._connections())
            self._spawn(self._tick())
            return await self._done
        finally:
            self._terminal.pause_reading()
            for timer in self._timers.values():
                timer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._socket is not None:
                await self._socket.close()
            new_line = b"" if self._modes.alternate else b"\r\n"
            self._terminal.restore(self._line.remove() + self._modes.undo() + new_line)
            for number in (*_SIGNALS, signal.SIGWINCH):
                self._loop.remove_signal_handler(number)

    def notice(self, text: str, *, bell: bool = False, lasting: bool = False) -> None:
        """Show a line for a while, or (`lasting`) until something is typed or printed; from the loop's thread."""
        self._notice = (text, math.inf if lasting else time.monotonic() + _NOTICE_S)
        self._spawn(self._draw(b"\a" if bell else b""))

    def _end_lasting(self) -> None:
        if self._notice[1] == math.inf:
            self._notice = ("", 0.0)
            self._spawn(self._draw())

    # ------------------------------------------------------------------------------------------ ends

    def _end(self, outcome: Outcome) -> None:
        if not self._done.done():
            self._done.set_result(outcome)

    def _fail(self, error: BaseException) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _leave(self) -> None:
        goes_on = f"disconnected; `catty connect {self._options.label}` comes back"
        self._end(Outcome(LEFT, goes_on))

    def _on_signal(self, number: signal.Signals) -> None:
        self._end(Outcome(LEFT if number == signal.SIGINT else 128 + number))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, OSError):  # the terminal is gone
                self._end(Outcome(128 + signal.SIGHUP))
            else:
                self._fail(error)

    # ------------------------------------------------------------------------------------------ connections

    async def _connections(self) -> None:
        pause = constants.RECONNECT_FIRST_S
        while True:
            try:
                socket = await self._connect()
                await self._serve(socket)
            except _FATAL as error:
                if not isinstance(error, BadRequest):
                    self._give_up(error)
                debug(f"connection of no use: {error.message}")
            except CattyError as error:
                debug(f"attach: {error.message}")
                too_long = not self._met and time.monotonic() - self._begun > self._options.give_up_s
                if too_long or not self._options.reconnect:
                    raise
            if self._away_since is None:  # it was good for a while
                self._away_since = time.monotonic()
                pause = constants.RECONNECT_FIRST_S
            self._terminal.resume_reading()  # offline keys are kept as long as there is room; `~.` always works
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
            pause = min(pause * 2, constants.RECONNECT_MAX_S)

    def _give_up(self, error: CattyError) -> NoReturn:
        if self._met and isinstance(error, NotFound | Conflict):
            raise SessionEnded(label=self._options.label, reason=error.message) from None
        raise error

    async def _serve(self, socket: WebSocket) -> NoReturn:
        self._socket = socket
        try:
            socket.send_now(self._link.opening(*self._terminal.size(), fresh=not self._met))
            try:
                message = await asyncio.wait_for(socket.receive(), _FIRST_ANSWER_S)
            except TimeoutError:
                raise ConnectionLost(server=self._options.label, reason="the machine does not answer") from None
            while True:
                if isinstance(message, bytes):
                    await self._on_message(socket, message)
                message = await socket.receive()
        finally:
            self._socket = None
            await socket.close()

    async def _on_message(self, socket: WebSocket, message: bytes) -> None:
        match self._link.received(message):
            case resume.Output(data, mark) | resume.Screen(data, mark):
                await self._write(data)
                self._shown = mark
                self.painted.set()
                self._end_lasting()
                self._acknowledge()
            case resume.Started() as started:
                await self._on_started(started)
            case resume.Exited(code, number):
                how = f"({code})" if number is None else f"(signal {number})"
                self._end(Outcome(code or 0 if number is None else 128 + number, f"{self._options.agent} exited {how}"))
            case resume.Notice(level, code, text):
                # Taking our line away makes the program paint, which is activity: the warning must not be what keeps a session alive.
                self.notice(text, bell=level != "info", lasting=code == "ttl")
            case resume.Reply(answer):
                socket.send_now(answer)
            case _:
                pass
        if self._link.room >= _ROOM_LOW:
            self._terminal.resume_reading()

    async def _on_started(self, started: resume.Started) -> None:
        self._met, self._away_since = True, None
        self._send_input()
        await self._draw()  # before what comes next is painted over our line
        if started.lost_input:
            self.notice(f"{started.lost_input} keys were lost with the machine that died", bell=True)

    def _acknowledge(self) -> None:
        message = self._link.acknowledge(self._shown)
        if message is not None and self._socket is not None:
            self._socket.send_now(message)
        elif "ack" not in self._timers:
            self._timers["ack"] = self._loop.call_later(_IDLE_ACK_S, self._acknowledge_idle)

    def _acknowledge_idle(self) -> None:
        del self._timers["ack"]
        message = self._link.acknowledge(self._shown, idle=True)
        if message is not None and self._socket is not None:
            self._socket.send_now(message)

    # ------------------------------------------------------------------------------------------ keys

    def _on_input(self, data: bytes) -> None:
        if not data:
            self._end(Outcome(128 + signal.SIGHUP))
            return
        if "keys" in self._timers:
            self._timers.pop("keys").cancel()
        self._act(self._keys.feed(data, self._loop.time()))
        if self._keys.holding:
            self._timers["keys"] = self._loop.call_later(HOLD_S, self._flush_keys)

    def _flush_keys(self) -> None:
        del self._timers["keys"]
        self._act(self._keys.flush())

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Forward(data):
                    self._type(data)
                case Leave():
                    self._leave()
                case Local.HELP:
                    self.notice(status.HELP)
                case Local.SYNC:
                    self.notice(self._sync_text())
                case Local.SUSPEND:
                    self._spawn(self._suspend())
                case Paste(text, raw):
                    self._on_paste(text, raw)

    def _type(self, data: bytes) -> None:
        if self._options.view:
            return
        self._end_lasting()
        if self._deferred is not None:
            self._deferred += data
        elif self._link.typed(data):
            self._send_input()
        else:
            self.notice("no room for more keys; these were not taken", bell=True)
        if self._link.room < _ROOM_LOW and self._away_since is None:
            self._terminal.pause_reading()

    def _send_input(self) -> None:
        if self._socket is not None:
            for message in self._link.to_send():
                self._socket.send_now(message)

    def _on_paste(self, text: bytes, raw: bytes) -> None:
        path = file_in(text)
        if path is None or self._put is None or self._deferred is not None:
            self._type(raw)
        else:
            self._deferred = bytearray()
            self._spawn(self._upload(path, text, raw, self._put))

    async def _upload(self, path: Path, text: bytes, raw: bytes, put: Callable[[Path], Awaitable[str]]) -> None:
        typed = raw
        try:
            typed = raw.replace(text, os.fsencode(await put(path)))
        except CattyError as error:
            self.notice(f"{path.name} was not uploaded: {error.message}", bell=True)
        deferred, self._deferred = self._deferred or b"", None
        self._type(typed + bytes(deferred))

    # ------------------------------------------------------------------------------------------ screen

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            await self._terminal.write(data)
            self._modes.feed(data)

    async def _draw(self, first: bytes = b"") -> None:
        """Show, change or remove our line as things stand now."""
        async with self._writing:
            text = self._line_text()
            if not self._modes.ground or text == self._line.text:
                data = b""
            elif text:
                cols, rows = self._terminal.size()
                data = self._line.show(text, cols, rows, scrolls=not self._modes.alternate)
            else:
                data = self._line.remove()
                self._repaint()
            await self._terminal.write(first + data)

    def _line_text(self) -> str:
        now = time.monotonic()
        if self._met and self._away_since is not None and now - self._away_since > constants.OFFLINE_NOTICE_S:
            return status.offline(now - self._away_since, self._link.pending)
        text, until = self._notice
        return text if now < until else ""

    def _repaint(self) -> None:
        """Have the program paint the screen again: it does when the size really changes."""
        if self._socket is not None and not self._options.view:
            cols, rows = self._terminal.size()
            self._socket.send_now(pack_size(cols, max(1, rows - 1)))
            self._timers["repaint"] = self._loop.call_later(_REPAINT_S, self._on_resize)

    def _on_resize(self) -> None:
        if self._socket is not None and self._away_since is None:
            self._socket.send_now(pack_size(*self._terminal.size()))

    async def _suspend(self) -> None:
        async with self._writing:
            self._terminal.restore(self._line.remove() + self._modes.undo() + b"\r\n")
            os.kill(os.getpid(), signal.SIGTSTP)  # returns when the shell brings us back
            self._terminal.make_raw()
            await self._terminal.write(self._modes.redo())
        self._repaint()
        if self._socket is not None:
            self._socket.probe(_PROBE_S)

    async def _tick(self) -> None:
        """What happens by the clock: our line, and suspicion of a connection that is silent after keys or after a sleep."""
        behind = time.time() - time.monotonic()
        while True:
            await asyncio.sleep(0.25 if self._away_since is not None or self._line.text else 1.0)
            await self._draw()
            slept = time.time() - time.monotonic() - behind
            behind += slept
            socket = self._socket
            if socket is None:
                continue
            unanswered = self._link.unanswered and self._loop.time() - socket.last_heard > _PROBE_S
            if abs(slept) > _ASLEEP_S or unanswered:
                with contextlib.suppress(ConnectionError):
                    socket.probe(_PROBE_S)
