"""Waking those who wait for a change of a session in this process. What other servers change is seen by looking now and then."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

__all__ = ["Changes"]


class Changes:
    """One event per waiter: clear it, look, wait for it; nothing that happens in between is missed."""

    def __init__(self) -> None:
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def touch(self, session: str) -> None:
        """Something about `session` changed."""
        for event in self._watchers.get(session, ()):
            event.set()

    @contextlib.contextmanager
    def watch(self, session: str) -> Iterator[asyncio.Event]:
        """An event that is set at each change."""
        event = asyncio.Event()
        self._watchers[session].add(event)
        try:
            yield event
        finally:
            self._watchers[session].discard(event)
            if not self._watchers[session]:
                del self._watchers[session]
