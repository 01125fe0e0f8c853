"""One WebSocket as whole messages both ways, with bounded memory: a picows listener for either end.

Only the compiled module of picows is imported, so that the runtime's processes stay small (runtime/lean.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from picows.picows import WSFrame, WSListener, WSMsgType, WSTransport

__all__ = ["Channel"]

_UNREAD_BYTES: Final = 4 << 20  # beyond that the connection is left unread until somebody takes what is here
_UNSENT_BYTES: Final = 1 << 20
_MESSAGE_COST: Final = 128  # bytes of memory beside a message's content; about
_PINGS_MAX: Final = 1000  # between two messages sent from here; proxies send one every few seconds


class Channel(WSListener):
    """Give one to picows for each connection, without its own answers to pings: those know no bounds. Messages in several frames are
    refused: nobody here sends such."""

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._unread = 0
        self._pings = 0
        self._transport: WSTransport | None = None
        self._arrived, self._writable = asyncio.Event(), asyncio.Event()
        self._lost: str | None = None

    @property
    def connected(self) -> bool:
        """Whether the handshake is over. picows may return from a connect whose other side went away in the middle of it."""
        return self._transport is not None

    async def send(self, message: str | bytes) -> None:
        """Send one message, once the other side has taken most of what was sent before. Raises ConnectionError."""
        await self._writable.wait()
        if self._lost is not None or self._transport is None:
            raise ConnectionError(self._lost)
        self._pings = 0
        self._transport.send(WSMsgType.TEXT if isinstance(message, str) else WSMsgType.BINARY, message)

    async def receive(self) -> str | bytes:
        """The next message, also one that came before the end. Raises ConnectionError."""
        while not self._messages:
            if self._lost is not None:
                raise ConnectionError(self._lost)
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._unread -= len(message) + _MESSAGE_COST
        if self._unread < _UNREAD_BYTES and self._lost is None and self._transport is not None:
            self._transport.underlying_transport.resume_reading()
        return message

    def close(self) -> None:
        """Drop the connection; what was sent still goes out."""
        if self._transport is not None:
            self._transport.disconnect()

    def on_ws_connected(self, transport: WSTransport) -> None:
        """See picows."""
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        self._writable.set()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """See picows."""
        match frame.msg_type:
            case WSMsgType.TEXT | WSMsgType.BINARY if frame.fin:
                data = frame.get_payload_as_bytes()
                text = frame.msg_type is WSMsgType.TEXT
                self._messages.append(data.decode(errors="replace") if text else data)
                self._unread += len(data) + _MESSAGE_COST
                if self._unread >= _UNREAD_BYTES:
                    transport.underlying_transport.pause_reading()
                self._arrived.set()
            case WSMsgType.PING | WSMsgType.PONG if self._pings < _PINGS_MAX:
                self._pings += 1
                if frame.msg_type is WSMsgType.PING and self._writable.is_set():
                    transport.send_pong(frame.get_payload_as_bytes())
            case WSMsgType.PING | WSMsgType.PONG:
                self._end("pings without end")
                transport.disconnect()
            case WSMsgType.CLOSE:
                self._end("closed by the other side")
                transport.disconnect()
            case _:
                self._end("a fragmented message")
                transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002  # picows' signature
        """See picows."""
        self._end("the other side is gone")

    def pause_writing(self) -> None:
        """See picows."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See picows."""
        self._writable.set()

    def _end(self, why: str) -> None:
        self._lost = self._lost or why
        self._arrived.set()
        self._writable.set()
