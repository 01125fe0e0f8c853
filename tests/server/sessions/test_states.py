"""Every state has a way out; whatever happens twice happens once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from catty.server.sessions.states import Event, Reason, State, next_state, v1_status

EVENTS = st.lists(st.sampled_from(Event))
ALIVE = {State.PROVISIONING, State.RUNNING}


def after(events: list[Event]) -> tuple[State, Reason | None]:
    state: tuple[State, Reason | None] = (State.PROVISIONING, None)
    for event in events:
        state = next_state(*state, event)
    return state


@given(EVENTS)
def test_stop_ends_a_session_from_wherever_it_is(events: list[Event]) -> None:
    state, reason = after([*events, Event.STOP, Event.STOP, Event.ENDED, Event.ENDED])
    assert state is State.STOPPED
    assert reason is not None


@given(EVENTS)
def test_a_reason_is_there_exactly_when_it_ends(events: list[Event]) -> None:
    state, reason = after(events)
    assert (reason is None) == (state in ALIVE)


@given(EVENTS, st.sampled_from(Event))
def test_the_first_reason_stays_and_nothing_comes_back_to_life(events: list[Event], event: Event) -> None:
    state, reason = after(events)
    if state not in ALIVE:
        assert next_state(state, reason, event)[1] == reason
        assert next_state(state, reason, event)[0] in {state, State.STOPPED}


@given(EVENTS, st.sampled_from(Event))
def test_twice_is_once(events: list[Event], event: Event) -> None:
    once = after([*events, event])
    assert next_state(*once, event) == once


def test_reasons() -> None:
    assert after([Event.STOP]) == (State.STOPPING, Reason.USER)
    assert after([Event.FAILED]) == (State.STOPPING, Reason.FAILED)
    assert after([Event.READY, Event.TTL]) == (State.STOPPING, Reason.TTL)
    assert after([Event.READY, Event.DIED]) == (State.STOPPING, Reason.CRASHED)
    assert after([Event.READY, Event.TTL, Event.STOP, Event.ENDED]) == (State.STOPPED, Reason.TTL)


def test_words_for_existing_clients() -> None:
    assert v1_status(State.RUNNING, None) == "running"
    assert v1_status(State.STOPPED, Reason.TTL) == "timed_out"
    assert v1_status(State.STOPPED, Reason.CRASHED) == "stopped"
