"""Opening the database: SQLite in the data directory, or what `--database` names."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, Row, event
from sqlalchemy.ext.asyncio import create_async_engine

__all__ = ["Database"]

_T = TypeVar("_T")


class Database:
    """A database that an async SQLAlchemy `url` names, e.g. `sqlite+aiosqlite:////path/catty.db`."""

    def __init__(self, url: str) -> None:
        self.engine = create_async_engine(url, hide_parameters=True)  # in errors, which are logged
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine.sync_engine, "connect", _on_connect)
            event.listen(self.engine.sync_engine, "begin", _on_begin)

    async def execute(self, statement: Executable) -> Sequence[Row[Any]]:
        """Run one statement in a transaction of its own; its rows, if it gives any.

        A caller that is cancelled waits for the end of the transaction first: half of one is nobody's business.
        """
        return await _unbroken(self._execute(statement))

    async def _execute(self, statement: Executable) -> Sequence[Row[Any]]:
        async with self.engine.begin() as connection:
            result = await connection.execute(statement)
            return result.all() if result.returns_rows else []

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


async def _unbroken(work: Coroutine[Any, Any, _T]) -> _T:
    task, cancelled = asyncio.create_task(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        task.exception()  # looked at: nobody else will
        raise asyncio.CancelledError
    return task.result()


def _on_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own idea of transactions leaves out changes of the schema
    cursor: sqlite3.Cursor = connection.cursor()
    # FULL: a session that was answered with 201 survives a power cut. One fsync per commit, and there are few commits.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    # At once, not when the first write comes: a reader that turns writer beside another process is refused without waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
