"""WebSockets accepted inside a machine: what `terminal` and `workspace` share.

    async def handle(connection: Connection) -> None:
        message = await connection.receive()          # bytes or str; Closed once the other side has gone
        await connection.send(b"…")                   # returns when it may send more: never more than HIGH_WATER waits in here

    server = await serve(listening_socket, {"/save": Route(handle)}, token=lambda: claim.token)

A handler runs as a task of its own per connection. When it returns the connection is closed with 1000; BadRequest closes it with
1002 and the error's text, anything else with 1011. A request for an unknown path is answered 404, one without the right
`Authorization: Bearer` 401 (403 before the claim), unless its route is `open`: then the handler asks `connection.authorized`.

Messages are whole: fragments are put together, up to `Route.max_message` bytes, beyond it the connection is closed with 1009. Input
that is not received is held back at the other side (RECEIVE_HIGH). Who needs each message at once, without a task switch, calls
`connection.deliver(callback)`. A process of the runtime imports `catty.runtime.lean` before this module.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, NamedTuple

from picows.common import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import (  # type: ignore[attr-defined]  # its stub leaves the protocol class out
    WSAutoPingStrategy,
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSProtocol,
    WSTransport,
)

from catty.constants import FRAME_MAX_BYTES, KIB
from catty.errors import BadRequest
from catty.wire.sockets import UnixSocket

__all__ = ["Closed", "Connection", "Handler", "Route", "serve"]

RECEIVE_HIGH: Final = 256 * KIB  # bytes received and not asked for, beyond which the other side is made to wait
HIGH_WATER: Final = 64 * KIB  # bytes accepted for sending, beyond which `send` waits
CLOSE_GRACE_S: Final = 2.0  # for the other side to answer a close frame
HANDSHAKE_S: Final = 5.0
_LOOK_S: Final = 1.0  # between two looks at a connection that is not being read
_FLUSH_S: Final = 60.0  # for the other side to read what was sent before the close frame
_REASON_MAX: Final = 123  # bytes; RFC 6455's limit for a close frame's reason
_COPIED_MAX: Final = 8 * KIB  # see Connection.post

_log = logging.getLogger("catty.runtime")


class Closed(Exception):
    """The connection has ended; `code` is the WebSocket close code (1006: without one)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"connection closed ({code})")
        self.code = code


Handler = Callable[["Connection"], Coroutine[Any, Any, None]]
Receiver = Callable[[bytes | str], None]


class Route(NamedTuple):
    """What answers a path. `open`: also without authorization. `max_message`: bytes of one message."""

    handler: Handler
    open: bool = False
    max_message: int = FRAME_MAX_BYTES


class Connection(WSListener):
    """One WebSocket, server side. `authorized`: it presented the claim's token. `writable`: less than HIGH_WATER waits to be sent."""

    def __init__(self, path: str, headers: Mapping[str, str], route: Route, *, authorized: bool) -> None:
        self.path = path
        self.headers = headers
        self.authorized = authorized
        self.writable = True
        self.closed: int | None = None
        self._route = route
        self._transport: WSTransport | None = None
        self._queue: deque[bytes | str] = deque()
        self._queued = 0
        self._held = False
        self._wake = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._ended = asyncio.Event()
        self._fragments = bytearray()
        self._fragment_kind: WSMsgType | None = None
        self._receiver: Receiver | None = None
        self._on_writable: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------ for handlers

    async def receive(self) -> bytes | str:
        """The next message: bytes of a binary one, str of a text. Raises Closed after the last one."""
        while not self._queue:
            if self.closed is not None:
                raise Closed(self.closed)
            self._wake.clear()
            await self._wake.wait()
        message = self._queue.popleft()
        self._queued -= len(message)
        if self._held and self._queued < RECEIVE_HIGH // 2:
            self.hold(held=False)
        return message

    def deliver(self, receiver: Receiver, on_writable: Callable[[], None] | None = None) -> None:
        """From now on call `receiver` with each message as it arrives, and `on_writable` whenever `writable` becomes true again."""
        self._receiver, self._on_writable = receiver, on_writable
        while self._queue and self.closed is None:
            self._dispatch(receiver, self._queue.popleft())
        self._queue.clear()
        self._queued = 0
        self.hold(held=False)

    async def send(self, message: bytes | str) -> None:
        """Send a message; returns when less than HIGH_WATER waits. Raises Closed."""
        self.post(message)
        await self.drained()

    async def drained(self) -> None:
        """Wait until `writable`. Raises Closed."""
        while not self.writable and self.closed is None:
            await self._may_write.wait()
        if self.closed is not None:
            raise Closed(self.closed)

    def post(self, message: bytes | str) -> None:
        """Send a message without waiting; nothing happens on a closed connection. The caller minds `writable`."""
        if self.closed is not None or self._transport is None:
            return
        if isinstance(message, str):
            kind, data = WSMsgType.TEXT, message.encode()
        else:
            kind, data = WSMsgType.BINARY, message
        if len(data) <= _COPIED_MAX:
            self._transport.send(kind, data)
        else:
            # picows gives such a message to `writelines` with a view of its own scratch buffer as the header. asyncio of
            # Python 3.12 keeps the view where it cannot send at once, and the next message overwrites it.
            self._transport.underlying_transport.write(_header(kind, len(data)) + data)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame; messages that come after it are dropped. Twice is once."""
        if self.closed is not None or self._transport is None:
            return
        self._transport.send_close(WSCloseCode(code), reason.encode()[:_REASON_MAX].decode(errors="ignore").encode())
        self.hold(held=False)  # or the answer would never be read
        self._finish(code)
        loop = asyncio.get_running_loop()
        loop.call_later(CLOSE_GRACE_S, self._transport.disconnect)
        loop.call_later(_FLUSH_S, self._transport.disconnect, False)

    async def wait_closed(self) -> None:
        """Until either side has closed the connection, or it broke."""
        await self._ended.wait()

    def hold(self, *, held: bool) -> None:
        """Stop or go on reading from the socket, so that the other side has to wait."""
        if held == self._held or self._transport is None or self.closed is not None:
            return
        self._held = held
        transport: Any = self._transport.underlying_transport
        if held:
            transport.pause_reading()
            asyncio.get_running_loop().call_later(_LOOK_S, self._look_for_end)
        else:
            transport.resume_reading()

    # ------------------------------------------------------------------------------------ from picows

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._task = asyncio.get_running_loop().create_task(self._run())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            code: Any = frame.get_close_code()
            if self.closed is None:
                transport.send_close(WSCloseCode.OK)
                self._finish(int(code) or 1000)
            transport.disconnect()
        elif self.closed is not None or kind == WSMsgType.PONG:
            return
        elif frame.rsv1 or frame.rsv2 or frame.rsv3:
            self.close(1002, "no extension was agreed on")
        elif kind == WSMsgType.PING:
            if self.writable:  # answers that the other side does not read must not pile up
                transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.CONTINUATION or not frame.fin:
            self._on_fragment(frame)
        elif self._fragment_kind is not None:
            self.close(1002, "a message inside a fragmented one")
        else:
            self._on_message(kind, frame.get_payload_as_bytes())

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002  # picows calls it so
        self._finish(1006)

    def pause_writing(self) -> None:
        self.writable = False
        self._may_write.clear()

    def resume_writing(self) -> None:
        self.writable = True
        self._may_write.set()
        if self._on_writable is not None and self.closed is None:
            self._on_writable()

    # ------------------------------------------------------------------------------------ inside

    async def _run(self) -> None:
        try:
            await self._route.handler(self)
            self.close()
        except Closed:
            pass
        except BadRequest as error:
            self.close(1002, error.message)
        except Exception:
            _log.exception("%s failed", self.path)
            self.close(1011, "internal error")

    def _look_for_end(self) -> None:
        """Who does not read does not see the other side go: look, and if so read what little can still come, and the end."""
        if not self._held or self._transport is None or self.closed is not None:
            return
        transport: Any = self._transport.underlying_transport
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            transport.resume_reading()
        else:
            asyncio.get_running_loop().call_later(_LOOK_S, self._look_for_end)

    def _on_fragment(self, frame: WSFrame) -> None:
        first = frame.msg_type != WSMsgType.CONTINUATION
        if first != (self._fragment_kind is None):
            self.close(1002, "fragments out of order")
            return
        if first:
            self._fragment_kind = frame.msg_type
        if len(self._fragments) + frame.payload_size > self._route.max_message:
            self.close(1009, "message too big")
            return
        self._fragments += frame.get_payload_as_memoryview()
        if frame.fin:
            kind, data = self._fragment_kind, bytes(self._fragments)
            self._fragments.clear()
            self._fragment_kind = None
            self._on_message(kind, data)

    def _on_message(self, kind: WSMsgType | None, data: bytes) -> None:
        if len(data) > self._route.max_message:
            self.close(1009, "message too big")
            return
        message: bytes | str = data
        if kind == WSMsgType.TEXT:
            try:
                message = data.decode()
            except UnicodeDecodeError:
                self.close(1007, "text is not UTF-8")
                return
        if self._receiver is not None:
            self._dispatch(self._receiver, message)
            return
        self._queue.append(message)
        self._queued += len(message)
        self._wake.set()
        if self._queued > RECEIVE_HIGH:
            self.hold(held=True)

    def _dispatch(self, receiver: Receiver, message: bytes | str) -> None:
        try:
            receiver(message)
        except BadRequest as error:
            self.close(1002, error.message)

    def _finish(self, code: int) -> None:
        if self.closed is None:
            self.closed = code
            self._wake.set()
            self._may_write.set()
            self._ended.set()


async def serve(
    listener: socket.socket, routes: Mapping[str, Route], *, token: Callable[[], str | None]
) -> asyncio.Server:
    """Answer requests on a listening Unix socket. `token` is asked at each request; None means that there is no claim yet."""
    largest = max(route.max_message for route in routes.values())

    def choose(request: WSUpgradeRequest) -> Connection | WSUpgradeResponseWithListener:
        path = request.path.decode("ascii", "replace").partition("?")[0]
        route = routes.get(path)
        if route is None:
            return _refusal(404)
        expected, presented = token(), request.headers.get("authorization")
        authorized = expected is not None and presented is not None and _same(presented, f"Bearer {expected}")
        if not authorized and not route.open:
            return _refusal(401 if expected is not None else 403)
        if not authorized and expected is not None and presented is not None:
            return _refusal(401)  # a wrong token is no anonymous visitor
        response = WSUpgradeResponse.create_101_response(_agreed(request))
        connection = Connection(path, request.headers, route, authorized=authorized)
        return WSUpgradeResponseWithListener(response, connection)

    def protocol() -> asyncio.BaseProtocol:
        made: asyncio.BaseProtocol = WSProtocol(
            None,  # host and port
            None,  # path
            False,  # is_client_side
            choose,
            _log,
            True,  # disconnect_on_exception
            HANDSHAKE_S,
            False,  # enable_auto_ping
            0,
            0,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # enable_auto_pong: see Connection.on_ws_frame
            largest,
            None,  # extra_headers
            4 * KIB,  # read_buffer_init_size
        )
        return made

    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(protocol, sock=UnixSocket.adopt(listener))


def _agreed(request: WSUpgradeRequest) -> dict[str, str]:
    """The answer to the subprotocols that the client offers: the first one, as the handlers know only one dialect each."""
    offered = request.headers.get("sec-websocket-protocol", "")
    first = offered.partition(",")[0].strip()
    return {"Sec-WebSocket-Protocol": first} if first else {}


def _refusal(status: int) -> WSUpgradeResponseWithListener:
    return WSUpgradeResponseWithListener(WSUpgradeResponse.create_error_response(status, b"refused"), None)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _header(kind: Any, size: int) -> bytes:
    first = 0x80 | int(kind)
    return struct.pack(">BBH", first, 126, size) if size < 1 << 16 else struct.pack(">BBQ", first, 127, size)
