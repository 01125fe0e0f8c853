"""Sessions in the database: records, leases, and who may change what.

Two kinds of change. Requests (stop, delete, "the upload is there") may come to any server and are plain updates. All else belongs to the
one server that drives the session: it holds the session's lease, a row's `lease_holder`, `lease_generation` and `lease_expires`, and each
of its updates names the generation. A server that was away so long that another took over finds its generation gone (`LeaseLost`) and
touches neither record nor machine any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from catty.errors import CattyError, LabelTaken
from catty.labels import random_label
from catty.server.db.engine import Database
from catty.server.db.schema import sessions
from catty.server.sessions.changes import Changes
from catty.server.sessions.request import NewSession
from catty.server.sessions.states import Event, Reason, State, next_state

__all__ = ["LEASE_S", "Lease", "LeaseLost", "Session", "SessionStore"]

LEASE_S: Final = 30.0  # several times the keeper's renewal, far below what a user would wait for a dead server
RECENT_S: Final = 86400.0  # `list` shows sessions stopped for less; tombstones are kept as long
_LABEL_TRIES: Final = 20


class LeaseLost(Exception):
    """Another server drives this session now."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drive a session; `generation` grows with every change of hands."""

    session: str
    generation: int


@dataclass(frozen=True, slots=True)
class Session:
    """A row of `sessions` (see the schema for what the columns mean)."""

    id: str
    owner: str
    label: str
    request_id: str | None
    agent: str
    prompts: bool
    upload: bool
    cols: int
    rows: int
    cpus: float
    memory_mb: int
    ttl_sec: int
    has_env: bool
    state: State
    reason: Reason | None
    step: str
    error: dict[str, Any] | None
    version: int
    machine_id: str
    has_machine: bool
    uploaded: bool
    restored: bool
    stop_requested: bool
    delete_requested: bool
    tombstone: str
    created_at: float
    last_activity_at: float
    last_saved_at: float | None
    stopped_at: float | None
    lease_holder: str | None
    lease_generation: int
    lease_expires: float | None

    @classmethod
    def from_row(cls, row: Any) -> Session:
        """The record in a row that was selected from `sessions`."""
        values = dict(row._mapping)
        values["state"] = State(values["state"])
        values["reason"] = Reason(values["reason"]) if values["reason"] else None
        values["error"] = json.loads(values["error"]) if values["error"] else None
        return cls(**values)

    @property
    def unsaved(self) -> bool:
        """Whether it has ended but its machine is kept, because the last save has not succeeded yet."""
        return self.state is State.STOPPED and self.has_machine


class SessionStore:
    """Sessions of one database, as server `holder` (a name of its own, the same after a restart) sees and drives them."""

    def __init__(self, database: Database, holder: str, changes: Changes) -> None:
        self._database = database
        self._holder = holder
        self._changes = changes

    async def create(self, owner: str, new: NewSession) -> tuple[Session, bool]:
        """The new session, driven by this server, and True; or the one made by the same `request_id` before, and False.

        Raises LabelTaken.
        """
        for _ in range(_LABEL_TRIES):
            now = time.time()
            session = Session(
                id=str(uuid.uuid4()),
                owner=owner,
                label=new.name or random_label(),
                request_id=new.request_id,
                agent=new.agent,
                prompts=new.prompts,
                upload=new.upload,
                cols=new.cols,
                rows=new.rows,
                cpus=new.cpus,
                memory_mb=new.memory_mb,
                ttl_sec=new.ttl_sec,
                has_env=bool(new.env),
                state=State.PROVISIONING,
                reason=None,
                step="machine",
                error=None,
                version=1,
                machine_id=str(uuid.uuid4()),
                has_machine=False,
                uploaded=False,
                restored=False,
                stop_requested=False,
                delete_requested=False,
                tombstone="",
                created_at=now,
                last_activity_at=now,
                last_saved_at=None,
                stopped_at=None,
                lease_holder=self._holder,
                lease_generation=1,
                lease_expires=now + LEASE_S,
            )
            try:
                await self._database.execute(insert(sessions).values(**dataclasses.asdict(session)))
                return session, True
            except IntegrityError:
                if new.request_id is not None:
                    known = await self._first(sessions.c.owner == owner, sessions.c.request_id == new.request_id)
                    if known is not None:
                        return known, False
                if new.name:
                    raise LabelTaken(label=new.name) from None
        raise CattyError("no free label found")

    async def get(self, session: str) -> Session | None:
        """The session with this id, deleted or not; None if there is none."""
        return await self._first(sessions.c.id == session)

    async def wait(
        self, session: str, condition: Callable[[Session], bool], *, timeout: float, poll: float
    ) -> Session | None:
        """The session once `condition` holds, or as it is after `timeout` seconds; None if there is none.

        Changes made by this server are seen at once, those made by others after `poll` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changes.watch(session) as changed:
            while True:
                changed.clear()
                found = await self.get(session)
                left = deadline - time.monotonic()
                if found is None or condition(found) or left <= 0:
                    return found
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, poll)):
                        await changed.wait()

    async def labels(self, owner: str) -> dict[str, str]:
        """Ids and labels of all sessions of `owner` that are not deleted."""
        query = select(sessions.c.id, sessions.c.label).where(sessions.c.owner == owner, sessions.c.tombstone == "")
        return {row.id: row.label for row in await self._database.execute(query)}

    async def deleted(self, owner: str, reference: str) -> Session | None:
        """The session of `owner` last deleted with this id or label, while its tombstone is kept."""
        return await self._first(
            sessions.c.owner == owner,
            sessions.c.tombstone != "",
            or_(sessions.c.id == reference, sessions.c.label == reference),
        )

    async def list(self, owner: str, *, all_: bool) -> Sequence[Session]:
        """Sessions of `owner`, newest first; without `all_` only those not stopped for more than a day."""
        recent = or_(sessions.c.state != State.STOPPED, sessions.c.stopped_at > time.time() - RECENT_S)
        where = [sessions.c.owner == owner, sessions.c.tombstone == ""] + ([] if all_ else [recent])
        return await self._select(*where)

    async def to_drive(self) -> Sequence[Session]:
        """Sessions that are this server's work: not at rest, and driven by itself, by nobody or by a server that is gone."""
        busy = or_(
            sessions.c.state != State.STOPPED,
            sessions.c.has_machine,
            and_(sessions.c.delete_requested, sessions.c.tombstone == ""),
        )
        return await self._select(busy, self._free())

    async def machines(self) -> frozenset[str]:
        """Ids of all machines that some session may have. One that an engine makes after its session has ended is nobody's."""
        rows = await self._database.execute(select(sessions.c.machine_id).where(sessions.c.has_machine))
        return frozenset(row.machine_id for row in rows)

    # ---------------------------------------------------------------------------------------- requests, by any server

    async def request_stop(self, session: str, *, delete: bool) -> None:
        """Ask whoever drives it to end it, and to delete it too."""
        changes = {"stop_requested": True} | ({"delete_requested": True} if delete else {})
        await self._database.execute(update(sessions).where(sessions.c.id == session).values(changes))
        self._changes.touch(session)

    async def mark_uploaded(self, session: str) -> None:
        """The upload is in the snapshot store; said again, nothing changes."""
        changes = {"uploaded": True, "last_saved_at": time.time()}
        new = and_(sessions.c.id == session, sessions.c.uploaded.is_(False))
        await self._database.execute(update(sessions).where(new).values(changes))
        self._changes.touch(session)

    async def purge(self) -> None:
        """Forget tombstones older than a day."""
        old = and_(sessions.c.tombstone != "", sessions.c.stopped_at < time.time() - RECENT_S)
        await self._database.execute(delete(sessions).where(old))

    # ---------------------------------------------------------------------------------------- leases

    async def acquire(self, session: str) -> Lease | None:
        """The lease, if nobody else has it; then everything done under an older lease is void."""
        changes = {
            "lease_holder": self._holder,
            "lease_generation": sessions.c.lease_generation + 1,
            "lease_expires": time.time() + LEASE_S,
        }
        query = update(sessions).where(sessions.c.id == session, self._free()).values(changes)
        for row in await self._database.execute(query.returning(sessions.c.lease_generation)):
            return Lease(session, row.lease_generation)
        return None

    async def renew(self) -> None:
        """Prolong all leases that this server still holds."""
        query = update(sessions).where(sessions.c.lease_holder == self._holder)
        await self._database.execute(query.values(lease_expires=time.time() + LEASE_S))

    async def release(self, lease: Lease) -> None:
        """Give the lease back, if it is still held."""
        await self._database.execute(update(sessions).where(self._holds(lease)).values(lease_holder=None))

    # ---------------------------------------------------------------------------------------- by the lease's holder

    async def update(self, lease: Lease, *, visible: bool = True, **changes: Any) -> Session:
        """Change columns. `visible`: the session's version grows, so that whoever waits for a change wakes. Raises LeaseLost."""
        if changes.get("error") is not None:
            changes["error"] = json.dumps(changes["error"])
        if visible:
            changes["version"] = sessions.c.version + 1
        query = update(sessions).where(self._holds(lease)).values(changes).returning(sessions)
        rows = await self._database.execute(query)
        if not rows:
            raise LeaseLost
        if visible:
            self._changes.touch(lease.session)
        return Session.from_row(rows[0])

    async def happen(self, lease: Lease, session: Session, event: Event, error: CattyError | None = None) -> Session:
        """Move `session` to the state that follows `event`; `error` is what its user is told. Raises LeaseLost."""
        state, reason = next_state(session.state, session.reason, event)
        if (state, reason) == (session.state, session.reason):
            return session
        changes: dict[str, Any] = {"state": state, "reason": reason, "step": ""}
        if error is not None:
            changes["error"] = error.to_json()
        if state is State.STOPPED:
            changes["stopped_at"] = time.time()
        return await self.update(lease, **changes)

    async def bury(self, lease: Lease) -> Session:
        """Delete: a tombstone is kept for a day from now. Raises LeaseLost."""
        now = time.time()
        return await self.update(lease, tombstone=lease.session, request_id=None, lease_holder=None, stopped_at=now)

    # ----------------------------------------------------------------------------------------

    async def _first(self, *where: ColumnElement[bool]) -> Session | None:
        found = await self._select(*where, limit=1)
        return found[0] if found else None

    async def _select(self, *where: ColumnElement[bool], limit: int | None = None) -> Sequence[Session]:
        query = select(sessions).where(*where).order_by(sessions.c.created_at.desc()).limit(limit)
        return [Session.from_row(row) for row in await self._database.execute(query)]

    def _free(self) -> ColumnElement[bool]:
        """Not held by another server that is alive. A lease of this server's name is its own, or that of a process before it."""
        return or_(
            sessions.c.lease_holder.is_(None),
            sessions.c.lease_holder == self._holder,
            sessions.c.lease_expires < time.time(),
        )

    def _holds(self, lease: Lease) -> ColumnElement[bool]:
        return and_(
            sessions.c.id == lease.session,
            sessions.c.lease_holder == self._holder,
            sessions.c.lease_generation == lease.generation,
        )
