"""Memory of sessions in which nothing happens."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from catty.constants import FIRST_SAVE_S
from measure import pss_mb
from raw_machines import RawMachines, children
from stage import Stage

__all__ = ["measure_idle"]

MANY = 6
_HELPERS = {"slirp4netns", "pasta", "pasta.avx2"}
_PARTS = {"catty.runtime.terminal": "terminal", "catty.runtime.workspace": "workspace"}


def measure_idle(place: Stage, raw: RawMachines) -> dict[str, float]:
    """MB by name, with one session and with MANY: pages of the runtime's files are shared by all machines of a host.

    The runtime is init, terminal and workspace. What the engine keeps for a machine (conmon, the network helper) and what the server
    needs are named by themselves. The sessions run a shell; they are ended.
    """
    found: dict[str, float] = {}
    sessions: list[dict[str, str]] = []
    for count in (1, MANY):
        sessions += [place.new("--agent", "shell")[1] for _ in range(count - len(sessions))]
        time.sleep(FIRST_SAVE_S + 5)  # the first saves are over
        plural = "1 session" if count == 1 else f"{count} sessions"
        each = [_of_machine(raw, session["machine_id"]) for session in sessions]
        for name in each[0]:
            found[f"{name} per idle session, {plural}"] = statistics.median(machine[name] for machine in each)
        server, *services = (pss_mb(pid) for pid in raw.server_processes(place))
        found[f"server, {plural}"] = server
        found[f"engine's service, {plural}"] = sum(services)
    found["server per further session"] = (found[f"server, {MANY} sessions"] - found["server, 1 session"]) / (MANY - 1)
    for session in sessions:
        place.remove(session["label"])
    return found


def _of_machine(raw: RawMachines, machine: str) -> dict[str, float]:
    inspected = raw.inspect(raw.container_of(machine))
    init = int(inspected["State"]["Pid"])
    parts = {"init": pss_mb(init)}
    for pid in children(init):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        parts |= {part: pss_mb(pid) for module, part in _PARTS.items() if module in command}
    return {
        "runtime": sum(parts.values()),
        **parts,
        "conmon": pss_mb(int(inspected["State"]["ConmonPid"])),
        "network helper": sum(pss_mb(pid) for pid in _network_helpers(init)),
    }


def _network_helpers(init: int) -> list[int]:
    """The processes that are the network of the machine whose first process is `init`: its pid stands in their arguments."""
    found = []
    for directory in Path("/proc").iterdir():
        try:
            words = (
                (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if directory.name.isdecimal()
                else []
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
        if Path(words[0] if words else "").name in _HELPERS and any(str(init) in word for word in words[1:]):
            found.append(int(directory.name))
    return found
