"""How far the terminal may print ahead of its clients, and which client is left behind. No I/O, no clock of its own.

A writer paces the program: no more than a window is printed beyond what it has acknowledged, as long as its acknowledgements go on.
One that acknowledges nothing for STALL_S does not count any more, nor does a viewer at any time: where they have fallen behind by
more than a window they go on from a repainted screen. With nobody attached the program is not held back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from catty.constants import ACK_WINDOW_BYTES, STALL_S

__all__ = ["Limit", "Pace", "limit"]


class Limit(NamedTuple):
    """`offset`: where output must stop for now (None: nowhere). `until`: the time at which that is to be computed again."""

    offset: int | None
    until: float


class Pace:
    """One client's account. `sent` and `acked` are output offsets; times are seconds of any one monotonic clock."""

    def __init__(self, position: int, *, viewer: bool, now: float, window: int = ACK_WINDOW_BYTES) -> None:
        self.viewer = viewer
        self.sent = position
        self.acked = position
        self.stalled = False
        self.window = window
        self._moved = now  # when it last acknowledged something, or began to owe an acknowledgement

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return max(0, self.acked + self.window - self.sent)

    def send(self, end: int, now: float) -> None:
        """Output up to `end` has been sent, or is skipped by a repainted screen."""
        if self.sent == self.acked:
            self._moved = now
        self.sent = end

    def repainted(self, end: int, now: float) -> None:
        """A screen has been sent that stands for all output up to `end`."""
        self.send(end, now)
        self.stalled = False

    def acknowledge(self, offset: int, now: float) -> None:
        """The client has everything up to `offset`."""
        if offset > self.acked:
            self.acked = offset
            self._moved = now

    def must_skip(self, start: int, end: int) -> bool:
        """Whether the client goes on with a repainted screen rather than the next byte of a log from `start` to `end`."""
        if self.stalled and end - self.sent <= self.window:
            self.stalled = False
        return self.sent < start or ((self.viewer or self.stalled) and end - self.sent > self.window)

    def held_until(self, end: int, now: float) -> float | None:
        """None if this client does not hold back output at `end`; else the time at which it stops doing so unless it moves."""
        if self.viewer or self.stalled or end < self.acked + self.window:
            return None
        deadline = self._moved + STALL_S
        if now >= deadline:
            self.stalled = True
            return None
        return deadline


def limit(paces: Iterable[Pace], end: int, now: float) -> Limit:
    """Where output, which ends at `end` now, must stop."""
    offset: int | None = None
    until = float("inf")
    for pace in paces:
        deadline = pace.held_until(end, now)
        if deadline is not None:
            until = min(until, deadline)
        if not pace.viewer and not pace.stalled:
            bound = max(end, pace.acked + pace.window)
            offset = bound if offset is None else min(offset, bound)
    return Limit(offset, until)
