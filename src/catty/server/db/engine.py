"""Opening the database: SQLite in the data directory, or what `--database` names."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

__all__ = ["open_engine"]


def open_engine(url: str) -> AsyncEngine:
    """An engine for an async SQLAlchemy `url`, e.g. `sqlite+aiosqlite:////path/catty.db`."""
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _on_connect)
        event.listen(engine.sync_engine, "begin", _on_begin)
    return engine


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
