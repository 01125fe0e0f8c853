"""The machines of sessions: the engine, opened when it is first needed, and connections to the runtimes inside."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

import picows

from catty.constants import FRAME_MAX_BYTES, RING_BYTES
from catty.engines import endpoint as endpoints
from catty.engines.base import Engine, MachineState
from catty.errors import BadRequest, EngineDown, MachineNotFound, MachineUnreachable
from catty.server.sessions.control import Control, open_websocket
from catty.server.sessions.timing import Timing
from catty.wire.frames import FrameType, unpack

__all__ = ["Machines"]

_LOGS_S: Final = 30.0
_LOGS_FRAMES: Final = RING_BYTES // (16 << 10)  # a runtime sends 64 KiB in each


class Machines:
    """`open_engine` makes the engine; `key` (32 bytes, the server's secret) is what machines' bearer tokens are derived from, so that
    none needs to be stored. `used`: an earlier process had machines, of which some may be left."""

    def __init__(self, open_engine: Callable[[], Engine], key: bytes, timing: Timing, *, used: bool = False) -> None:
        self._open_engine = open_engine
        self._key = key
        self._timing = timing
        self.used = used
        self._engine: Engine | None = None
        self._opening = asyncio.Lock()
        self.opened = asyncio.Event()

    async def engine(self) -> Engine:
        """The engine. Raises MachineErrors (EngineNotFound, EngineDown …); the next call tries again."""
        async with self._opening:
            if self._engine is None:
                try:
                    self._engine = await asyncio.to_thread(self._open_engine)  # its imports alone take a while
                except OSError as error:
                    raise EngineDown(reason=str(error)) from None
                self.opened.set()
            return self._engine

    async def close(self) -> None:
        """Let go of the engine; machines go on running."""
        if self._engine is not None:
            await self._engine.close()

    def token(self, machine: str) -> str:
        """What the server presents to `machine` after its claim (hex)."""
        return hmac.new(self._key, b"machine-token:" + machine.encode(), hashlib.sha256).hexdigest()

    async def end(self, machine: str) -> str | None:
        """Why a machine that was started does not run; None if it does. Raises MachineErrors of an engine that does not answer."""
        engine = await self.engine()
        try:
            found = await engine.inspect(machine)
        except MachineNotFound:
            return "it is gone"
        if found.state is MachineState.RUNNING:
            return None
        return "out of memory" if found.oom_killed else f"exit code {found.exit_code}"

    async def dial(self, machine: str, listener: str, *, wait: float = 0.0) -> socket.socket:
        """A connected socket to `listener` ("terminal", "workspace") of a running machine; tries for `wait` seconds.

        Raises MachineErrors (MachineUnreachable, MachineNotFound, EndpointRefused …).
        """
        endpoint = await (await self.engine()).endpoint(machine)
        return await endpoints.dial(endpoint, listener, seconds=wait)

    async def control(self, machine: str, *, wait: float = 0.0) -> Control:
        """A control connection to a running machine; one that does not listen yet is given `wait` seconds. Raises MachineErrors."""
        return await Control.open(await self.dial(machine, "terminal", wait=wait), self.token(machine))

    @contextlib.asynccontextmanager
    async def brief_control(self, machine: str) -> AsyncIterator[Control]:
        """A control connection for a request or two."""
        control = await self.control(machine)
        try:
            yield control
        finally:
            control.close()

    async def logs(self, machine: str) -> bytes:
        """The last output of a running machine's terminal, at most RING_BYTES. Raises MachineErrors."""
        reader = _LogReader()
        sock = await self.dial(machine, "terminal")
        transport = await open_websocket(sock, "/logs", self.token(machine), lambda: reader, FRAME_MAX_BYTES)
        try:
            async with asyncio.timeout(_LOGS_S):
                await reader.done.wait()
        except TimeoutError:
            raise MachineUnreachable(reason="its log does not end") from None
        finally:
            transport.disconnect()
        return bytes(reader.output)


class _LogReader(picows.WSListener):
    def __init__(self) -> None:
        self.output = bytearray()
        self._frames = 0
        self.done = asyncio.Event()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        self._frames += 1
        if frame.msg_type is picows.WSMsgType.BINARY and frame.fin and self._frames <= _LOGS_FRAMES:
            with contextlib.suppress(BadRequest):
                type_, _, payload = unpack(frame.get_payload_as_bytes())
                if type_ is FrameType.OUT and len(self.output) < RING_BYTES:
                    self.output += payload[: RING_BYTES - len(self.output)]
                    return
        transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002
        self.done.set()
