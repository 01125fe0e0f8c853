"""The migrations make exactly what the schema says, once, also when several servers start at a time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from catty.server.db import migrate as module
from catty.server.db.engine import Database
from catty.server.db.migrate import HEAD, migrate
from catty.server.db.schema import metadata


async def test_migrations_make_the_schema(tmp_path: Path) -> None:
    engine = Database(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    await migrate(engine)
    await migrate(engine)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with engine.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.close()


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(Path(module.__file__).parent / "migrations")).get_current_head() == HEAD


async def test_two_servers_at_once(tmp_path: Path) -> None:
    engines = [Database(f"sqlite+aiosqlite:///{tmp_path}/a.db") for _ in range(2)]
    await asyncio.gather(*(migrate(engine) for engine in engines))
    for engine in engines:
        await engine.close()


MIGRATE = """
import asyncio, sys
from catty.server.db.engine import Database
from catty.server.db.migrate import migrate
async def main():
    engine = Database(sys.argv[1])
    await migrate(engine)
    await engine.close()
asyncio.run(main())
print("alembic" in sys.modules)
"""


def test_an_up_to_date_database_costs_no_alembic(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MIGRATE, f"sqlite+aiosqlite:///{tmp_path}/a.db"]
    said = [subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout for _ in range(2)]
    assert said == ["True\n", "False\n"]
