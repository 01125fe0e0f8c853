"""Bringing a database to this version's schema, at every start."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from catty.errors import ServerStartFailed
from catty.server.db.engine import Database

__all__ = ["HEAD", "migrate"]

HEAD: Final = "0001"  # the newest file in migrations/versions
_SCRIPTS: Final = Path(__file__).parent / "migrations"


async def migrate(database: Database) -> None:
    """Run what is missing. Raises ServerStartFailed for a schema of the future. Alembic, half a second of imports, is loaded only if something is."""
    try:
        rows = await database.execute(text("SELECT version_num FROM alembic_version"))
    except DBAPIError:
        rows = []
    if [row.version_num for row in rows] != [HEAD]:
        async with database.engine.begin() as connection:
            await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise ServerStartFailed(
            reason="its database was made by a newer version of catty",
            hint="Run that version, or one after it.",
        ) from None
