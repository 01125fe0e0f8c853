"""`exec`: a command in the machine with this process's standard streams, or with the user's terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import CancelledError
from typing import Any, Final

from catty.client.keys import HOLD_S, Action, Forward, Interrupt, Keys, Leave
from catty.client.link import WebSocket
from catty.client.modes import Modes
from catty.client.tty import Terminal
from catty.errors import CattyError, ConnectionLost
from catty.wire.attach import Exec
from catty.wire.frames import FrameType, pack, pack_json, pack_size, unpack, unpack_json

__all__ = ["execute"]

_LEFT: Final = 130
_CHUNK: Final = 64 * 1024
_FORWARDED: Final = {signal.SIGINT: "INT", signal.SIGTERM: "TERM", signal.SIGHUP: "HUP"}
_GRACE_S: Final = 5.0  # for a command to end by a TERM or HUP, and for its machine to say so
_INSIST: Final = 3  # this many signals without an answer end the client by itself


async def execute(socket: WebSocket, command: Exec, terminal: Terminal | None) -> int:
    """Run `command` over a fresh connection; returns its exit code (128 + signal). With `terminal`, that is its PTY.

    Signals go to the command. Raises ConnectionLost, BrokenPipeError; the machine ends a command whose connection is gone.
    """
    run = _OnTerminal(socket, terminal) if terminal is not None else _OnStreams(socket)
    socket.send_now(pack_json(FrameType.START, 0, command.to_json()))
    try:
        run.begin()
        receiving = asyncio.ensure_future(run.receive())
        done, _ = await asyncio.wait({receiving, run.left}, return_when=asyncio.FIRST_COMPLETED)
        if receiving in done:
            return await receiving
        receiving.cancel()
        return await run.left
    finally:
        run.end()
        await socket.close()


class _Run:
    """What both kinds share. `left` is done when the user goes before the command ends."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.loop = asyncio.get_running_loop()
        self.left: asyncio.Future[int] = self.loop.create_future()
        self.sent = 0  # bytes of input
        self.signals = 0

    def begin(self) -> None:
        for number in _FORWARDED:
            self.loop.add_signal_handler(number, self.on_signal, number)

    def end(self) -> None:
        for number in _FORWARDED:
            self.loop.remove_signal_handler(number)

    def on_signal(self, number: signal.Signals) -> None:
        self.signals += 1
        self.socket.send_now(pack_json(FrameType.SIGNAL, 0, {"signal": _FORWARDED[number]}))
        code = _LEFT if number == signal.SIGINT else 128 + number
        if self.signals >= _INSIST:
            self.leave(code)
        elif number != signal.SIGINT:
            self.loop.call_later(_GRACE_S, self.leave, code)  # whoever sends these means this process too

    def leave(self, code: int) -> None:
        if not self.left.done():
            self.left.set_result(code)

    async def write(self, fd: int, data: bytes) -> None:
        raise NotImplementedError

    async def receive(self) -> int:
        """Pass on what the command prints until it exits; returns its code."""
        while True:
            message = await self.socket.receive()
            if isinstance(message, str):
                continue
            frame = unpack(message)
            match frame.type:
                case FrameType.OUT:
                    await self.write(1, bytes(frame.payload))
                case FrameType.ERR:
                    await self.write(2, bytes(frame.payload))
                case FrameType.PING:
                    self.socket.send_now(pack(FrameType.PONG, frame.offset, frame.payload))
                case FrameType.EXIT:
                    return _exit_code(unpack_json(frame))
                case FrameType.NOTICE:
                    value = unpack_json(frame)
                    if value.get("level") == "error":
                        raise CattyError(str(value.get("message", "")), hint="")
                case _:
                    pass


class _OnStreams(_Run):
    """Standard input, output and error of this process, whatever they are."""

    def begin(self) -> None:
        super().begin()
        # A thread of its own: a file cannot be watched, and a read that blocks for ever must not keep us from ending.
        threading.Thread(target=self._feed, name="stdin", daemon=True).start()

    def _feed(self) -> None:
        try:
            while data := os.read(0, _CHUNK):
                asyncio.run_coroutine_threadsafe(self._send(FrameType.IN, data), self.loop).result()
            asyncio.run_coroutine_threadsafe(self._send(FrameType.EOF, b""), self.loop).result()
        except (OSError, RuntimeError, CattyError, CancelledError):
            pass  # no input, or nobody to take it any more: the command's end is what counts

    async def _send(self, type_: FrameType, data: bytes) -> None:
        await self.socket.send(pack(type_, self.sent, data))
        self.sent += len(data)

    async def write(self, fd: int, data: bytes) -> None:
        await asyncio.to_thread(_write_all, fd, data)


class _OnTerminal(_Run):
    """The user's terminal, raw. `~.` after Enter leaves; Ctrl+C is the command's."""

    def __init__(self, socket: WebSocket, terminal: Terminal) -> None:
        super().__init__(socket)
        self._terminal = terminal
        self._keys = Keys(Interrupt.NEVER)
        self._modes = Modes()
        self._flush: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        super().begin()
        self.loop.add_signal_handler(signal.SIGWINCH, self._resize)
        self._terminal.make_raw()
        self._terminal.start_reading(self._on_input)

    def end(self) -> None:
        self._terminal.pause_reading()
        self._terminal.restore(self._modes.undo())
        self.loop.remove_signal_handler(signal.SIGWINCH)
        super().end()

    def on_signal(self, number: signal.Signals) -> None:
        self.leave(128 + number)

    def _resize(self) -> None:
        self.socket.send_now(pack_size(*self._terminal.size()))

    def _on_input(self, data: bytes) -> None:
        if not data:
            self.leave(128 + signal.SIGHUP)
            return
        if self._flush is not None:
            self._flush.cancel()
        self._act(self._keys.feed(data, self.loop.time()))
        if self._keys.holding:
            self._flush = self.loop.call_later(HOLD_S, lambda: self._act(self._keys.flush()))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Forward):
                self.socket.send_now(pack(FrameType.IN, self.sent, action.data))
                self.sent += len(action.data)
            elif isinstance(action, Leave):
                self.leave(_LEFT)

    async def write(self, fd: int, data: bytes) -> None:  # noqa: ARG002  # a PTY has one output
        await self._terminal.write(data)
        self._modes.feed(data)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _exit_code(value: dict[str, Any]) -> int:
    code, number = value.get("code"), value.get("signal")
    if isinstance(code, int):
        return code
    if isinstance(number, int):
        return 128 + number
    raise ConnectionLost(server="the machine", reason="the command's end is unknown")
