"""gVisor (`runsc`): a kernel of its own for each machine, a stronger wall than namespaces alone.

It takes no routes from inside, so the addresses that a machine must not reach are closed from outside, while it is still blank.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from catty.engines.container.host import find_program
from catty.errors import EngineFailed

__all__ = ["RUNSC", "close_addresses", "runsc_programs"]

RUNSC: Final = "runsc"
# The host's network stack, inside a network namespace that Podman made; sockets made in the endpoint must be real ones.
_FLAGS: Final = ("--platform=systrap", "--network=host", "--host-uds=all")
_WITHOUT_LIMITS: Final = "--ignore-cgroups"  # where it cannot use this host's cgroups


def runsc_programs(directory: Path) -> list[str]:
    """Paths of programs, made in `directory`, that run runsc with the flags that machines need; the better one first.

    Podman has no other place for an OCI runtime's flags than configuration files. Raises EngineFailed if runsc is not there.
    """
    program = find_program(RUNSC)
    if program is None:
        raise EngineFailed(action="use runsc", reason="it is not installed (Debian: runsc, from backports)")
    if find_program("ip") is None:
        raise EngineFailed(action="use runsc", reason="it needs `ip` too (Debian: iproute2)")
    wrappers = []
    for name, flags in (("limits", _FLAGS), ("plain", (*_FLAGS, _WITHOUT_LIMITS))):
        wrapper = directory / RUNSC / name / RUNSC  # Podman tells runtimes apart by the last part
        wrapper.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([program, *flags])} "$@"\n')
        wrapper.chmod(0o700)
        wrappers.append(str(wrapper))
    return wrappers


async def close_addresses(inspected: dict[str, Any], closed: Sequence[str], *, rootless: bool) -> None:
    """Close `closed` in the network namespace of a started, blank machine. Raises EngineFailed."""
    words = ["nsenter", f"--target={inspected['State']['Pid']}", "--net"]
    words += ["--user", "--preserve-credentials"] if rootless else []
    process = await asyncio.create_subprocess_exec(
        *words,
        find_program("ip") or "ip",  # found when the wrappers were made
        "-batch",
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    routes = "".join(f"route replace blackhole {address}\n" for address in closed)
    output, _ = await process.communicate(routes.encode())
    if process.returncode:
        raise EngineFailed(action="close addresses to a machine", reason=output.decode(errors="replace").strip())
