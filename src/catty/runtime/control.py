"""`/control`: what the server asks of a machine and is told by it (`wire/control.py` has the messages)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from catty import __version__
from catty.errors import BadRequest
from catty.runtime.attach import waiting_notice
from catty.runtime.console import Console
from catty.runtime.execs import SIGNALS
from catty.runtime.initlink import InitLink, InitRefused
from catty.runtime.initproto import Message
from catty.runtime.listen import Connection
from catty.wire import control
from catty.wire.claim import Claim

__all__ = ["Control"]

_BEFORE_CLAIM: Final = ("hello", "claim")
_LEVELS: Final = ("info", "warning", "error")


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Control:
    """The control connections of this machine. `public_key`: hex, "" where claims are not signed."""

    def __init__(self, link: InitLink, console: Console, public_key: str) -> None:
        self._link = link
        self._console = console
        self._public_key = public_key
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: Message = {}

    async def serve(self, connection: Connection) -> None:
        """Answer requests until the connection ends; each in a task of its own, so that a long one delays none."""
        self._connections.add(connection)
        try:
            while True:
                request = control.parse(await connection.receive())
                task = asyncio.get_running_loop().create_task(self._answer(connection, request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            self._connections.discard(connection)

    def agent_changed(self, agent: Message) -> None:
        """Tell the server, and the clients what they wait for."""
        state, before = agent["state"], self._last
        self._last = agent
        if state == "running" and agent["resumed"] is not None:
            self._tell({"event": "agent-started", "pid": agent["pid"], "resumed": agent["resumed"]})
        elif state == "exited" and before.get("state") != "exited":
            self._tell({"event": "agent-exited", "code": agent["code"], "signal": agent["signal"]})
        elif state == "waiting":
            self._tell({"event": "waiting", "for": agent["wants"]})
            self._console.notice(waiting_notice(agent))

    def _tell(self, event: Message) -> None:
        text = control.dump(event)
        for connection in self._connections:
            if connection.authorized:
                connection.post(text)

    async def _answer(self, connection: Connection, request: Message) -> None:
        reply: Message
        try:
            op = request.get("op")
            handler = _OPERATIONS.get(op) if isinstance(op, str) else None
            if handler is None:
                raise _Refused("bad-request", f"no operation {op!r}")
            if not connection.authorized and op not in _BEFORE_CLAIM:
                raise _Refused("not-authorized", "this connection has not shown the claim's token")
            reply = {"ok": True, **await handler(self, connection, request)}
        except (_Refused, InitRefused) as error:
            reply = {"ok": False, "error": error.code, "message": str(error)}
        except BadRequest as error:
            reply = {"ok": False, "error": error.code, "message": error.message}
        connection.post(control.dump({"id": request.get("id"), **reply}))

    # ------------------------------------------------------------------------------------ operations

    async def _hello(self, _connection: Connection, _request: Message) -> Message:
        boot, claim = self._link.boot, self._link.claim
        return {
            "machine": boot["machine"],
            "version": __version__,
            "epoch": boot["epoch"],
            "claimed": claim is not None,
            "session": claim.session if claim is not None else "",
        }

    async def _claim(self, connection: Connection, request: Message) -> Message:
        text = _text(request, "claim")
        if self._public_key:
            _verify(self._public_key, text, request.get("signature"))
        claim = Claim.from_text(text)
        machine = self._link.boot["machine"]
        if machine and claim.machine != machine:
            raise _Refused("claim-refused", "the claim is another machine's")
        reply = await self._link.request("claim", text=text)
        self._console.use_claim(claim)
        connection.authorized = True
        return {"epoch": reply["epoch"]}

    async def _start(self, _connection: Connection, _request: Message) -> Message:
        cols, rows = self._console.size
        await self._link.request("start", fresh=False, cols=cols, rows=rows)
        return {}

    async def _status(self, _connection: Connection, _request: Message) -> Message:
        console, agent = self._console, self._console.agent
        usage = await self._link.request("usage")
        now = time.monotonic_ns()
        output_at, input_at = console.page.times()
        return {
            "agent": agent["state"],
            "exit_code": agent["code"],
            "exit_signal": agent["signal"],
            "clients": len(console.clients),
            "output": console.output.end,
            "input": console.input.end,
            "output_age": _age(output_at, now),
            "input_age": _age(input_at, now),
            "execs": usage["execs"],
            "cpu_seconds": usage["cpu_seconds"],
        }

    async def _env(self, _connection: Connection, request: Message) -> Message:
        env = request.get("env")
        if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
            raise BadRequest("'env' must map names to text")
        await self._link.request("env", env=env)
        return {}

    async def _notice(self, _connection: Connection, request: Message) -> Message:
        level = _text(request, "level")
        if level not in _LEVELS:
            raise BadRequest(f"'level' is one of {', '.join(_LEVELS)}")
        self._console.notice({"level": level, "code": _text(request, "code"), "message": _text(request, "message")})
        return {}

    async def _signal(self, _connection: Connection, request: Message) -> Message:
        number = SIGNALS.get(_text(request, "signal"))
        if number is None:
            raise BadRequest("no such signal")
        await self._link.request("signal", signal=number)
        return {}

    async def _shutdown(self, _connection: Connection, request: Message) -> Message:
        grace = request.get("grace", 0)
        if isinstance(grace, bool) or not isinstance(grace, int | float):
            raise BadRequest("'grace' must be a number")
        self._console.ending = True
        await self._link.request("shutdown", grace=grace)
        return {}


_OPERATIONS: Final[dict[str, Callable[[Control, Connection, Message], Awaitable[Message]]]] = {
    "hello": Control._hello,
    "claim": Control._claim,
    "start": Control._start,
    "status": Control._status,
    "env": Control._env,
    "notice": Control._notice,
    "signal": Control._signal,
    "shutdown": Control._shutdown,
}


def _text(request: Message, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise BadRequest(f"'{key}' must be text")
    return value


def _age(at: int, now: int) -> float | None:
    return max(0, now - at) / 1e9 if at else None


def _verify(public_key: str, text: str, signature: Any) -> None:
    """Raises _Refused unless `signature` (hex) was made over `text` with the private half of `public_key`."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise _Refused("claim-refused", "this machine cannot check signatures") from None
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(
            bytes.fromhex(str(signature)), text.encode()
        )
    except (ValueError, InvalidSignature):
        raise _Refused("claim-refused", "the claim's signature is wrong") from None
