"""What runs in the machine, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

__all__ = ["Process", "cpu_seconds", "descendants", "members"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """`cpu`: seconds used by it and by those of its children that it has waited for."""

    pid: int
    state: str
    parent: int
    session: int
    cpu: float


def parse(text: str) -> Process:
    """One line of /proc/PID/stat. The command's name, in parentheses, may hold anything."""
    pid, _, rest = text.partition(" (")
    fields = rest[rest.rindex(")") + 2 :].split()
    return Process(int(pid), fields[0], int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])) / _TICKS)


def descendants(root: int, without: Collection[int] = ()) -> list[Process]:
    """All processes below `root`, without those in `without` and everything below them."""
    children: dict[int, list[Process]] = {}
    for process in _all():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [root]
    while queue:
        for process in children.get(queue.pop(), ()):
            if process.pid not in without:
                found.append(process)
                queue.append(process.pid)
    return found


def members(processes: list[Process], sessions: Collection[int]) -> list[int]:
    """Those that live in one of these sessions."""
    return [process.pid for process in processes if process.session in sessions and process.state not in "ZX"]


def cpu_seconds(processes: list[Process]) -> float:
    return sum(process.cpu for process in processes)


def _all() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    yield parse(file.read(4096).decode(errors="replace"))
            except (OSError, ValueError):
                continue  # it has ended meanwhile
