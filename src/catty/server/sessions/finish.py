"""The one way in which a session ends, whatever ended it: last save, machine stopped, machine destroyed, at rest.

The machine is destroyed only after a complete save of its volume, or when nothing is to be saved (its workspace was never in place, or
its user deletes the session).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from catty.engines.base import Engine, MachineState
from catty.errors import CattyError, EngineDown, EngineNotFound, EngineSlow, MachineNotFound, SaveFailed
from catty.server.sessions.context import Hold
from catty.server.sessions.states import Event, State

__all__ = ["finish"]

_LOG: Final = logging.getLogger(__name__)
_ENGINE_AWAY: Final = (EngineDown, EngineNotFound, EngineSlow)


async def finish(hold: Hold) -> None:
    """Bring a STOPPING session to rest, or try once more for a STOPPED one whose machine is kept.

    Raises SaveFailed when the last save failed (the machine is kept, the session at rest), other MachineErrors when the engine could
    not be asked (nothing has changed): in both cases it is to be called again later.
    """
    session = hold.session
    if session.has_machine:
        engine = await hold.context.machines.engine()
        if session.restored and not session.delete_requested:
            try:
                await _last_save(hold, engine)
            except SaveFailed as error:
                if session.state is State.STOPPING:
                    await hold.happen(Event.ENDED, error)
                raise
        await engine.destroy(session.machine_id)
        await hold.update(visible=False, has_machine=False)
    await hold.happen(Event.ENDED)
    if hold.session.error is not None and hold.session.error.get("error") == SaveFailed.code:
        await hold.update(error=None)
    if session.delete_requested:
        await hold.context.workspaces.delete(session)
        hold.session = await hold.context.sessions.bury(hold.lease)


async def _last_save(hold: Hold, engine: Engine) -> None:
    """Save what the machine holds, and stop it. Raises SaveFailed; MachineErrors of an engine that does not answer."""
    machine, grace = hold.session.machine_id, hold.context.timing.grace
    try:
        state = (await engine.inspect(machine)).state
    except MachineNotFound:
        return
    if state is MachineState.CREATED:
        return
    if state is MachineState.RUNNING:
        saved = await _save_alive(hold)
        await engine.stop(machine, grace)
        if saved:
            return
    try:
        async with asyncio.timeout(hold.context.timing.last_save), engine.salvage(machine) as endpoint:
            await hold.context.workspaces.salvage(hold.session, hold.lease, endpoint)
    except _ENGINE_AWAY:
        raise
    except TimeoutError:
        raise SaveFailed(reason="it took too long") from None
    except (CattyError, OSError) as error:
        raise SaveFailed(reason=str(error)) from error
    await _recorded(hold)


async def _save_alive(hold: Hold) -> bool:
    """End the agent, so that it writes down its conversation, and save through the running machine. Whether that worked."""
    session, context = hold.session, hold.context
    try:
        async with asyncio.timeout(context.timing.last_save):
            await _end_agent(hold)
            await context.workspaces.save(session, hold.lease, "stop")
    except (CattyError, OSError, TimeoutError) as error:
        _LOG.warning("last save failed, its volume comes next", extra={"session": session.id, "reason": str(error)})
        return False
    await _recorded(hold)
    return True


async def _end_agent(hold: Hold) -> None:
    """End the agent and keep what its terminal printed last. A machine that does not let itself be talked to can still be saved."""
    session, machines, timing = hold.session, hold.context.machines, hold.context.timing
    try:
        async with machines.brief_control(session.machine_id) as control:
            await control.request("shutdown", timeout=timing.grace + timing.request, grace=timing.grace)
        hold.context.workspaces.keep_log(session.id, await machines.logs(session.machine_id))
    except (CattyError, OSError) as error:
        _LOG.warning("agent not ended in order", extra={"session": session.id, "reason": str(error)})


async def _recorded(hold: Hold) -> None:
    await hold.update(visible=False, last_saved_at=time.time())
