"""One WebSocket to a session, through the gateway: whole messages both ways, bounded, watched for silence.

Used by attach, exec and sync. A connection that is lost raises ConnectionLost; whether to connect again is the caller's business.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote, urlsplit

import picows
from picows import WSMsgType

from catty import __version__, constants
from catty.client.api import unix_socket
from catty.client.config import Server
from catty.client.debug import debug
from catty.errors import (
    CattyError,
    CertificateUntrusted,
    ConnectionLost,
    NotLoggedIn,
    RemoteError,
    ServerUnreachable,
    from_json,
)
from catty.wire.frames import SUBPROTOCOL
from catty.wire.sockets import UnixSocket

__all__ = ["Connector", "WebSocket", "connect", "session_path"]

Connector = Callable[[], Awaitable["WebSocket"]]
"""Opens one more connection of the same kind."""

CONNECT_TIMEOUT_S: Final = 15.0
_MESSAGE_MAX_BYTES: Final = 4 * constants.MIB
_QUEUE_HIGH_BYTES: Final = 4 * constants.MIB  # above the acknowledgement window: an honest peer never fills it
_QUEUE_LOW_BYTES: Final = 1 * constants.MIB
_SEND_HIGH_BYTES: Final = 1 * constants.MIB


class WebSocket(picows.WSListener):
    """An open connection. Made by `connect()`."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._messages: deque[bytes | str] = deque()
        self._queued = 0
        self._parts = bytearray()  # of a message sent in several frames
        self._parts_are_text = False
        self._paused = False
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed: str | None = None  # why
        self._watch: asyncio.TimerHandle | None = None
        self.last_heard = self._loop.time()

    # ------------------------------------------------------------------------------------------ for the user

    async def receive(self) -> bytes | str:
        """The next message. Raises ConnectionLost once all that arrived has been taken and the connection is gone."""
        while not self._messages:
            if self._closed is not None:
                raise ConnectionLost(server=self._server, reason=self._closed)
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._queued -= len(message)
        if self._paused and self._queued <= _QUEUE_LOW_BYTES and self._closed is None:
            self._paused = False
            self._transport.underlying_transport.resume_reading()
        return message

    def send_now(self, message: bytes | str) -> None:
        """Send without waiting; for callers that bound what they send themselves. On a lost connection nothing happens."""
        if self._closed is None:
            kind = WSMsgType.TEXT if isinstance(message, str) else WSMsgType.BINARY
            self._transport.send(kind, message)

    async def send(self, message: bytes | str) -> None:
        """Send, and wait while the other side does not take what was sent. Raises ConnectionLost."""
        self.send_now(message)
        await self._writable.wait()
        if self._closed is not None:
            raise ConnectionLost(server=self._server, reason=self._closed)

    def probe(self, within: float) -> None:
        """Give the connection up unless something is heard `within` seconds."""
        if self._closed is None:
            asked = self._loop.time()
            self._transport.send_ping()
            self._loop.call_later(within, self._give_up_unless_heard_since, asked)

    async def close(self) -> None:
        """End the connection; what was sent still goes out."""
        if self._closed is None:
            self._transport.send_close(picows.WSCloseCode.OK)
            self._transport.disconnect()
        if self._watch is not None:
            self._watch.cancel()

    # ------------------------------------------------------------------------------------------ picows calls these

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=_SEND_HIGH_BYTES)
        self._keep_watch()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        self.last_heard = self._loop.time()
        kind = frame.msg_type
        if kind in (WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CONTINUATION):
            self._part(frame)
        elif kind == WSMsgType.PING:
            if self._writable.is_set():  # answers that the other side does not read must not pile up
                transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            self._lost(frame.get_close_reason() or f"closed by the other side ({frame.get_close_code()})")

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002  # picows' signature
        self._lost("the connection broke")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # ------------------------------------------------------------------------------------------

    def _part(self, frame: picows.WSFrame) -> None:
        if frame.msg_type != WSMsgType.CONTINUATION:
            self._parts.clear()
            self._parts_are_text = frame.msg_type == WSMsgType.TEXT
        self._parts += frame.get_payload_as_memoryview()
        if len(self._parts) > _MESSAGE_MAX_BYTES:
            self._abort("a message was too long")
            return
        if not frame.fin:
            return
        data = bytes(self._parts)
        self._parts.clear()
        self._messages.append(data.decode(errors="replace") if self._parts_are_text else data)
        self._queued += len(data)
        self._arrived.set()
        if self._queued > _QUEUE_HIGH_BYTES and not self._paused:
            self._paused = True
            self._transport.underlying_transport.pause_reading()

    def _keep_watch(self) -> None:
        silence = self._loop.time() - self.last_heard
        if silence >= constants.PING_GIVE_UP_S and not self._paused:
            self._abort(f"nothing heard for {silence:.0f} s")
            return
        if silence >= constants.PING_EVERY_S:
            self._transport.send_ping()
        self._watch = self._loop.call_later(constants.PING_EVERY_S, self._keep_watch)

    def _give_up_unless_heard_since(self, asked: float) -> None:
        if self._closed is None and self.last_heard < asked and not self._paused:
            self._abort("no answer")

    def _abort(self, reason: str) -> None:
        self._lost(reason)
        self._transport.disconnect(graceful=False)

    def _lost(self, reason: str) -> None:
        if self._closed is None:
            debug(f"connection lost: {reason}")
            self._closed = reason
        if self._watch is not None:
            self._watch.cancel()
        self._arrived.set()
        self._writable.set()


def session_path(label: str, what: str) -> str:
    """The path of a session's WebSocket; `what` is connect (with `?view=1`), exec or sync."""
    return f"/v1/sessions/{quote(label, safe='')}/{what}"


async def connect(server: Server, path: str) -> WebSocket:
    """Open a connection. Raises the server's own error, NotLoggedIn, CertificateUntrusted, or ServerUnreachable where nobody answers."""
    logging.getLogger("picows").setLevel(logging.CRITICAL)  # it would write over the agent's screen
    token = server.token
    if not token and not server.embedded:
        raise NotLoggedIn(server=server.name)
    parts = urlsplit("http://localhost" if server.embedded else server.url)
    url = f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}{path}"
    headers = {
        "Authorization": f"Bearer {token}",
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
        "User-Agent": f"catty/{__version__}",
    }
    try:
        # picows' own proxy and redirect handling are off: a token goes to the server that it belongs to, or nowhere
        _, listener = await asyncio.wait_for(
            picows.ws_connect(
                lambda: WebSocket(server.name),
                url,
                extra_headers=headers,
                max_redirects=0,
                max_frame_size=_MESSAGE_MAX_BYTES,
                websocket_handshake_timeout=CONNECT_TIMEOUT_S,
                socket_factory=(lambda _: _unix(server.socket_path)) if server.embedded else None,
                enable_auto_pong=False,  # see WebSocket.on_ws_frame
                use_aiofastnet=False,
            ),
            CONNECT_TIMEOUT_S,
        )
    except picows.WSError as error:
        raise _refused(server, error) from None
    except TimeoutError:
        raise ServerUnreachable(server=server.name, reason="no answer in time") from None
    except ssl.SSLCertVerificationError as error:
        raise CertificateUntrusted(server=server.name, reason=error.verify_message) from None
    except OSError as error:
        raise ServerUnreachable(server=server.name, reason=(error.strerror or str(error)).lower()) from None
    assert isinstance(listener, WebSocket)  # noqa: S101  # what the factory made
    return listener


def _unix(path: str) -> socket.socket:
    return UnixSocket.adopt(unix_socket(path, CONNECT_TIMEOUT_S))


def _refused(server: Server, error: Exception) -> CattyError:
    """The server's answer to an upgrade that it refused."""
    response, body = getattr(error, "response", None), getattr(error, "raw_body", None)
    if response is None:
        return ServerUnreachable(server=server.name, reason="it closed the connection")
    value: Any = None
    try:
        value = json.loads(body or b"")
    except ValueError:
        debug(f"refused with {response.status} and no JSON")
    if response.status == 401:
        return NotLoggedIn(server=server.name)
    if isinstance(value, dict) and "error" in value:
        return from_json(value)
    return RemoteError(
        code="error",
        message=f"{server.name} answered {int(response.status)}",
        hint="`catty version` shows both sides.",
        exit_code=1 if response.status < 500 else 7,
    )
