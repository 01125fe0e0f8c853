"""kill -9 of the server at every step, and two servers on one database: nothing is stuck, orphaned or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from catty.engines.base import MachineSpec
from catty.errors import ServerStartFailed
from catty.server.db.engine import Database
from catty.server.db.schema import sessions as table
from catty.workspace.manifest import Manifest
from catty.workspace.model import digest
from server.process_engine import ProcessEngine
from server.server_process import ServerProcess
from server.support import a_server, eventually


@pytest.fixture
async def process(short: Path, engine: ProcessEngine) -> AsyncIterator[ServerProcess]:
    process = ServerProcess(short)
    await process.start()
    yield process
    await process.end(signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_sessions_go_on_without_their_server(
    process: ServerProcess, engine: ProcessEngine, how: signal.Signals
) -> None:
    async with process.client() as client:
        session = await client.running()
    code = await process.end(how)
    assert code == (0 if how is signal.SIGTERM else -signal.SIGKILL)
    assert [machine.state.value for machine in await engine.list()] == ["running"]
    (engine.root / session["machine_id"] / "workspace" / "file").write_text("while it was away")
    await process.start()
    async with process.client() as client:
        assert (await client("GET", f"/v1/sessions/{session['id']}"))["state"] == "running"
        stopped = await client("POST", f"/v1/sessions/{session['id']}/stop")
        assert (stopped["state"], stopped["error"]) == ("stopped", None)
        manifest = Manifest.from_bytes(await client("GET", f"/v1/sessions/{session['id']}/snapshots/latest"))
        assert manifest.entries[b"workspace/file"].blobs == (digest(b"while it was away"),)
    assert engine.machines() == []


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5])
async def test_killed_while_starting_a_session(process: ServerProcess, engine: ProcessEngine, delay: float) -> None:
    """Without secrets every step can be done again; the session runs in the end."""
    async with process.client() as client:
        made = await client("POST", "/v1/sessions", {"agent": "shell"}, expect=201)
        await asyncio.sleep(delay)
    await process.end(signal.SIGKILL)
    await process.start()
    async with process.client() as client:
        session = await client.until(made["id"], lambda now: now["state"] != "provisioning")
        assert (session["state"], session["error"]) == ("running", None)
        assert engine.machines() == [session["machine_id"]]
        await client("POST", f"/v1/sessions/{session['id']}/stop")
    assert engine.machines() == []


@pytest.mark.parametrize("step", ["machine", "claim", "workspace"])
async def test_killed_with_secrets_in_its_memory(process: ServerProcess, engine: ProcessEngine, step: str) -> None:
    """Before the claim the secrets are lost and the session fails clearly; after it nobody needs them any more."""
    async with process.client() as client:
        request = {"agent": "shell", "secrets": {"A": "b"}, "workspace": "upload"}
        made = await client("POST", "/v1/sessions", request, expect=201)
        await client.until(made["id"], lambda now: now["step"] == step or now["step"] == "workspace")
        await process.end(signal.SIGKILL)
    step = await step_of(process.data, made["id"])
    await process.start()
    async with process.client() as client:
        if step == "workspace":
            await client.until(made["id"], lambda now: now["step"] == "workspace")
            await client("POST", f"/v1/sessions/{made['id']}/stop")
        else:
            session = await client.until(
                made["id"], lambda now: now["state"] == "stopped" or now["step"] == "workspace"
            )
            if session["state"] == "stopped":
                assert (session["reason"], session["error"]["code"]) == ("failed", "secrets-lost")
            else:  # it was killed between the claim and its record
                await client("POST", f"/v1/sessions/{made['id']}/stop")
    assert engine.machines() == []


async def step_of(data: Path, session: str) -> str:
    import sqlite3

    with contextlib.closing(sqlite3.connect(data / "catty.db")) as connection:
        return str(connection.execute("SELECT step FROM sessions WHERE id = ?", (session,)).fetchone()[0])


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
async def test_killed_while_stopping(process: ServerProcess, engine: ProcessEngine, delay: float) -> None:
    async with process.client() as client:
        session = await client.running()
        (engine.root / session["machine_id"] / "workspace" / "file").write_text("work")
        stop = asyncio.create_task(client("POST", f"/v1/sessions/{session['id']}/stop"))
        await asyncio.sleep(delay)
        await process.end(signal.SIGKILL)
        await asyncio.gather(stop, return_exceptions=True)
    await process.start()
    async with process.client() as client:
        stopped = await client("POST", f"/v1/sessions/{session['id']}/stop")
        assert (stopped["state"], stopped["reason"], stopped["error"]) == ("stopped", "user", None)
        manifest = Manifest.from_bytes(await client("GET", f"/v1/sessions/{session['id']}/snapshots/latest"))
        assert manifest.entries[b"workspace/file"].blobs == (digest(b"work"),)
    assert engine.machines() == []


async def test_machine_and_server_die_together(process: ServerProcess, engine: ProcessEngine) -> None:
    async with process.client() as client:
        session = await client.running()
    (engine.root / session["machine_id"] / "workspace" / "file").write_text("work")
    await process.end(signal.SIGKILL)
    engine.kill(session["machine_id"])
    await process.start()
    async with process.client() as client:
        stopped = await client.until(session["id"], lambda now: now["state"] == "stopped")
        assert (stopped["reason"], stopped["error"]["code"]) == ("crashed", "machine-died")
        manifest = Manifest.from_bytes(await client("GET", f"/v1/sessions/{session['id']}/snapshots/latest"))
        assert manifest.entries[b"workspace/file"].blobs == (digest(b"work"),)
    assert engine.machines() == []


async def test_a_machine_that_vanished(process: ServerProcess, engine: ProcessEngine) -> None:
    async with process.client() as client:
        session = await client.running()
        await process.end(signal.SIGKILL)
    await engine.destroy(session["machine_id"])
    await process.start()
    async with process.client() as client:
        stopped = await client.until(session["id"], lambda now: now["state"] == "stopped")
        assert stopped["reason"] == "crashed"


async def test_machines_that_nobody_knows_are_destroyed(short: Path, engine: ProcessEngine) -> None:
    await engine.create(MachineSpec("stray", "image"))
    await engine.start("stray")
    async with a_server(short / "data", lambda *_: engine) as (_, client):
        session = await client.running()

        async def only_ours() -> bool:
            return engine.machines() == [session["machine_id"]]

        await eventually(only_ours)


async def test_a_machine_that_is_somebody_elses(short: Path, engine: ProcessEngine) -> None:
    """Records that were mixed up never put one session's files into another one's machine."""
    async with a_server(short / "data", lambda *_: engine) as (_, client):
        body = {"agent": "shell", "workspace": "upload"}
        mine, theirs = [await client("POST", "/v1/sessions", body, expect=201) for _ in range(2)]
        for made in (mine, theirs):
            await client.until(made["id"], lambda now: now["step"] == "workspace")
    database = Database(f"sqlite+aiosqlite:///{short}/data/catty.db")
    for session, machine in ((theirs, "none"), (mine, theirs["machine_id"])):
        where = update(table).where(table.c.id == session["id"])
        await database.execute(where.values(machine_id=machine, step="claim"))
    await database.close()
    async with a_server(short / "data", lambda *_: engine) as (_, client):
        stopped = await client.until(mine["id"], lambda now: now["state"] == "stopped")
        assert (stopped["reason"], stopped["error"]["code"]) == ("failed", "claim-refused")


async def test_a_server_that_leaves_gives_its_leases_back(short: Path, engine: ProcessEngine) -> None:
    async with a_server(short / "data", lambda *_: engine) as (_, client):
        session = await client.running()
    database = Database(f"sqlite+aiosqlite:///{short}/data/catty.db")
    (row,) = await database.execute(select(table).where(table.c.id == session["id"]))
    await database.close()
    assert (row.state, row.lease_holder) == ("running", None)


async def test_one_server_per_data_directory(short: Path, engine: ProcessEngine) -> None:
    async with a_server(short / "data", lambda *_: engine):
        with pytest.raises(ServerStartFailed, match="already serves"):
            async with a_server(short / "data", lambda *_: engine):
                pass


async def test_two_servers_on_one_database(short: Path, engine: ProcessEngine) -> None:
    """Each session has one driver; the other server takes over when its lease is out, and ends it once."""
    url = f"sqlite+aiosqlite:///{short}/shared.db"
    for name in ("a", "b"):
        (short / name).mkdir()
        (short / name / "server.key").write_text("00" * 32 + "\n")
        (short / name / "store").symlink_to(short / "store")
    (short / "store").mkdir()
    async with (
        a_server(short / "a", lambda *_: engine, database=url) as (first, one),
        a_server(short / "b", lambda *_: engine, database=url) as (_, two),
    ):
        session = await one.running()
        seen = await two("GET", f"/v1/sessions/{session['id']}")
        assert seen["state"] == "running"
        both = await asyncio.gather(*(c("POST", f"/v1/sessions/{session['id']}/stop") for c in (one, two, one, two)))
        assert {stopped["state"] for stopped in both} == {"stopped"}
        assert engine.calls.count("destroy") == 1

        second = await one.running()
        # as if the first server had been away for long
        await first.database.execute(update(table).values(lease_expires=1.0))

        async def taken_over() -> Any:
            (row,) = await first.database.execute(select(table).where(table.c.id == second["id"]))
            return row.lease_generation > 1

        await eventually(taken_over)
        stopped = await one("POST", f"/v1/sessions/{second['id']}/stop")
        assert stopped["state"] == "stopped"
        assert engine.calls.count("destroy") == 2
    assert engine.machines() == []
