"""A blank machine kept ready for the next session."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from catty.server.main import Server
from server.process_engine import ProcessEngine
from server.support import QUICK, Rest, a_server, eventually

WITH_SPARE = dataclasses.replace(QUICK, spare_delay=0.0, sweep=0.05)


@contextlib.asynccontextmanager
async def with_spare(data: Path, engine: ProcessEngine, **timing: float) -> AsyncIterator[tuple[Server, Rest]]:
    made = dataclasses.replace(WITH_SPARE, **timing)
    async with a_server(data, lambda *_: engine, timing=made, no_spare=False) as served:
        yield served


@pytest.fixture
async def served(short: Path, engine: ProcessEngine) -> AsyncIterator[tuple[Server, Rest]]:
    async with with_spare(short / "data", engine) as made:
        yield made


async def waiting(server: Server, other_than: str | None = None) -> str:
    """The machine that is ready, once there is one."""

    async def look() -> str | None:
        found = server.context.spares.waiting
        return found if found != other_than else None

    return str(await eventually(look))


async def swept(engine: ProcessEngine, machines: set[str]) -> None:
    """Until these machines are left."""

    async def look() -> bool:
        return set(engine.machines()) == machines

    await eventually(look)


async def test_the_next_session_takes_it_and_another_is_made(rest: Rest, server: Server, engine: ProcessEngine) -> None:
    first = await rest.running()
    spare = await waiting(server)
    second = await rest.running()
    assert second["machine_id"] == spare != first["machine_id"]
    third = await waiting(server, other_than=spare)
    for _ in range(3):  # the sweep takes it for no forgotten one
        await server.keeper._sweep()
    assert set(engine.machines()) == {first["machine_id"], second["machine_id"], third}
    await rest("POST", f"/v1/sessions/{second['id']}/stop?delete=1")
    assert set(engine.machines()) == {first["machine_id"], third}


async def test_only_a_machine_of_the_same_make_is_taken(rest: Rest, server: Server, engine: ProcessEngine) -> None:
    first = await rest.running()
    spare = await waiting(server)
    second = await rest.running(memory_mb=512)
    assert second["machine_id"] != spare
    other = await waiting(server, other_than=spare)
    await swept(engine, {first["machine_id"], second["machine_id"], other})
    assert (await rest.running(memory_mb=512))["machine_id"] == other


async def test_one_that_died_is_not_taken(rest: Rest, server: Server, engine: ProcessEngine) -> None:
    first = await rest.running()
    spare = await waiting(server)
    engine.kill(spare)
    second = await rest.running()
    assert second["machine_id"] != spare
    third = await waiting(server, other_than=spare)
    await swept(engine, {first["machine_id"], second["machine_id"], third})


async def test_it_does_not_outlive_the_server(short: Path, engine: ProcessEngine) -> None:
    async with with_spare(short / "data", engine) as (server, rest):
        session = await rest.running()
        await waiting(server)
    assert engine.machines() == [session["machine_id"]]


async def test_nobody_wants_it_for_ever(short: Path, engine: ProcessEngine) -> None:
    async with with_spare(short / "data", engine, spare_keep=0.1) as (server, rest):
        session = await rest.running()
        await waiting(server)
        await swept(engine, {session["machine_id"]})
        assert server.context.spares.ids == frozenset()
