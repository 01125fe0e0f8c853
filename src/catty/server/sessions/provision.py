"""From nothing to an agent that runs: machine, claim, workspace, start. Each step is recorded when done, and may be done again.

A step that loses its connection to the machine is: a process of the runtime that was killed is back in a fifth of a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from catty import agents
from catty.engines.base import MachineSpec
from catty.errors import (
    ClaimRefused,
    MachineDied,
    MachineError,
    MachineUnreachable,
    RestoreFailed,
    SecretsLost,
    UploadMissing,
)
from catty.server.sessions.context import Hold
from catty.server.sessions.control import Control
from catty.server.sessions.states import Event, State
from catty.wire.claim import Claim

__all__ = ["provision"]


async def provision(hold: Hold) -> State:
    """Go on from the recorded step to the state RUNNING, which is returned. Raises CattyErrors; LeaseLost."""
    step = hold.session.step
    while step != "running":
        step = await _again_while_alive(hold, _STEPS[step])
    return hold.session.state


async def _again_while_alive(hold: Hold, work: Callable[[Hold], Awaitable[str]]) -> str:
    """Do `work`, and again for a while as long as it only loses its connection. Raises MachineDied where that is why."""
    deadline = time.monotonic() + hold.context.timing.boot
    while True:
        try:
            return await work(hold)
        except (MachineUnreachable, RestoreFailed) as error:
            await _check_alive(hold, error)
            lost = isinstance(error, MachineUnreachable) or isinstance(error.__cause__, OSError)
            if not lost or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(hold.context.timing.redial)


async def _check_alive(hold: Hold, error: MachineError) -> None:
    """Raise MachineDied, because of `error`, if the machine has ended."""
    end = await hold.context.machines.end(hold.session.machine_id)
    if end is not None:
        hint = "It was still being made; try again. `catty doctor` examines the machine that it runs on."
        raise MachineDied(reason=end, hint=hint) from error


async def _machine(hold: Hold) -> str:
    session, context = hold.session, hold.context
    if session.has_env and hold.env is None:
        raise SecretsLost
    spec = _spec(hold)
    if not session.has_machine:
        async with context.spares.handed_over(spec) as spare:
            if spare is not None:
                await hold.update(machine_id=spare, has_machine=True, step="claim")
                return "claim"
    engine = await context.machines.engine()
    await hold.update(visible=False, has_machine=True)
    await engine.create(spec)
    await engine.start(session.machine_id)
    return await _done(hold, "claim")


def _spec(hold: Hold) -> MachineSpec:
    session, context = hold.session, hold.context
    return MachineSpec(
        machine=session.machine_id,
        image=context.image(),
        cpus=session.cpus,
        memory_mb=session.memory_mb,
        labels={"session": session.id, "label": session.label},
        ca_bundle=context.ca_bundle,
    )


async def _claim(hold: Hold) -> str:
    session, context = hold.session, hold.context
    control = await _first_control(hold)
    try:
        hello = await control.request("hello", timeout=context.timing.request)
        if hello.get("claimed") is not True:
            if session.has_env and hold.env is None:
                raise SecretsLost
            await control.request("claim", timeout=context.timing.request, claim=_claim_text(hold))
        elif hello.get("session") != session.id:
            raise ClaimRefused(reason="it belongs to another session")
    finally:
        control.close()
    hold.env = None  # from here on the machine alone holds it
    return await _done(hold, "workspace")


def _claim_text(hold: Hold) -> str:
    session = hold.session
    return Claim(
        machine=session.machine_id,
        session=session.id,
        label=session.label,
        token=hold.context.machines.token(session.machine_id),
        agent=agents.launch(session.agent, session=session.id, prompts=session.prompts),
        env=hold.env or {},
        cols=session.cols,
        rows=session.rows,
    ).to_text()


async def _first_control(hold: Hold) -> Control:
    """A control connection to a machine that may still be starting."""
    timing, machines = hold.context.timing, hold.context.machines
    deadline = time.monotonic() + timing.boot
    while True:
        try:
            # A machine that was claimed before a restart of the server wants the token; a blank one does not look at it.
            return await machines.control(hold.session.machine_id, wait=deadline - time.monotonic())
        except MachineUnreachable:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(timing.redial)


async def _workspace(hold: Hold) -> str:
    session, context = hold.session, hold.context
    if session.upload:
        await _uploaded(hold)
    await context.workspaces.restore(session)
    await hold.update(step="start", restored=True)
    return "start"


async def _uploaded(hold: Hold) -> None:
    """Wait until the upload is there, as long as its owner sends something now and then."""
    session, context = hold.session, hold.context
    limit = context.timing.upload_wait
    last = time.monotonic()
    while (left := last + limit - time.monotonic()) > 0:
        found = await context.sessions.wait(
            session.id, lambda found: found.uploaded, timeout=left, poll=context.timing.poll
        )
        if found is not None and found.uploaded:
            return
        last = max(last, context.uploads.get(session.owner, 0.0))
    raise UploadMissing(seconds=limit)


async def _start(hold: Hold) -> str:
    async with hold.context.machines.brief_control(hold.session.machine_id) as control:
        await control.request("start", timeout=hold.context.timing.request)
    await hold.happen(Event.READY)
    hold.context.spares.prepare(_spec(hold))
    return "running"


async def _done(hold: Hold, next_step: str) -> str:
    await hold.update(step=next_step)
    return next_step


_STEPS: Final[Mapping[str, Callable[[Hold], Awaitable[str]]]] = {
    "machine": _machine,
    "claim": _claim,
    "workspace": _workspace,
    "start": _start,
}
