"""The server's end of a machine's `/control` (wire/control.py). Whatever comes from the machine is hostile input."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

import picows

from catty.errors import BadRequest, ClaimRefused, MachineError, MachineUnreachable
from catty.wire import control
from catty.wire.sockets import UnixSocket

__all__ = ["Control", "open_websocket", "printable"]

_REASON_MAX: Final = 200  # characters of a machine's own words that get into an error
_HANDSHAKE_S: Final = 10.0
_REPLY_MAX_BYTES: Final = 64 << 10  # a status has 300
_TALK_MAX_BYTES: Final = 256 << 10  # heard since the last request; an honest machine tells little beside its replies
_FRAME_COST: Final = 64  # bytes that a frame counts for beside its content


async def open_websocket(
    sock: socket.socket, path: str, token: str, listener: Callable[[], picows.WSListener], max_message: int
) -> picows.WSTransport:
    """A WebSocket to a machine over the connected `sock`, which it closes whatever happens. Raises MachineUnreachable."""
    if sock.family == socket.AF_UNIX:
        sock = UnixSocket.adopt(sock)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connecting = asyncio.ensure_future(
        picows.ws_connect(
            listener,
            f"ws://machine{path}",
            socket_factory=lambda _url: sock,
            extra_headers=headers,
            max_frame_size=max_message,
            max_redirects=0,  # a machine must not send the server elsewhere
            websocket_handshake_timeout=_HANDSHAKE_S,
            enable_auto_pong=False,  # a machine that pings and does not read would fill this process's memory
            use_aiofastnet=False,
        )
    )
    try:
        await asyncio.wait([connecting])
        transport = connecting.result()[0]
        # What the machine does wrong becomes picows' exception; one that nobody looks at is a traceback in the log.
        asyncio.ensure_future(transport.wait_disconnected()).add_done_callback(_looked_at)
        return transport
    except (OSError, TimeoutError, picows.WSError) as error:
        sock.close()
        raise MachineUnreachable(reason=f"{type(error).__name__} at {path}") from None
    except asyncio.CancelledError:
        # Cancelled itself, picows would leave its transport open. So the connection is ended under it.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait([connecting])
        if connecting.exception() is None:
            connecting.result()[0].disconnect()
        raise


def _looked_at(end: asyncio.Future[None]) -> None:
    if not end.cancelled():
        end.exception()


class Control(picows.WSListener):
    """A control connection; `closed` is done when it is. Events that the machine tells are not looked at, and a machine that does not
    stop talking is not listened to: parsing its words would keep this process from all others."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: picows.WSTransport | None = None
        self._next = 1
        self._heard = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @classmethod
    async def open(cls, sock: socket.socket, token: str) -> Control:
        """Speak control over the connected `sock`; `token` is the claim's ("" before the claim). Raises MachineUnreachable."""
        self = cls()
        await open_websocket(sock, "/control", token, lambda: self, _REPLY_MAX_BYTES)
        return self

    async def request(self, op: str, *, timeout: float, **fields: Any) -> dict[str, Any]:
        """The machine's reply to `op`. Raises MachineUnreachable (gone, or silent for `timeout` seconds) and MachineError (refused)."""
        if self._transport is None or self.closed.done():
            raise MachineUnreachable(reason="its control connection is closed")
        number, self._next, self._heard = self._next, self._next + 1, 0
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._transport.send(picows.WSMsgType.TEXT, control.dump({"id": number, "op": op, **fields}).encode())
            async with asyncio.timeout(timeout):
                message: dict[str, Any] = await reply
        except TimeoutError:
            raise MachineUnreachable(reason=f"no reply to '{op}' in {timeout:g} s") from None
        finally:
            del self._waiting[number]
        if message.get("ok") is not True:
            reason = printable(message.get("message") or message.get("error") or "no reason given")
            raise (
                ClaimRefused(reason=reason) if op == "claim" else MachineError(f"the machine refused '{op}': {reason}")
            )
        return message

    def close(self) -> None:
        """End the connection; the machine goes on."""
        if self._transport is not None:
            self._transport.disconnect()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        """See picows."""
        self._transport = transport

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """See picows. Anything but a whole text message with an object in it ends the connection."""
        self._heard += frame.payload_size + _FRAME_COST
        if self._heard > _TALK_MAX_BYTES:
            transport.disconnect()
            return
        if frame.msg_type in (picows.WSMsgType.PING, picows.WSMsgType.PONG):
            return
        if frame.msg_type is not picows.WSMsgType.TEXT or not frame.fin:
            transport.disconnect()
            return
        try:
            message = control.parse(frame.get_payload_as_bytes())
        except (BadRequest, UnicodeDecodeError):
            transport.disconnect()
            return
        number = message.get("id")
        reply = self._waiting.get(number) if type(number) is int else None
        if reply is not None and not reply.done():
            reply.set_result(message)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002
        """See picows."""
        if not self.closed.done():
            self.closed.set_result(None)
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(MachineUnreachable(reason="it closed the connection"))


def printable(text: Any) -> str:
    """What a machine said, fit for an error message or a log."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[:_REASON_MAX])
