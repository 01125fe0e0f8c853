"""Two ends of a connection in memory, as `exchange.Channel`s that take their time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

__all__ = ["Pipe", "pair"]


class Pipe:
    """One end; `sent` is all that it ever sent."""

    def __init__(
        self, incoming: asyncio.Queue[str | bytes | None], outgoing: asyncio.Queue[str | bytes | None]
    ) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self.sent: list[str | bytes] = []
        self.closed = False

    async def send(self, message: str | bytes) -> None:
        if self.closed:
            raise ConnectionError("closed")
        self.sent.append(message)
        await self._outgoing.put(message)

    async def receive(self) -> str | bytes:
        message = await self._incoming.get()
        if message is None:
            self.closed = True
            raise ConnectionError("closed")
        return message

    def close(self) -> None:
        self.closed = True
        with suppress(asyncio.QueueFull):
            self._outgoing.put_nowait(None)


def pair() -> tuple[Pipe, Pipe]:
    """Both ends."""
    one: asyncio.Queue[str | bytes | None] = asyncio.Queue(100)
    two: asyncio.Queue[str | bytes | None] = asyncio.Queue(100)
    return Pipe(one, two), Pipe(two, one)
