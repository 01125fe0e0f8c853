"""Records, leases, and who may change what."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from catty.errors import LabelTaken, SaveFailed
from catty.server.db.access import AccessStore
from catty.server.db.engine import Database
from catty.server.db.schema import sessions as table
from catty.server.db.sessions import Lease, LeaseLost, Session, SessionStore
from catty.server.sessions.changes import Changes
from catty.server.sessions.request import parse_new_session
from catty.server.sessions.states import Event, Reason, State

Made = tuple[SessionStore, Session, Lease]


@pytest.fixture
async def owner(database: Database) -> str:
    return await AccessStore(database).user("local")


@pytest.fixture
def store(database: Database) -> SessionStore:
    return SessionStore(database, "server-a", Changes())


@pytest.fixture
def other(database: Database) -> SessionStore:
    return SessionStore(database, "server-b", Changes())


@pytest.fixture
async def made(store: SessionStore, owner: str) -> tuple[Session, Lease]:
    session, _ = await store.create(owner, parse_new_session({}))
    return session, Lease(session.id, session.lease_generation)


async def expire_leases(database: Database) -> None:
    await database.execute(update(table).values(lease_expires=1.0))


async def test_a_record_comes_back_as_it_was_made(store: SessionStore, made: tuple[Session, Lease]) -> None:
    assert await store.get(made[0].id) == made[0]


async def test_a_name_is_taken_once_per_owner(store: SessionStore, database: Database, owner: str) -> None:
    new = parse_new_session({"name": "mine"})
    await store.create(owner, new)
    with pytest.raises(LabelTaken):
        await store.create(owner, new)
    await store.create(await AccessStore(database).user("somebody else"), new)


async def test_the_same_request_makes_one_session(store: SessionStore, owner: str) -> None:
    new = parse_new_session({"request_id": "r1", "name": "mine"})
    results = await asyncio.gather(*(store.create(owner, new) for _ in range(5)))
    assert len({session.id for session, _ in results}) == 1
    assert sorted(made for _, made in results) == [False] * 4 + [True]


async def test_a_deleted_label_is_free_again(store: SessionStore, owner: str) -> None:
    for _ in range(2):
        session, _ = await store.create(owner, parse_new_session({"name": "mine"}))
        await store.bury(Lease(session.id, session.lease_generation))
        assert await store.labels(owner) == {}
        gone = await store.deleted(owner, "mine")
        assert gone is not None
        assert gone.tombstone == gone.id


async def test_a_lease_is_held_by_one(
    store: SessionStore, other: SessionStore, made: tuple[Session, Lease], database: Database
) -> None:
    session, lease = made
    assert await other.acquire(session.id) is None
    assert [found.id for found in await other.to_drive()] == []
    await expire_leases(database)
    assert [found.id for found in await other.to_drive()] == [session.id]
    taken = await other.acquire(session.id)
    assert taken == Lease(session.id, lease.generation + 1)
    assert await store.acquire(session.id) is None
    with pytest.raises(LeaseLost):
        await store.update(lease, step="claim")
    with pytest.raises(LeaseLost):
        await store.happen(lease, session, Event.STOP)
    assert (await other.update(taken, step="claim")).step == "claim"


async def test_two_servers_that_want_the_same_session_do_not_both_get_it(
    store: SessionStore, other: SessionStore, made: tuple[Session, Lease], database: Database
) -> None:
    for _ in range(10):
        await expire_leases(database)
        got = await asyncio.gather(store.acquire(made[0].id), other.acquire(made[0].id))
        assert sum(lease is not None for lease in got) == 1
        await (store if got[0] else other).release(next(lease for lease in got if lease))


async def test_renewal_keeps_others_out(
    store: SessionStore, other: SessionStore, made: tuple[Session, Lease], database: Database
) -> None:
    await expire_leases(database)
    await store.renew()
    assert await other.acquire(made[0].id) is None
    assert (await store.update(made[1], step="x")).step == "x"


async def test_a_server_that_restarts_takes_its_own_back_at_once(
    database: Database, made: tuple[Session, Lease], store: SessionStore
) -> None:
    again = SessionStore(database, "server-a", Changes())
    assert [session.id for session in await again.to_drive()] == [made[0].id]
    lease = await again.acquire(made[0].id)
    assert lease == Lease(made[0].id, 2)
    with pytest.raises(LeaseLost):
        await store.update(made[1], step="x")


async def test_states_move_and_errors_stay(store: SessionStore, made: tuple[Session, Lease]) -> None:
    session, lease = made
    stopping = await store.happen(lease, session, Event.FAILED, SaveFailed(reason="x"))
    assert (stopping.state, stopping.reason) == (State.STOPPING, Reason.FAILED)
    assert stopping.error is not None
    assert stopping.error["error"] == "save-failed"
    stopped = await store.happen(lease, stopping, Event.ENDED)
    assert stopped.state is State.STOPPED
    assert stopped.stopped_at is not None
    assert stopped.error == stopping.error
    assert stopped.version > stopping.version > session.version
    assert await store.to_drive() == []


async def test_a_waiter_sees_a_change_at_once(store: SessionStore, made: tuple[Session, Lease]) -> None:
    session, lease = made

    async def change() -> None:
        await store.update(lease, step="claim")

    waiting = asyncio.create_task(store.wait(session.id, lambda now: now.step == "claim", timeout=30, poll=30))
    await asyncio.sleep(0)
    await change()
    found = await asyncio.wait_for(waiting, 5)
    assert found is not None
    assert found.step == "claim"


async def test_a_waiter_gets_what_is_there_in_the_end(store: SessionStore, made: tuple[Session, Lease]) -> None:
    found = await store.wait(made[0].id, lambda _: False, timeout=0.01, poll=1)
    assert found == made[0]
    assert await store.wait("nobody", lambda _: False, timeout=10, poll=1) is None


async def test_requests_need_no_lease(other: SessionStore, store: SessionStore, made: tuple[Session, Lease]) -> None:
    await other.request_stop(made[0].id, delete=False)
    await other.mark_uploaded(made[0].id)
    found = await store.get(made[0].id)
    assert found is not None
    assert (found.stop_requested, found.delete_requested, found.uploaded) == (True, False, True)


async def test_tombstones_are_forgotten_after_a_day(
    store: SessionStore, made: tuple[Session, Lease], database: Database
) -> None:
    session, lease = made
    await store.happen(lease, await store.happen(lease, session, Event.STOP), Event.ENDED)
    await database.execute(update(table).values(stopped_at=1.0))  # it was deleted long after its end
    await store.bury(lease)
    await store.purge()
    assert await store.get(session.id) is not None
    await database.execute(update(table).values(stopped_at=1.0))
    await store.purge()
    assert await store.get(session.id) is None
