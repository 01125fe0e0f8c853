"""What every phase of a session works with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catty.errors import CattyError
from catty.server.db.sessions import Lease, Session, SessionStore
from catty.server.sessions.machines import Machines
from catty.server.sessions.spares import Spares
from catty.server.sessions.states import Event
from catty.server.sessions.timing import Timing
from catty.server.sessions.workspaces import Workspaces

__all__ = ["Context", "Hold"]


@dataclass(slots=True)
class Context:
    """The server's parts. `image` names the session image; `uploads` holds when each owner last sent something (monotonic)."""

    sessions: SessionStore
    machines: Machines
    workspaces: Workspaces
    spares: Spares
    image: Callable[[], str]
    ca_bundle: Path | None = None
    timing: Timing = field(default_factory=Timing)
    uploads: dict[str, float] = field(default_factory=dict)

    def upload_seen(self, owner: str) -> None:
        """`owner` sent a part of an upload just now."""
        self.uploads[owner] = time.monotonic()


@dataclass(slots=True)
class Hold:
    """A session under a lease: its record as last written, and the environment that its user gave (None: not known to this process).

    Every method raises LeaseLost.
    """

    context: Context
    lease: Lease
    session: Session
    env: dict[str, str] | None = field(default=None, repr=False)

    async def update(self, *, visible: bool = True, **changes: Any) -> None:
        """See `SessionStore.update`."""
        self.session = await self.context.sessions.update(self.lease, visible=visible, **changes)

    async def happen(self, event: Event, error: CattyError | None = None) -> None:
        """See `SessionStore.happen`."""
        self.session = await self.context.sessions.happen(self.lease, self.session, event, error)
