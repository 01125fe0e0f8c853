"""A blank machine kept ready: to make one takes a fifth of a second and more, to claim one a few milliseconds.

After a session has started, one more machine like its own is started for the next. It holds no secret and knows no session, like any
machine before its claim. No record names it before it is handed over: a server that starts takes what an earlier one left for a
machine that no session knows, and destroys it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Final, Self

from catty.engines.base import MachineSpec
from catty.errors import CattyError
from catty.server.sessions.machines import Machines
from catty.server.sessions.timing import Timing

__all__ = ["Spares"]

_LOG: Final = logging.getLogger(__name__)


class _Spare:
    """One machine. `life` makes it, keeps it, and destroys it unless it was `taken`."""

    def __init__(self, spec: MachineSpec) -> None:
        self.spec = dataclasses.replace(spec, machine=str(uuid.uuid4()), labels={})
        self.ready = False
        self.taken = asyncio.Event()
        self.life: asyncio.Task[None] | None = None

    def fits(self, spec: MachineSpec) -> bool:
        return dataclasses.replace(spec, machine=self.spec.machine, labels={}) == self.spec


class Spares:
    """At most one machine; none if not `enabled`. Leaving the context destroys it."""

    def __init__(self, machines: Machines, timing: Timing, *, enabled: bool) -> None:
        self._machines = machines
        self._timing = timing
        self._enabled = enabled
        self._spare: _Spare | None = None
        self._lives: set[asyncio.Task[None]] = set()
        self._ids: set[str] = set()

    @property
    def ids(self) -> frozenset[str]:
        """Machines without a record that are not to be taken for forgotten ones."""
        return frozenset(self._ids)

    @property
    def waiting(self) -> str | None:
        """The id of the machine that is ready."""
        return self._spare.spec.machine if self._spare is not None and self._spare.ready else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enabled = False
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)

    def prepare(self, spec: MachineSpec) -> None:
        """Have a machine like `spec` ready soon."""
        if not self._enabled or (self._spare is not None and self._spare.fits(spec)):
            return
        if self._spare is not None and self._spare.life is not None:
            self._spare.life.cancel()
        spare = self._spare = _Spare(spec)
        self._ids.add(spare.spec.machine)
        spare.life = asyncio.create_task(self._live(spare))
        self._lives.add(spare.life)
        spare.life.add_done_callback(self._lives.discard)

    @contextlib.asynccontextmanager
    async def handed_over(self, spec: MachineSpec) -> AsyncIterator[str | None]:
        """The id of a blank machine like `spec` that answers; None if there is none. It is the caller's, who gives it a record before
        the context ends, or destroys it."""
        spare = self._spare
        if spare is None or not spare.ready or not spare.fits(spec):
            yield None
            return
        self._spare = None
        spare.taken.set()
        machine = spare.spec.machine
        try:
            yield machine if await self._answers(machine) else None
        finally:
            self._ids.discard(machine)

    async def _live(self, spare: _Spare) -> None:
        machine = spare.spec.machine
        try:
            async with asyncio.timeout(None) as patience:
                await asyncio.sleep(self._timing.spare_delay)
                engine = await self._machines.engine()
                await engine.create(spare.spec)
                await engine.start(machine)
                if await self._answers(machine, wait=self._timing.boot):
                    spare.ready = True
                    _LOG.info("a machine is kept ready", extra={"machine": machine})
                    patience.reschedule(asyncio.get_running_loop().time() + self._timing.spare_keep)
                    await spare.taken.wait()
        except TimeoutError:  # nobody wanted it
            pass
        except (CattyError, OSError) as error:
            _LOG.warning("no machine kept ready", extra={"machine": machine, "reason": str(error)})
        finally:
            if self._spare is spare:
                self._spare = None
            if not spare.taken.is_set():
                with contextlib.suppress(CattyError, OSError):  # the keeper's sweep tries again
                    await (await self._machines.engine()).destroy(machine)
                self._ids.discard(machine)

    async def _answers(self, machine: str, *, wait: float = 0.0) -> bool:
        """Whether the machine is there, and blank."""
        try:
            control = await self._machines.control(machine, wait=wait)
            try:
                hello = await control.request("hello", timeout=self._timing.request)
            finally:
                control.close()
        except (CattyError, OSError):
            return False
        return hello.get("claimed") is False
