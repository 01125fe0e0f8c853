"""When a session is active, and what its time to live says. No I/O; times are seconds of a clock that leaves out the server's sleep.

Activity is a byte typed, a byte printed, a running `exec`, or CPU use beyond `ACTIVITY_CPU_SHARE` of a core over `ACTIVITY_WINDOW_S`.
Being attached is not. Numbers come from the machine and may be anything: they can keep the session alive (so can a program that
prints), never break the keeper.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum

from catty import constants
from catty.wire.control import Status

__all__ = ["Activity", "Verdict", "warning_lead"]


class Verdict(Enum):
    """What the time to live asks for now."""

    GO_ON = "go on"
    WARN = "warn"  # said once per stretch of inactivity
    END = "end"


class Activity:
    """Follows one machine's status reports.

    `idle` is for how long the session had been inactive at `now`, where that is known from an earlier server process. What happened
    while no server looked shows only in time (the machine may not answer at once, CPU use takes a minute to be seen): so whoever takes
    a session up ends it no sooner than after the time of a warning.
    """

    def __init__(self, now: float, idle: float = 0.0) -> None:
        self._begun = now
        self._last = now - max(0.0, idle)
        self._bytes: tuple[int, int] | None = None
        self._cpu: deque[tuple[float, float]] = deque()
        self._warned = False

    def observe(self, now: float, status: Status) -> None:
        """Take in a status report that was true at `now`."""
        bytes_now = (status.input, status.output)
        if self._bytes is None:
            # Nothing to compare with yet: the machine's own ages say when its last byte passed.
            ages = [age for age in (status.input_age, status.output_age) if age is not None and age >= 0]
            if ages:
                self._last = max(self._last, now - min(ages))
        elif bytes_now != self._bytes:
            self.active(now)
        self._bytes = bytes_now
        if status.execs > 0 or self._busy(now, status.cpu_seconds):
            self.active(now)

    def active(self, now: float) -> None:
        """Somebody did something at `now` that no report may show, such as an `exec` that was short."""
        self._last = max(self._last, now)
        self._warned = False

    def idle(self, now: float) -> float:
        """Seconds of inactivity."""
        return max(0.0, now - self._last)

    def judge(self, now: float, ttl: float, *, can_warn: bool = True) -> Verdict:
        """What to do about a time to live of `ttl` seconds; WARN only once until the next activity, and only if somebody can be told."""
        lead = warning_lead(ttl)
        left = max(ttl - self.idle(now), self._begun + lead - now)
        if left <= 0:
            return Verdict.END
        if left <= lead and can_warn and not self._warned:
            self._warned = True
            return Verdict.WARN
        return Verdict.GO_ON

    def _busy(self, now: float, cpu_seconds: float) -> bool:
        """Whether the CPU time used over the last window was more than the share that counts."""
        if not math.isfinite(cpu_seconds):
            return False
        if self._cpu and cpu_seconds < self._cpu[-1][1]:
            self._cpu.clear()
        self._cpu.append((now, cpu_seconds))
        while len(self._cpu) > 1 and now - self._cpu[1][0] >= constants.ACTIVITY_WINDOW_S:
            self._cpu.popleft()
        then, used = self._cpu[0]
        elapsed = now - then
        return elapsed >= constants.ACTIVITY_WINDOW_S and cpu_seconds - used > constants.ACTIVITY_CPU_SHARE * elapsed


def warning_lead(ttl: float) -> float:
    """How long before the end the warning comes, in seconds: TTL_WARNING_S, but at most half of a short time to live."""
    return min(constants.TTL_WARNING_S, ttl / 2)
