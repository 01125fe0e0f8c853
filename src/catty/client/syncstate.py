"""What sync-back remembers of a session and a directory: the last version that both sides had (docs/workspace.md, "State").

SQLite in `~/.catty/sessions/ID/`. Written after each step is done; what is about to be done is noted before, so that a process killed
in between is understood afterwards: neither a false conflict nor a loss.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from catty.errors import SyncLocked
from catty.workspace.manifest import Manifest
from catty.workspace.model import DIGEST_BYTES, WORKSPACE, Entry, Kind, digest
from catty.workspace.scan import Cache
from catty.workspace.walk import Signature

__all__ = ["DirectoryLock", "Intent", "SyncState", "read_pause", "record_upload", "state_path"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS base (path BLOB PRIMARY KEY, kind TEXT, mode INT, mtime INT, size INT, content BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (path BLOB PRIMARY KEY, signature BLOB, kind TEXT, mode INT, mtime INT, size INT, content BLOB)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS intents (path BLOB PRIMARY KEY, place BLOB, kind TEXT, mode INT, mtime INT, size INT, content BLOB);
CREATE TABLE IF NOT EXISTS copies (path BLOB PRIMARY KEY, place BLOB, kind TEXT, mode INT, mtime INT, size INT, content BLOB);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
"""
_SIGNATURE: Final = struct.Struct(">qqqQI")  # inodes may use all 64 bits, SQLite's numbers are signed
_INSIDE: Final = WORKSPACE + b"/"
_BUSY_S: Final = 10.0

_Row = tuple[str | None, int, int, int, bytes]


class Intent(NamedTuple):
    """`entry` is about to be put at `place` as the news about `path`; None: `path` is about to be removed."""

    path: bytes
    place: bytes
    entry: Entry | None


class SyncState:
    """The state of one session in one directory. Paths are relative to the directory. Usable from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the database; a damaged one is put aside (then what differs becomes a conflict, nothing is lost)."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._db.close()
            for suffix in ("", "-wal", "-shm"):  # what belongs to the damaged one must not be taken for the new one's
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).rename(path.with_suffix(f".damaged{suffix}"))
            self._open(path)

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)
        if self._db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        path.chmod(0o600)
        rows = self._db.execute("SELECT * FROM base")
        self.base: dict[bytes, Entry] = {row[0]: _entry(row[0], row[1:]) for row in rows}

    def close(self) -> None:
        """Release the database."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ base

    def record(self, news: Iterable[tuple[bytes, Entry | None]]) -> None:
        """These paths are this in both places now (None: gone); what was intended for them is done. All or nothing."""
        with self._transaction():
            for path, entry in news:
                if entry is None:
                    self.base.pop(path, None)
                    self._db.execute("DELETE FROM base WHERE path = ?", (path,))
                else:
                    self.base[path] = entry
                    self._db.execute("INSERT OR REPLACE INTO base VALUES (?,?,?,?,?,?)", (path, *_row(entry)))
                self._db.execute("DELETE FROM intents WHERE path = ?", (path,))

    def replace(self, entries: Iterable[tuple[bytes, Entry]]) -> None:
        """This is all that both sides have."""
        with self._transaction():
            self._db.execute("DELETE FROM base")
            self._db.execute("DELETE FROM intents")
            self.base = dict(entries)
            rows = ((path, *_row(entry)) for path, entry in self.base.items())
            self._db.executemany("INSERT INTO base VALUES (?,?,?,?,?,?)", rows)

    # ------------------------------------------------------------------------------------------ intents

    def intend(self, intents: Iterable[Intent]) -> None:
        """Note what is about to be done."""
        with self._transaction():
            rows = ((intent.path, intent.place, *_row(intent.entry)) for intent in intents)
            self._db.executemany("INSERT OR REPLACE INTO intents VALUES (?,?,?,?,?,?,?)", rows)

    def intents(self) -> list[Intent]:
        """What was about to be done when the last process ended."""
        return [
            Intent(row[0], row[1], _entry_or_none(row[0], row[2:])) for row in self._db.execute("SELECT * FROM intents")
        ]

    def forget_intents(self, paths: Iterable[bytes]) -> None:
        """They have been dealt with, or were not done."""
        self._db.executemany("DELETE FROM intents WHERE path = ?", ((path,) for path in paths))

    # ------------------------------------------------------------------------------------------ conflict copies

    def copy(self, path: bytes) -> tuple[bytes, Entry] | None:
        """(path, content) of the last conflict copy made for `path`."""
        row = self._db.execute("SELECT * FROM copies WHERE path = ?", (path,)).fetchone()
        return (row[1], _entry(row[1], row[2:])) if row else None

    def record_copy(self, path: bytes, place: bytes, entry: Entry) -> None:
        """The conflict copy for `path` is this."""
        self._db.execute("INSERT OR REPLACE INTO copies VALUES (?,?,?,?,?,?,?)", (path, place, *_row(entry)))

    # ------------------------------------------------------------------------------------------ pause

    @property
    def paused(self) -> str:
        """Why sync-back waits for the user; "" if it does not. Another process may change it."""
        row = self._db.execute("SELECT value FROM facts WHERE name = 'paused'").fetchone()
        return str(row[0]) if row else ""

    @paused.setter
    def paused(self, reason: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('paused', ?)", (reason,))

    # ------------------------------------------------------------------------------------------ what was read

    def load_seen(self) -> Cache:
        """What is known of local files without reading them again."""
        rows = self._db.execute("SELECT * FROM seen")
        return Cache(
            {row[0]: (Signature(*_SIGNATURE.unpack(row[1])), _entry(row[0], row[2:], prefix=b"")) for row in rows}
        )

    def store_seen(self, cache: Cache) -> None:
        """Keep that for the next process."""
        with self._transaction():
            self._db.execute("DELETE FROM seen")
            rows = ((path, _SIGNATURE.pack(*known), *_row(entry)) for path, (known, entry) in cache.known.items())
            self._db.executemany("INSERT INTO seen VALUES (?,?,?,?,?,?,?)", rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _row(entry: Entry | None) -> _Row:
    if entry is None:
        return None, 0, 0, 0, b""
    return entry.kind.value, entry.mode, entry.mtime_ns, entry.size, entry.target or b"".join(entry.blobs)


def _entry(path: bytes, row: tuple[str, int, int, int, bytes], prefix: bytes = _INSIDE) -> Entry:
    kind, mode, mtime_ns, size, content = row
    if kind == Kind.SYMLINK.value:
        return Entry(prefix + path, Kind.SYMLINK, mode, mtime_ns, target=content)
    blobs = tuple(content[at : at + DIGEST_BYTES] for at in range(0, len(content), DIGEST_BYTES))
    return Entry(prefix + path, Kind(kind), mode, mtime_ns, size, blobs)


def _entry_or_none(path: bytes, row: tuple[str | None, int, int, int, bytes]) -> Entry | None:
    kind, *rest = row
    return None if kind is None else _entry(path, (kind, *rest))  # type: ignore[arg-type]  # the rest of the row, as it was


def read_pause(path: Path) -> str:
    """Why the sync-back whose state this is waits for the user; "" if it does not. Loads nothing else."""
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S)) as db:
        row = db.execute("SELECT value FROM facts WHERE name = 'paused'").fetchone()
    return str(row[0]) if row else ""


def state_path(sessions: Path, session: str, directory: Path) -> Path:
    """Where the state of a session (its id) in a directory lies; `sessions` is `~/.catty/sessions`."""
    return sessions / session / f"sync-{_key(directory)}.db"


def record_upload(sessions: Path, session: str, directory: Path, manifest: Manifest) -> None:
    """`directory` was just uploaded as `manifest`: both sides have that now."""
    entries = (
        (path.removeprefix(_INSIDE), entry)
        for path, entry in manifest.entries.items()
        if path.startswith(_INSIDE) and b".git" not in path.split(b"/") and not entry.torn
    )
    with SyncState(state_path(sessions, session, directory)) as state:
        state.replace(entries)


def _key(directory: Path) -> str:
    return digest(os.fsencode(directory.resolve())).hex()[:16]


class DirectoryLock:
    """Held while a process syncs into a directory; `locks` is `~/.catty/locks`. A dead process holds nothing."""

    def __init__(self, locks: Path, directory: Path) -> None:
        """Raises SyncLocked if another process has it."""
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(locks / f"{_key(directory)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "?"
            os.close(self._descriptor)
            raise SyncLocked(pid=pid, path=directory) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let others sync into it."""
        os.close(self._descriptor)
