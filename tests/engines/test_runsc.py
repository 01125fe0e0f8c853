"""The conformance suite with gVisor as the OCI runtime."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess

import pytest

from catty.engines.base import Engine, MachineState
from engines.conformance import EngineConformance
from engines.site import Site


def knows_host_sockets() -> bool:
    """Whether there is a runsc whose sandboxes can make real Unix sockets."""
    if not shutil.which("runsc"):
        return False
    flags = subprocess.run(["runsc", "flags"], capture_output=True, text=True, check=False)
    return "host-uds" in flags.stdout + flags.stderr


pytestmark = pytest.mark.engine
if os.getuid() != 0 or not shutil.which("podman"):
    pytest.skip("needs rootful Podman", allow_module_level=True)
if not knows_host_sockets():
    pytest.skip("no runsc of 2023 or later here (Debian: backports)", allow_module_level=True)


class TestRunsc(EngineConformance):
    @pytest.fixture
    def site(self, podman_site: Site) -> Site:
        podman_site.runtime = "runsc"
        return podman_site

    # What gVisor has in place of it, or what cannot be seen from inside or outside of it.
    test_stop_kills_after_the_grace = None  # a sandbox stopped from outside is deaf to its own runtime too
    test_cpu_limit = None  # it counts CPU time in its own way
    test_nothing_of_the_engine_or_host_inside = None  # no seccomp and no host's /proc inside
    test_root_inside_is_not_root_outside = None  # Podman's user namespaces and runsc do not go together
    test_environment_and_name = None  # addresses are closed from outside

    async def test_memory_limit(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine, memory_mb=256)
        with pytest.raises(ConnectionError):
            await site.inside(engine, machine, "python3 -c 'bytearray(400 << 20)'")
        async with asyncio.timeout(10):  # its kernel goes with it
            while (await engine.inspect(machine)).state is not MachineState.EXITED:
                await asyncio.sleep(0.1)
