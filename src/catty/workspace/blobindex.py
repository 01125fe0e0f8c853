"""Which blob lies where in one owner's packs: an SQLite file that is only a cache, made again from the packs when it is lost."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from catty.workspace.packs import Pack, parse_index

__all__ = ["BlobIndex", "Place"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS pack (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, size INTEGER NOT NULL, tail BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blob (digest BLOB PRIMARY KEY, length INTEGER NOT NULL, pack INTEGER NOT NULL, frame INTEGER NOT NULL)
    WITHOUT ROWID;
"""


class Place(NamedTuple):
    """Where a blob lies: in which pack (its name), in which of its frames, and its length in bytes."""

    pack: str
    frame: int
    length: int


class BlobIndex:
    """Safe to use from several threads; none of its calls waits for anything but the local disk."""

    def __init__(self, path: Path | None) -> None:
        """`path`: its file, replaced by an empty one where it is no index; None keeps it in memory."""
        self._lock = threading.Lock()
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError:
            if path is None:
                raise
            for suffix in ("", "-wal", "-shm", "-journal"):
                with suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).unlink()
            self._db = self._open(path)

    @staticmethod
    def _open(path: Path | None) -> sqlite3.Connection:
        database = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        try:
            database.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {_SCHEMA}")
            database.execute("SELECT digest, length, pack, frame FROM blob LIMIT 1")
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
        except sqlite3.DatabaseError:
            database.close()
            raise
        return database

    def close(self) -> None:
        """No call is allowed after it."""
        with self._lock:
            self._db.close()

    def packs(self) -> dict[str, int]:
        """The names of the packs it knows, with their sizes in bytes."""
        with self._lock:
            return dict(self._db.execute("SELECT name, size FROM pack"))

    def add(self, name: str, size: int, tail: bytes) -> None:
        """Take in the pack `name` of `size` bytes; `tail` is its index and footer. Raises as `packs.parse_index`."""
        pack = parse_index(tail, size)
        with self._lock, closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN")
            try:
                cursor.execute("INSERT OR IGNORE INTO pack (name, size, tail) VALUES (?, ?, ?)", (name, size, tail))
                if cursor.rowcount:
                    number = cursor.lastrowid
                    rows = (
                        (digest, length, number, at)
                        for at, frame in enumerate(pack.frames)
                        for digest, length in frame.blobs
                    )
                    cursor.executemany("INSERT OR IGNORE INTO blob VALUES (?, ?, ?, ?)", rows)
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise

    def forget(self, name: str) -> None:
        """A pack cannot be read: its blobs are no longer known, unless it is added again."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM blob WHERE pack = (SELECT id FROM pack WHERE name = ?)", (name,))
            self._db.execute("DELETE FROM pack WHERE name = ?", (name,))
            self._db.execute("COMMIT")

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._db.executescript("BEGIN; DELETE FROM blob; DELETE FROM pack; COMMIT")

    def places(self, digests: Iterable[bytes]) -> dict[bytes, Place]:
        """Where those of `digests` lie that it knows."""
        query = "SELECT pack.name, frame, length FROM blob JOIN pack ON pack.id = blob.pack WHERE digest = ?"
        with self._lock, closing(self._db.cursor()) as cursor:
            found = ((digest, cursor.execute(query, (digest,)).fetchone()) for digest in digests)
            return {digest: Place(*row) for digest, row in found if row}

    def pack(self, name: str) -> Pack:
        """The index of a pack that `places` named. Raises KeyError."""
        with self._lock:
            row = self._db.execute("SELECT tail, size FROM pack WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return parse_index(*row)
