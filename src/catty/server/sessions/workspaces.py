"""The workspaces of sessions: the snapshot store of each owner, and moving snapshots between it and machines."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import Final

from catty import agents
from catty.engines import endpoint as endpoints
from catty.engines.base import Endpoint
from catty.errors import SaveFailed, SnapshotNotFound
from catty.server import snapshots
from catty.server.db.sessions import Lease, Session
from catty.server.sessions.machines import Machines
from catty.workspace.objects import Objects
from catty.workspace.store import SnapshotStore

__all__ = ["Workspaces"]

_DIAL_S: Final = 2.0  # a `workspace` process that was killed is back in a fifth of a second


class Workspaces:
    """`data`: the server's directory, which holds the object store, its indexes and the terminals' last output.

    `boot`: seconds that a helper machine has to answer.
    """

    def __init__(self, data: Path, machines: Machines, boot: float) -> None:
        self._objects = Objects.in_directory(data / "store")
        self._indexes = data / "index"
        self._logs = data / "logs"
        for directory in (self._indexes, self._logs):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._machines = machines
        self._boot = boot
        self._stores: dict[str, SnapshotStore] = {}

    def store(self, owner: str) -> SnapshotStore:
        """The snapshots of `owner`."""
        if owner not in self._stores:
            self._stores[owner] = SnapshotStore(self._objects, owner, self._indexes / f"{owner}.db")
        return self._stores[owner]

    def close(self) -> None:
        """Release all indexes."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    # ---------------------------------------------------------------------------------------- the last output

    def keep_log(self, session: str, output: bytes) -> None:
        """Keep what a terminal printed last, for after its end. Whole or not at all."""
        path = self._logs / session
        temporary = path.with_suffix(".new")
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(output)
        temporary.replace(path)

    def read_log(self, session: str) -> bytes:
        """What `keep_log` kept; nothing if nothing was."""
        with contextlib.suppress(FileNotFoundError):
            return (self._logs / session).read_bytes()
        return b""

    async def delete(self, session: Session) -> None:
        """Delete all snapshots of a session, and its log."""
        await self.store(session.owner).delete_session(session.id)
        (self._logs / session.id).unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------- between store and machine

    async def restore(self, session: Session) -> None:
        """Put the session's newest snapshot, if it has one, into its machine. Raises CattyErrors."""
        store, machine = self.store(session.owner), session.machine_id
        try:
            _, manifest = await store.load(session.id)
        except SnapshotNotFound:
            return
        await snapshots.restore(self._dialler(machine), self._machines.token(machine), store, manifest)

    async def save(self, session: Session, lease: Lease, reason: str) -> int:
        """Save what changed in a running machine; the number of the newest snapshot (0: none). Raises CattyErrors."""
        dial = self._dialler(session.machine_id)
        try:
            return await self._save(session, lease, reason, dial)
        except SaveFailed as error:
            if not isinstance(error.__cause__, OSError):
                raise
            # The connection was lost: a `workspace` process that was killed comes back, a dead machine does not answer.
            return await self._save(session, lease, reason, dial)

    async def salvage(self, session: Session, lease: Lease, endpoint: Endpoint) -> int:
        """The same through a helper on the volumes of a machine that has ended."""
        dial = functools.partial(endpoints.dial, endpoint, "workspace", seconds=self._boot)
        return await self._save(session, lease, "salvage", dial)

    async def _save(self, session: Session, lease: Lease, reason: str, dial: snapshots.Dial) -> int:
        store, token = self.store(session.owner), self._machines.token(session.machine_id)
        launch = agents.launch(session.agent, session=session.id, prompts=session.prompts)
        head = await snapshots.save(
            dial,
            token,
            store,
            session.id,
            conversation=launch.conversation,
            reason=reason,
            generation=lease.generation,
        )
        if head is None:
            head = await store.latest(session.id)
        return head.number if head is not None else 0

    def _dialler(self, machine: str) -> snapshots.Dial:
        return functools.partial(self._machines.dial, machine, "workspace", wait=_DIAL_S)
