"""`terminal`'s side of its channel to `init` (`initproto.py` has the messages)."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from catty.runtime import initproto
from catty.runtime.initproto import Message

__all__ = ["InitLink", "InitRefused", "PublicClaim"]


class InitRefused(Exception):
    """init answered a request with an error; `code` is one of those in `initproto.py`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PublicClaim(NamedTuple):
    """The claim without its secrets. `conversation`: paths below the agent's home that belong to a snapshot."""

    machine: str
    session: str
    label: str
    token: str
    agent: str
    conversation: tuple[str, ...]


class InitLink:
    """The channel. `boot` is init's first message, `boot_fds` the descriptors beside it, `listener` the inherited listening socket."""

    def __init__(self, channel: socket.socket, listener: socket.socket) -> None:
        self.listener = listener
        self.boot: Message = {}
        self.boot_fds: list[int] = []
        self.claim: PublicClaim | None = None
        self._on_event: Callable[[Message, list[int]], None] | None = None
        self._early: list[tuple[Message, list[int]]] = []
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._outbox: deque[tuple[Message, tuple[int, ...]]] = deque()
        self._number = 0
        self._booted = asyncio.Event()
        channel.setblocking(False)
        self._loop.add_reader(channel, self._on_readable)

    @classmethod
    async def open(cls, listener: int, channel: int) -> InitLink:
        """The link over two inherited descriptors, once init's `boot` has arrived."""
        link = cls(socket.socket(fileno=channel), socket.socket(fileno=listener))
        await link._booted.wait()
        return link

    def listen(self, on_event: Callable[[Message, list[int]], None]) -> None:
        """Call `on_event` with each event but `boot` and `claimed`, and the descriptors beside it, which are then the callee's."""
        self._on_event = on_event
        while self._early:
            on_event(*self._early.pop(0))

    @property
    def token(self) -> str | None:
        """What the server must present; None before the claim."""
        return self.claim.token if self.claim is not None else None

    async def request(self, op: str, fds: tuple[int, ...] = (), **fields: object) -> Message:
        """init's reply. `fds` stay the caller's and must stay open until then. Raises InitRefused."""
        self._number += 1
        number = self._number
        future = self._waiting[number] = self._loop.create_future()
        self._outbox.append(({"id": number, "op": op, **fields}, fds))
        self._flush()
        try:
            reply: Message = await future
        finally:
            self._waiting.pop(number, None)
        if not reply.get("ok"):
            raise InitRefused(str(reply.get("error")), str(reply.get("message")))
        return reply

    def _flush(self) -> None:
        while self._outbox:
            message, fds = self._outbox[0]
            try:
                initproto.send(self._channel, message, fds)
            except BlockingIOError:
                self._loop.add_writer(self._channel, self._flush)
                return
            self._outbox.popleft()
        self._loop.remove_writer(self._channel)

    def _on_readable(self) -> None:
        while True:
            try:
                received = initproto.receive(self._channel)
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = None
            if received is None:
                raise SystemExit(0)  # init is gone, and with it the machine
            self._on_message(*received)

    def _on_message(self, message: Message, fds: list[int]) -> None:
        event = message.get("event")
        if event is None:
            future = self._waiting.get(message["id"])
            if future is not None and not future.done():
                future.set_result(message)
        elif event == "boot":
            self.boot, self.boot_fds = message, fds
            self._set_claim(message["claim"])
            self._booted.set()
        elif event == "claimed":
            self._set_claim(message["claim"])
        elif self._on_event is not None:
            self._on_event(message, fds)
        else:
            self._early.append((message, fds))

    def _set_claim(self, claim: Message | None) -> None:
        if claim is not None:
            self.claim = PublicClaim(**{**claim, "conversation": tuple(claim["conversation"])})
