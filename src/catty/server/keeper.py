"""The keeper: sees to it that every session that is not at rest is driven, by exactly one server, and that no machine is forgotten.

What it does at the start (taking up what an earlier process left) is what it does all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, Self

from catty.engines.base import MachineState
from catty.errors import MachineUnreachable
from catty.server.db.sessions import Lease, Session
from catty.server.sessions.context import Context, Hold
from catty.server.sessions.drive import Drive

__all__ = ["Keeper"]

_LOG: Final = logging.getLogger(__name__)


class Keeper:
    """Start it with `async with`; leaving it stops all drives where they are and gives their leases back. Sessions go on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._drives: dict[str, tuple[Drive, asyncio.Task[None]]] = {}
        self._loops: list[asyncio.Task[NoReturn]] = []
        self._renewed = 0.0
        self._asked = asyncio.Event()

    async def __aenter__(self) -> Self:
        timing = self._context.timing
        self._loops = [
            asyncio.create_task(_for_ever(self._scan, timing.scan, self._asked)),
            asyncio.create_task(_for_ever(self._watch, timing.redial_max, asyncio.Event())),
            asyncio.create_task(_for_ever(self._sweep, timing.sweep, asyncio.Event())),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._loops, *(task for _, task in self._drives.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def take(self, session: Session, env: dict[str, str] | None = None) -> None:
        """Drive a session whose lease this server holds, as its record says; `env` is what its user gave."""
        drive = Drive(Hold(self._context, Lease(session.id, session.lease_generation), session, env))
        task = asyncio.create_task(drive.run())
        self._drives[session.id] = (drive, task)
        task.add_done_callback(lambda _: self._drives.pop(session.id, None))

    def look(self) -> None:
        """Something was asked of a session that may be at rest: look at once."""
        self._asked.set()

    async def retry(self, session: str) -> None:
        """The end of a session is asked for: wait no longer with the next try."""
        if session in self._drives:
            await self._drives[session][0].retry()

    def trouble(self, session: str) -> str:
        """Why the end of a session that waits for the engine failed, as far as this server knows."""
        return self._drives[session][0].trouble if session in self._drives else ""

    def active(self, session: str) -> None:
        """Somebody uses the machine of a session just now."""
        if session in self._drives:
            self._drives[session][0].active()

    async def save(self, session: str) -> int:
        """Save a running session now; the number of its newest snapshot. Raises CattyErrors."""
        if session not in self._drives:
            raise MachineUnreachable(reason="another server looks after it, or this one has just started")
        return await self._drives[session][0].save()

    async def _scan(self) -> None:
        """Take up sessions that nobody drives; keep the leases of those that are driven here."""
        sessions = self._context.sessions
        if self._drives and time.monotonic() - self._renewed >= self._context.timing.renew:
            self._renewed = time.monotonic()
            await sessions.renew()
        for session in await sessions.to_drive():
            if session.id not in self._drives and (lease := await sessions.acquire(session.id)) is not None:
                found = await sessions.get(lease.session)
                if found is not None and session.id not in self._drives:
                    _LOG.info("taking up session", extra={"session": session.id, "state": session.state})
                    self.take(found)

    async def _watch(self) -> None:
        """Hear of machines that ended."""
        await self._context.machines.opened.wait()
        engine = await self._context.machines.engine()
        async for end in engine.watch():
            self._doubt(end.machine)

    async def _sweep(self) -> None:
        """Look at all machines: destroy those that no session knows, doubt those that should be running."""
        of_sessions = self._context.machines
        if not of_sessions.used:  # no need of an engine before the first session
            await of_sessions.opened.wait()
        engine = await of_sessions.engine()
        machines = await engine.list()
        spares = self._context.spares.ids  # before the records: by then one that is handed over has its own
        known = spares | await self._context.sessions.machines()  # after the list: a record is older than its machine
        for machine in machines:
            if machine.id not in known:
                _LOG.warning("destroying a machine that no session knows", extra={"machine": machine.id})
                await engine.destroy(machine.id)
        running = {machine.id for machine in machines if machine.state is MachineState.RUNNING}
        for drive, _ in self._drives.values():
            if drive.machine not in running:
                drive.doubt()
        await self._context.sessions.purge()

    def _doubt(self, machine: str) -> None:
        for drive, _ in self._drives.values():
            if drive.machine == machine:
                drive.doubt()


async def _for_ever(work: Callable[[], Awaitable[None]], pause: float, asked: asyncio.Event) -> NoReturn:
    """Do `work` every `pause` seconds, and when `asked`."""
    while True:
        asked.clear()
        try:
            await work()
        except Exception as error:
            _LOG.warning("keeper stumbled", extra={"work": work.__name__, "reason": str(error)}, exc_info=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await asked.wait()
