"""The gateway: connects a client's WebSocket with its session's machine, and copies bytes.

It looks at two heads, the client's and the machine's, and writes clean ones of its own: a client cannot reach the machine with headers
of its choice, nor a machine the client. Of the frames after that it reads nothing, and it holds at most `BUFFER_BYTES` per direction and
side: who does not read makes the other one wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import socket
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NoReturn, Self

from catty.errors import (
    BadRequest,
    CattyError,
    MachineUnreachable,
    NotFound,
    NotLoggedIn,
    ProtocolTooOld,
    SessionNotFound,
    SessionNotRunning,
)
from catty.server.access import Door, bearer
from catty.server.db.access import AccessStore, Principal
from catty.server.db.sessions import Session, SessionStore
from catty.server.heads import END, HEAD_MAX_BYTES, RequestHead, parse_request, parse_response, render
from catty.server.sessions.find import resolve
from catty.server.sessions.machines import Machines
from catty.server.sessions.states import State
from catty.wire.frames import SUBPROTOCOL

__all__ = ["Gateway", "refuse"]

BUFFER_BYTES: Final = 32 << 10
_HANDSHAKE_S: Final = 10.0
_LINGER_S: Final = 5.0  # for what is already written; then the connection is cut
_GUARD_S: Final = 2.0  # how soon a revoked token closes its connections
_STATE_POLL_S: Final = 10.0  # how soon a session stopped by another server closes them; by this one: at once

_PATH: Final = re.compile(r"/v1/sessions/([^/]+)/(connect|exec|sync)")
# Public name → (listener, path) of the machine's endpoint.
_TARGETS: Final = {
    "connect": ("terminal", "/attach"),
    "exec": ("terminal", "/exec"),
    "sync": ("workspace", "/sync"),
}
_LOG: Final = logging.getLogger(__name__)


class Gateway:
    """Serves upgrades while it is entered; `clients` counts the live connections of each session."""

    def __init__(
        self, access: AccessStore, sessions: SessionStore, machines: Machines, active: Callable[[str], None]
    ) -> None:
        """`active` is called with a session's id when an `exec` begins and ends: one may be over between two looks at the machine."""
        self._active = active
        self._access = access
        self._sessions = sessions
        self._machines = machines
        self._live: dict[_Splice, Principal] = {}
        self.clients: Counter[str] = Counter()
        self._serving: set[asyncio.Task[None]] = set()
        self._guarding: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        self._guarding = asyncio.create_task(self._guard())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._serving, *([self._guarding] if self._guarding is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def serve(self, client: asyncio.Transport, head: bytes, rest: bytearray, door: Door) -> asyncio.Task[None]:
        """Take over `client`, which sent an upgrade's `head` and then `rest`, see `front.Upgrade`; cancel the task to drop it."""
        task = asyncio.create_task(self._serve(client, head, rest, door))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return task

    async def _serve(self, client: asyncio.Transport, head: bytes, rest: bytearray, door: Door) -> None:
        try:
            request = parse_request(head)
            door.check(request.headers.get("host"), request.headers.get("origin"))
            principal = await self._access.authenticate(bearer(request.headers.get("authorization")))
            if principal is None:
                raise NotLoggedIn(server="this server")
            session, target = await self._find(principal, request)
            splice = await self._connect(client, rest, request, session, target)
        except CattyError as error:
            refuse(client, error)
            return
        except Exception:
            _LOG.exception("gateway failed")
            refuse(client, CattyError("the gateway failed"))
            return
        except asyncio.CancelledError:
            client.abort()
            raise
        self._live[splice] = principal
        self.clients[session.id] += 1
        if target == "exec":
            self._active(session.id)
        try:
            await self._until_over(splice, session)
            await splice.close()
        finally:
            del self._live[splice]
            self.clients[session.id] -= 1
            if target == "exec":
                self._active(session.id)
            await splice.abort()

    async def _guard(self) -> NoReturn:
        """Close connections whose token was revoked or has expired."""
        while True:
            await asyncio.sleep(_GUARD_S)
            try:
                valid = await self._access.valid({principal.token for principal in self._live.values()})
            except Exception as error:
                _LOG.warning("tokens cannot be checked", extra={"reason": str(error)})
                continue
            for splice, principal in list(self._live.items()):
                if principal.token not in valid:
                    splice.end()

    async def _find(self, principal: Principal, request: RequestHead) -> tuple[Session, str]:
        match = _PATH.fullmatch(request.path)
        if match is None or request.method != "GET":
            raise NotFound(f"no WebSocket at {request.path[:80]}")
        reference, target = match.groups()
        offered = _offered(request)
        if target == "connect" and SUBPROTOCOL not in offered:
            # Here existing (v1) clients, which ask for no subprotocol, will get their dialect.
            raise ProtocolTooOld(protocol=SUBPROTOCOL)
        session = await self._sessions.get(resolve(reference, await self._sessions.labels(principal.user)))
        if session is None:
            raise SessionNotFound(label=reference)
        if session.state is not State.RUNNING:
            raise SessionNotRunning(label=session.label, state=session.state)
        return session, target

    async def _connect(
        self, client: asyncio.Transport, rest: bytearray, request: RequestHead, session: Session, target: str
    ) -> _Splice:
        listener, path = _TARGETS[target]
        if not request.upgrades or "sec-websocket-key" not in request.headers:
            raise BadRequest("not a WebSocket handshake")
        outgoing = {
            "Host": "machine",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Authorization": f"Bearer {self._machines.token(session.machine_id)}",
            "X-Catty-Role": "viewer" if request.query.get("view") == "1" else "writer",
        }
        # Without extensions: a compressed frame would cost the machine more than it costs its sender.
        for name in ("Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol"):
            if name.lower() in request.headers:
                outgoing[name] = request.headers[name.lower()]
        machine = await self._machines.dial(session.machine_id, listener)
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                answer, first = await _handshake(machine, render(f"GET {path} HTTP/1.1", outgoing))
            client.write(_clean_answer(answer, _offered(request)) + first)
            return await _Splice.between(client, rest, machine)
        except TimeoutError:
            machine.close()
            raise MachineUnreachable(reason="it does not answer") from None
        except OSError as error:
            machine.close()
            raise MachineUnreachable(reason=str(error)) from None
        except BaseException:
            machine.close()
            raise

    async def _until_over(self, splice: _Splice, session: Session) -> None:
        """Until either side closes, or the session does not run any more."""

        async def stopped() -> None:
            await self._sessions.wait(
                session.id, lambda now: now.state is not State.RUNNING, timeout=math.inf, poll=_STATE_POLL_S
            )

        stop = asyncio.create_task(stopped())
        try:
            await asyncio.wait({stop, splice.over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            await asyncio.gather(stop, return_exceptions=True)


class _Splice:
    """Two transports, each of which gets what comes from the other. `over` is done when either is closed."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transports: list[asyncio.Transport] = []
        self._lost = 0
        self._gone = asyncio.Event()

    @classmethod
    async def between(cls, client: asyncio.Transport, rest: bytearray, machine: socket.socket) -> _Splice:
        """Splice `client`, which sent `rest` already, with the connected socket `machine`."""
        splice = cls()
        towards_client, towards_machine = _Side(splice), _Side(splice)
        towards_client.target = client
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: towards_client, sock=machine)
        towards_machine.target = transport
        splice._transports = [client, transport]
        for end in splice._transports:
            end.set_write_buffer_limits(high=BUFFER_BYTES)
        transport.write(bytes(rest))
        client.set_protocol(towards_machine)
        if client.is_closing():
            splice.end()
        else:
            client.resume_reading()
        return splice

    def end(self) -> None:
        """Enough."""
        if not self.over.done():
            self.over.set_result(None)

    def lost(self) -> None:
        """One side is gone."""
        self._lost += 1
        self.end()
        if self._lost == len(self._transports):
            self._gone.set()

    async def close(self) -> None:
        """Close both sides, once what is written is sent or after a while."""
        for transport in self._transports:
            _close(transport)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self._gone.wait()

    async def abort(self) -> None:
        """Close both sides now."""
        for transport in self._transports:
            transport.abort()
        await self._gone.wait()


class _Side(asyncio.BufferedProtocol):
    """What arrives on one transport goes to `target`."""

    def __init__(self, splice: _Splice) -> None:
        self._splice = splice
        self._buffer = memoryview(
            bytearray(BUFFER_BYTES)
        )  # TLS fills slices of it: of a bytearray those would be copies
        self.target: asyncio.Transport | None = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.target is not None:
            self.target.write(bytes(self._buffer[:nbytes]))

    def pause_writing(self) -> None:
        # This side's transport is full: the other side, which fills it, shall not read.
        if self.target is not None:
            self.target.pause_reading()

    def resume_writing(self) -> None:
        if self.target is not None and not self.target.is_closing():
            self.target.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._splice.lost()


def refuse(client: asyncio.Transport, error: CattyError) -> None:
    """Answer with `error` and close."""
    body = json.dumps(error.to_json()).encode()
    status = HTTPStatus(error.http_status)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    if not client.is_closing():
        client.write(render(f"HTTP/1.1 {status.value} {status.phrase}", headers) + body)
        _close(client)
        asyncio.get_running_loop().call_later(_LINGER_S, client.abort)


def _close(transport: asyncio.Transport) -> None:
    if not transport.is_closing():  # closed twice, a TLS transport forgets what there is to abort
        transport.close()


def _offered(request: RequestHead) -> list[str]:
    return [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]


async def _handshake(sock: socket.socket, request: bytes) -> tuple[bytes, bytes]:
    """(head of the machine's answer, bytes after it). Raises MachineUnreachable, OSError."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request)
    answer = b""
    while END not in answer:
        part = await loop.sock_recv(sock, HEAD_MAX_BYTES)
        if not part or len(answer) > HEAD_MAX_BYTES:
            raise MachineUnreachable(reason="it closed the connection" if not part else "its answer is too long")
        answer += part
    end = answer.index(END) + len(END)
    return answer[:end], answer[end:]


def _clean_answer(answer: bytes, offered: list[str]) -> bytes:
    """The head that the client gets. Raises MachineUnreachable if the machine did not upgrade."""
    try:
        status, headers = parse_response(answer)
    except BadRequest as error:
        raise MachineUnreachable(reason=error.message) from None
    if status != HTTPStatus.SWITCHING_PROTOCOLS:
        raise MachineUnreachable(reason=f"it answered {status}")
    clean = {"Connection": "Upgrade", "Upgrade": "websocket"}
    clean["Sec-WebSocket-Accept"] = headers.get("sec-websocket-accept", "")
    if (chosen := headers.get("sec-websocket-protocol")) in offered and chosen:
        clean["Sec-WebSocket-Protocol"] = chosen
    return render("HTTP/1.1 101 Switching Protocols", clean)
