"""A server as a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from server.support import Rest, eventually, rest

PROGRAM = Path(__file__).parent / "serve_processes.py"


class ServerProcess:
    """A server that can be killed and started again on the same data."""

    def __init__(self, short: Path) -> None:
        self.data, self.machines = short / "data", short / "machines"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = [sys.executable, str(PROGRAM), str(self.data), str(self.machines)]
        self._process = await asyncio.create_subprocess_exec(*command)
        await eventually(self._ready)

    async def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None
        ready = self.data / "ready"
        return ready.exists() and ready.read_text() == str(self._process.pid)

    async def end(self, number: signal.Signals) -> int:
        """Its exit code."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await self._process.wait()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Rest]:
        async with rest(self.data / "api.sock", (self.data / "token").read_text().strip()) as client:
            yield client
