"""Driving one session from its creation to its rest.

A drive holds the session's lease and runs one phase per state. Each phase starts from what the database says and may be cut off
anywhere: this server's next try, or another server, runs it again. What users ask for (stop, delete) is written into the record first
and found there.

    PROVISIONING  sessions/provision.py
    RUNNING       sessions/supervise.py
    STOPPING      sessions/finish.py
    STOPPED       sessions/finish.py again, while a machine is kept because its last save failed, or to delete
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from catty.errors import CattyError, SessionNotRunning
from catty.server.db.sessions import LeaseLost, Session
from catty.server.sessions.context import Hold
from catty.server.sessions.finish import finish
from catty.server.sessions.provision import provision
from catty.server.sessions.states import Event, State
from catty.server.sessions.supervise import Supervision

__all__ = ["WAITING", "Drive"]

WAITING: Final = "waiting for the engine"  # the step of a session that cannot be ended now; it is tried again
_SUPERVISED_S: Final = 5.0  # a session is seen running a moment before it is supervised
_LOG: Final = logging.getLogger(__name__)
_T = TypeVar("_T")


class Drive:
    """One session's drive; `run` ends when there is nothing to do any more, or another server has taken over."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._supervision: Supervision | None = None
        self._supervised = asyncio.Event()
        self._pause = hold.context.timing.retry
        self._retry = asyncio.Event()
        self.trouble = ""  # why the session cannot be ended now

    @property
    def machine(self) -> str:
        """The session's machine."""
        return self._hold.session.machine_id

    def doubt(self) -> None:
        """Somebody says that the machine is dead."""
        if self._supervision is not None:
            self._supervision.doubt()

    def active(self) -> None:
        """Somebody uses the machine just now."""
        if self._supervision is not None:
            self._supervision.active()

    async def retry(self) -> None:
        """Somebody asks for the end of a session that could not be ended: try now."""
        if self.trouble:
            self.trouble = ""
            await self._hold.update(step="")
            self._retry.set()

    async def save(self) -> int:
        """Save now; see `Supervision.save`. Raises SessionNotRunning."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SUPERVISED_S):
                await self._supervised.wait()
        if self._supervision is None:
            raise SessionNotRunning(label=self._hold.session.label, state=self._hold.session.state)
        return await self._supervision.save("request")

    async def run(self) -> None:
        """Never raises but when cancelled; the lease is given back in the end."""
        try:
            while await self._refresh():
                await self._phase()
        except LeaseLost:
            _LOG.info("another server took over", extra={"session": self._hold.session.id})
        finally:
            with contextlib.suppress(Exception):  # a lease that is not given back expires
                await self._hold.context.sessions.release(self._hold.lease)

    async def _refresh(self) -> bool:
        """Look at the record again; whether there is something left to do."""
        session = await self._hold.context.sessions.get(self._hold.session.id)
        if session is None or session.tombstone:
            return False
        self._hold.session = session
        return session.state is not State.STOPPED or session.has_machine or session.delete_requested

    async def _phase(self) -> None:
        session = self._hold.session
        try:
            if session.state is State.PROVISIONING:
                await self._provision()
            elif session.state is State.RUNNING:
                await self._supervise()
            elif session.delete_requested:
                await finish(self._hold)
            else:
                await self._until(lambda now: now.delete_requested, finish(self._hold))
            self._pause = self._hold.context.timing.retry
            self.trouble = ""
        except LeaseLost:
            raise
        except Exception as error:  # the phase is tried again, whatever it was
            await self._failed(error)

    async def _provision(self) -> None:
        try:
            ready = await self._until(_stop_wanted, provision(self._hold))
        except LeaseLost:
            raise
        except Exception as error:  # whatever it was, the user is told and the session ends
            if not isinstance(error, CattyError):
                _LOG.exception("provisioning failed", extra={"session": self._hold.session.id})
                error = CattyError(f"provisioning failed inside the server: {type(error).__name__}")
            await self._hold.happen(Event.FAILED, error)
        else:
            if ready is None:
                await self._hold.happen(Event.STOP)
        finally:
            self._hold.env = None

    async def _supervise(self) -> None:
        supervision = self._supervision = Supervision(self._hold)
        self._supervised.set()
        try:
            event, error = await self._until(_stop_wanted, supervision.run()) or (Event.STOP, None)
        finally:
            self._supervision = None
            self._supervised.clear()
        _LOG.info("session ends", extra={"session": self._hold.session.id, "event": event.name})
        await self._hold.happen(event, error)

    async def _until(self, wanted: Callable[[Session], bool], work: Coroutine[Any, Any, _T]) -> _T | None:
        """The outcome of `work`; None if `wanted` held first and it was cut off."""
        doing, asking = asyncio.create_task(work), asyncio.create_task(self._asked(wanted))
        try:
            await asyncio.wait({doing, asking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            doing.cancel()
            asking.cancel()
            await asyncio.gather(doing, asking, return_exceptions=True)
        if doing.cancelled():
            asking.result()
            return None
        return doing.result()

    async def _asked(self, wanted: Callable[[Session], bool]) -> None:
        context, session = self._hold.context, self._hold.session.id
        while True:
            found = await context.sessions.wait(session, wanted, timeout=math.inf, poll=context.timing.scan)
            if found is None or wanted(found):
                return

    async def _failed(self, error: Exception) -> None:
        """Wait before the next try, longer each time; a wish to stop or delete is heard at once."""
        hold, session = self._hold, self._hold.session
        facts = {"session": session.id, "state": session.state, "reason": str(error)}
        _LOG.warning("trying again later", extra=facts, exc_info=None if isinstance(error, CattyError) else error)
        self._retry.clear()
        self.trouble = str(error)
        ending = session.state is State.STOPPING or session.delete_requested
        if ending and hold.session.step != WAITING:
            await hold.update(step=WAITING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self._until(lambda now: now.delete_requested and not session.delete_requested, self._retry.wait())
        self._pause = min(2 * self._pause, hold.context.timing.retry_max)


def _stop_wanted(session: Session) -> bool:
    return session.stop_requested or session.delete_requested
