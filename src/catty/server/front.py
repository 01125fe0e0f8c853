"""The first bytes of each connection: is it an upgrade to a WebSocket, or plain HTTP?

An upgrade goes to the gateway, which copies bytes from then on; all else goes to aiohttp, head and all, as if aiohttp had accepted the
connection itself. So one port serves both, and nothing of aiohttp's stands between a keystroke and its machine.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import struct
import time
import weakref
from collections.abc import Callable
from typing import Final

from catty.errors import RequestTooLarge
from catty.server.access import Door
from catty.server.gateway import refuse
from catty.server.heads import END, HEAD_MAX_BYTES

__all__ = ["Front", "Guests"]

HEAD_S: Final = 10.0  # an honest client sends its head at once
_COUNT_S: Final = 0.5  # a full house is counted no more often
_REST_MAX_BYTES: Final = 16 << 10
_UPGRADE: Final = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
_CREDENTIALS: Final = struct.Struct("3i")

Upgrade = Callable[[asyncio.Transport, bytes, bytearray, Door], asyncio.Task[None]]
"""Called with the transport, the head, the bytes after it (which grow until the transport gets another protocol), and the door;
cancelled when the client leaves."""


class Guests:
    """The connections of one listener, at most `most` at a time: anybody may make some, and descriptors are needed for other things too."""

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._all: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._counted = -math.inf
        self._waiting: set[asyncio.Transport] = set()

    def enter(self, transport: asyncio.Transport) -> bool:
        """Take in a connection that has sent no head yet, if there is room."""
        now = time.monotonic()
        if len(self._all) >= self._most and now - self._counted >= _COUNT_S:
            self._counted = now
            self._all = weakref.WeakSet(known for known in self._all if not known.is_closing())
        if len(self._all) >= self._most:
            return False
        self._all.add(transport)
        self._waiting.add(transport)
        return True

    def has_spoken(self, transport: asyncio.Transport) -> None:
        """Its head has come, or it has gone."""
        self._waiting.discard(transport)

    def abort_waiting(self) -> None:
        """Drop those that have sent no head."""
        for transport in list(self._waiting):
            transport.abort()


class Front(asyncio.Protocol):
    """`web` makes a protocol for plain HTTP; `upgrade` takes the rest."""

    def __init__(self, door: Door, web: Callable[[], asyncio.Protocol], upgrade: Upgrade, guests: Guests) -> None:
        self._door = door
        self._guests = guests
        self._web = web
        self._upgrade = upgrade
        self._head, self._rest = bytearray(), bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._serving: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio. On a Unix socket only this user and root get in."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # for mypy
        self._transport = transport
        trusted = bool(self._door.listen) or _trusted(transport.get_extra_info("socket"))
        if not trusted or not self._guests.enter(transport):
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(HEAD_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._transport is None:
            return
        if self._serving is not None:
            # Read on, so that a client which leaves is noticed; but no more than a little.
            self._rest += data
            if len(self._rest) > _REST_MAX_BYTES:
                self._transport.pause_reading()
            return
        self._head += data
        end = self._head.find(END)
        if end < 0 and len(self._head) <= HEAD_MAX_BYTES:
            return
        self._head_is_over()
        if not 0 <= end <= HEAD_MAX_BYTES:
            refuse(self._transport, RequestTooLarge(limit=f"a head of {HEAD_MAX_BYTES} bytes"))
            return
        end += len(END)
        if _UPGRADE.search(self._head, 0, end):
            self._rest += self._head[end:]
            self._serving = self._upgrade(self._transport, bytes(self._head[:end]), self._rest, self._door)
            return
        protocol = self._web()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(bytes(self._head))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See asyncio."""
        self._head_is_over()
        if self._serving is not None:
            self._serving.cancel()

    def _head_is_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._guests.has_spoken(self._transport)


def _trusted(sock: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is this user's or root's."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS: the socket's mode alone says who may connect
        return True
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in (os.geteuid(), 0)
