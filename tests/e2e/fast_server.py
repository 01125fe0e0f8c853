"""The real server, to which time seems to run faster: `fast_server.py SPEED ARGUMENTS…`, with the arguments of `catty.server`.

Only what judges activity and the time to live sees the fast clock; what a machine says in seconds is stretched alike, so that shares
of a CPU stay what they are. Saves, time-outs and the clock on the wall are as ever.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from types import SimpleNamespace
from typing import Any

from catty.server import main
from catty.server.sessions import supervise
from catty.server.sessions.timing import Timing
from catty.wire.control import Status

USUAL = Timing()


def fast(speed: float) -> None:
    """Let time run `speed` times as fast, from now on."""
    begun = time.monotonic()

    def stretched(value: dict[str, Any]) -> Status:
        status = Status.from_json(value)
        ages = [age and age * speed for age in (status.output_age, status.input_age)]
        return dataclasses.replace(
            status, cpu_seconds=status.cpu_seconds * speed, output_age=ages[0], input_age=ages[1]
        )

    monotonic = lambda: begun + (time.monotonic() - begun) * speed  # noqa: E731
    replaced: Any = supervise
    replaced.time = SimpleNamespace(monotonic=monotonic, time=time.time)
    replaced.Status = SimpleNamespace(from_json=stretched)
    timing = Timing(status_every=USUAL.status_every / speed, activity_write=USUAL.activity_write / speed)
    replaced = main
    replaced.serve = functools.partial(main.serve, timing=timing)


if __name__ == "__main__":
    fast(float(sys.argv[1]))
    sys.exit(main.main(sys.argv[2:]))
