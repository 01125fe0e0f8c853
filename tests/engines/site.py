"""A place where engines are tested: how to open one there, and how to look into its machines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from catty.engines.base import Engine, MachineSpec
from catty.engines.endpoint import dial
from engines.inside import claim, execute

BOOT_S = 30  # on a machine that is busy with other things too


@dataclass
class Site:
    """`open` makes an engine object for an owner's name; `cli` is the command line of the engine's own client; `image` boots."""

    open: Callable[[str], Engine]
    cli: list[str]
    image: str
    runtime: str = ""  # OCI runtime that specs ask for
    tokens: dict[str, str] = field(default_factory=dict)  # of claimed machines
    owner: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:8]}")

    async def command(self, *words: str, ok: bool = True) -> str:
        """Output of the engine's own client."""
        process = await asyncio.create_subprocess_exec(
            *self.cli, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if ok:
            assert process.returncode == 0, f"{words}: {output.decode()}"
        return output.decode().strip()

    async def inside(self, engine: Engine, machine: str, script: str, user: str = "root") -> tuple[int, str]:
        """Exit code and output of a shell script in a machine that `boot` made."""
        if token := self.tokens.get(machine):
            return await execute(await engine.endpoint(machine), token, script, user)
        return await self.beside(machine, script, user)

    async def beside(self, machine: str, script: str, user: str = "root") -> tuple[int, str]:
        """The same, run by the engine's own client."""
        words = [*self.cli, "exec", "--user", user, self.container(machine), "sh", "-c", script]
        process = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode().strip()

    async def succeed(self, engine: Engine, machine: str, script: str, user: str = "root") -> str:
        code, output = await self.inside(engine, machine, script, user)
        assert code == 0, f"{script}: exited {code}: {output}"
        return output

    def container(self, machine: str) -> str:
        return f"catty-{self.owner}-{machine}"

    async def pid(self, machine: str) -> int:
        """The host's pid of a machine's PID 1."""
        return int(await self.command("inspect", "--format", "{{.State.Pid}}", self.container(machine)))

    async def remains(self) -> list[str]:
        """Containers, volumes, networks and mounts of this site's owner."""
        found = await self.command("ps", "--all", "--format", "{{.Names}}")
        found += "\n" + await self.command("volume", "ls", "--format", "{{.Name}}")
        found += "\n" + await self.command("network", "ls", "--format", "{{.Name}}")
        found += "\n" + Path("/proc/self/mountinfo").read_text()
        return [line for line in found.splitlines() if self.owner in line]

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        """An engine; its machines are destroyed in the end, and nothing may remain of them."""
        engine = self.open(self.owner)
        try:
            yield engine
        finally:
            for machine in await engine.list():
                await engine.destroy(machine.id)
            await engine.close()
        assert await self.remains() == []

    def spec(self, **more: object) -> MachineSpec:
        return MachineSpec(
            **({"machine": str(uuid.uuid4()), "image": self.image, "memory_mb": 512, "runtime": self.runtime} | more)
        )  # type: ignore[arg-type]

    async def boot(self, engine: Engine, **more: object) -> str:
        """A running machine, listening."""
        spec = self.spec(**more)
        await engine.create(spec)
        await engine.start(spec.machine)
        await self.claim(engine, spec.machine)
        return spec.machine

    async def claim(self, engine: Engine, machine: str) -> None:
        """Wait until a machine that was started listens, and make it a session's."""
        endpoint = await engine.endpoint(machine)
        (await dial(endpoint, "terminal", seconds=BOOT_S)).close()
        self.tokens[machine] = await claim(endpoint, machine, BOOT_S)


@contextlib.contextmanager
def listening(address: str) -> Iterator[int]:
    """The port of a TCP listener on this host, which takes connections into its backlog."""
    with socket.create_server((address, 0), backlog=16) as server:
        yield server.getsockname()[1]
