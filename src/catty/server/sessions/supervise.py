"""A running session: its activity and time to live, its saves, and the death of its machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final, NoReturn

from catty.errors import BadRequest, CattyError, MachineDied, MachineError
from catty.server.sessions.activity import Activity, Verdict, warning_lead
from catty.server.sessions.context import Hold
from catty.server.sessions.control import Control
from catty.server.sessions.states import Event
from catty.wire.control import Status

__all__ = ["Supervision"]

_LOG: Final = logging.getLogger(__name__)

Ending = tuple[Event, CattyError | None]


class Supervision:
    """Watches over one running session until it ends by itself."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._machine = hold.session.machine_id
        self._timing = hold.context.timing
        self._doubt = asyncio.Event()  # the machine may be dead
        self._saving = asyncio.Lock()
        self._output: int | None = None
        self._log_output: int | None = None
        self._log_at = -float("inf")
        self._activity = Activity(time.monotonic(), idle=time.time() - hold.session.last_activity_at)
        self._activity_written = hold.session.last_activity_at

    async def run(self) -> Ending:
        """What ended it: TTL, or DIED with its error. Raises LeaseLost."""
        tasks = [asyncio.create_task(work) for work in (self._follow(), self._autosave(), self._mourn())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def doubt(self) -> None:
        """Somebody says that the machine is dead: look at once."""
        self._doubt.set()

    def active(self) -> None:
        """Somebody uses the machine just now."""
        self._activity.active(time.monotonic())

    # ---------------------------------------------------------------------------------------- saves

    async def save(self, reason: str) -> int:
        """Save now; the number of the newest snapshot (0: there is nothing yet). Raises CattyErrors, LeaseLost."""
        hold = self._hold
        async with self._saving:
            try:
                number = await hold.context.workspaces.save(hold.session, hold.lease, reason)
            except (CattyError, OSError):
                self._doubt.set()
                raise
            # A failed save is shown to the user until one succeeds.
            await hold.update(visible=hold.session.error is not None, last_saved_at=time.time(), error=None)
            return number

    async def _autosave(self) -> NoReturn:
        await asyncio.sleep(self._timing.first_save)
        while True:
            try:
                await self.save("autosave")
            except (CattyError, OSError) as error:
                await self._save_failed(error)
            await self._keep_log()
            await asyncio.sleep(self._timing.save_every)

    async def _save_failed(self, error: Exception) -> None:
        _LOG.warning("save failed", extra={"session": self._hold.session.id, "reason": str(error)})
        shown = error if isinstance(error, CattyError) else MachineError(f"saving failed: {error}")
        if (self._hold.session.error or {}).get("message") != shown.message:
            await self._hold.update(error=shown.to_json())

    async def _keep_log(self) -> None:
        """Copy the last output now and then, for `logs` after a crash."""
        if self._output == self._log_output or time.monotonic() - self._log_at < self._timing.log_copy:
            return
        self._log_output, self._log_at = self._output, time.monotonic()
        with contextlib.suppress(CattyError):
            context = self._hold.context
            context.workspaces.keep_log(self._hold.session.id, await context.machines.logs(self._machine))

    # ---------------------------------------------------------------------------------------- activity

    async def _follow(self) -> Ending:
        """Keep a control connection, ask for the status every few seconds, judge the time to live."""
        control: Control | None = None
        pause = self._timing.redial
        try:
            while True:
                try:
                    if control is None:
                        control = await self._hold.context.machines.control(self._machine)
                    status = await control.request("status", timeout=self._timing.request)
                    self._activity.observe(time.monotonic(), Status.from_json(status))
                    self._output = int(status["output"])
                except (MachineError, BadRequest) as error:
                    _LOG.info("machine is silent", extra={"session": self._hold.session.id, "reason": str(error)})
                    self._doubt.set()
                    if control is not None:
                        control.close()
                    control = None
                await self._write_activity()
                if await self._judge(control):
                    return Event.TTL, None
                if control is not None:
                    ended, _ = await asyncio.wait([control.closed], timeout=self._timing.status_every)
                    pause = (
                        pause if ended else self._timing.redial
                    )  # not for a machine that answers and then misbehaves
                else:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, self._timing.redial_max)
        finally:
            if control is not None:
                control.close()

    async def _write_activity(self) -> None:
        at = time.time() - self._activity.idle(time.monotonic())
        if at - self._activity_written >= self._timing.activity_write:
            self._activity_written = at
            await self._hold.update(visible=False, last_activity_at=at)

    async def _judge(self, control: Control | None) -> bool:
        """Whether the time is over; sends the warning before (at a warning, clients ring the bell)."""
        ttl = self._hold.session.ttl_sec
        verdict = self._activity.judge(time.monotonic(), ttl, can_warn=control is not None)
        if verdict is Verdict.WARN and control is not None:
            minutes = max(1, round(warning_lead(ttl) / 60))
            text = f"no activity: this session is saved and stopped in {minutes} min unless something happens"
            with contextlib.suppress(MachineError):
                await control.request("notice", timeout=self._timing.request, level="warning", code="ttl", message=text)
        return verdict is Verdict.END

    # ---------------------------------------------------------------------------------------- death

    async def _mourn(self) -> Ending:
        """Returns when the machine is dead."""
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            try:
                end = await self._hold.context.machines.end(self._machine)
            except CattyError as error:
                _LOG.warning("engine is silent", extra={"session": self._hold.session.id, "reason": str(error)})
            else:
                if end is not None:
                    return Event.DIED, MachineDied(reason=end, label=self._hold.session.label)
            await asyncio.sleep(self._timing.redial)
