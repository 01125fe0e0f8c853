"""What the user's machine remembers of each session: `~/.catty/sessions/ID/` (0700), one directory per session.

`state.json` is ours; the other files in the directory belong to sync-back (client/sync*.py).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from catty.client.config import Home, read_json, write_private

__all__ = ["SessionState", "forget", "load", "store"]


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session that was created here. `directory` is where it was created from ("" if nothing is to be synced back)."""

    id: str
    label: str
    server: str
    directory: str = ""
    git: bool = True  # the upload took .git along


def directory_of(home: Home, session: str) -> Path:
    """Where the files of a session lie; not necessarily there."""
    return home.sessions / session


def load(home: Home, session: str) -> SessionState | None:
    """The state of the session with this id; None if it was not created here."""
    value = read_json(directory_of(home, session) / "state.json")
    if not value:
        return None
    known = {field.name for field in dataclasses.fields(SessionState)}
    return SessionState(**{key: item for key, item in value.items() if key in known})


def store(home: Home, state: SessionState) -> None:
    """Remember a session."""
    path = directory_of(home, state.id) / "state.json"
    write_private(path, json.dumps(dataclasses.asdict(state), indent=2).encode())


def forget(home: Home, session: str) -> None:
    """Remove all that is remembered of a session; nothing happens if there is nothing."""
    shutil.rmtree(directory_of(home, session), ignore_errors=True)
