"""The states of a session and what moves it from one to the next. No I/O.

    PROVISIONING ──READY──► RUNNING ──STOP, TTL, DIED──► STOPPING ──ENDED──► STOPPED
         └───────────────STOP, FAILED, DIED──────────────────▲

What happens in a state where it means nothing changes nothing, so everything may be said twice. The first reason stays: a session that
its user stops while it dies of its TTL has ended by TTL.
"""

from __future__ import annotations

from enum import Enum, StrEnum

__all__ = ["Event", "Reason", "State", "next_state", "v1_status"]


class State(StrEnum):
    """Each has a driver's phase (sessions/driver.py) that leaves it."""

    PROVISIONING = "provisioning"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Reason(StrEnum):
    """Why a session ends or ended."""

    USER = "user"
    TTL = "ttl"
    CRASHED = "crashed"
    FAILED = "failed"


class Event(Enum):
    """What can happen to a session."""

    READY = "the agent was started"
    STOP = "somebody asked for the end"
    TTL = "inactive for too long"
    DIED = "the machine ended by itself"
    FAILED = "provisioning failed"
    ENDED = "machine gone, or kept for a later save"


_LEAVING = {
    (State.PROVISIONING, Event.READY): (State.RUNNING, None),
    (State.PROVISIONING, Event.STOP): (State.STOPPING, Reason.USER),
    (State.PROVISIONING, Event.FAILED): (State.STOPPING, Reason.FAILED),
    (State.PROVISIONING, Event.DIED): (State.STOPPING, Reason.FAILED),
    (State.RUNNING, Event.STOP): (State.STOPPING, Reason.USER),
    (State.RUNNING, Event.TTL): (State.STOPPING, Reason.TTL),
    (State.RUNNING, Event.DIED): (State.STOPPING, Reason.CRASHED),
}


def next_state(state: State, reason: Reason | None, event: Event) -> tuple[State, Reason | None]:
    """State and reason after `event`; the same ones where it changes nothing."""
    if (state, event) == (State.STOPPING, Event.ENDED):
        return State.STOPPED, reason
    return _LEAVING.get((state, event), (state, reason))


def v1_status(state: State, reason: Reason | None) -> str:
    """The state in the words of existing (v1) clients: `running`, `stopped`, `timed_out`."""
    if state is not State.STOPPED:
        return "running"
    return "timed_out" if reason is Reason.TTL else "stopped"
