"""Machines without a server: by the engine's own command line, and by Catty's engine in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from catty import agents
from catty.engines.base import MachineSpec
from catty.engines.ca import host_ca_bundle
from catty.engines.container import host, open_engine
from catty.engines.container.engine import ContainerEngine
from catty.engines.container.plan import Plan, machine_plan
from catty.engines.endpoint import dial
from catty.image.identity import current_image
from catty.server.sessions.control import Control
from catty.wire.claim import Claim
from podman_cli import create_words, volume_words
from stage import Ran, Stage, run

__all__ = ["RawMachines"]

_BOOT_S = 60.0


class RawMachines:
    """An engine with an owner's name of its own. Removes what it made."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._directory, self._env = directory, env
        self._owner = f"bench-{uuid.uuid4().hex[:8]}"
        self._loop = asyncio.Runner()
        self._engine: ContainerEngine | None = None
        self.client: list[str] = []
        self.image = current_image()

    def __enter__(self) -> Self:
        self._loop.run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._close())
        self._loop.close()

    async def _open(self) -> None:
        self._engine = open_engine(self._directory, self._owner)
        self._facts = await self._engine.facts()
        podman = shutil.which("podman")
        if podman is None:
            raise SystemExit("this benchmark compares with Podman, which is not installed")
        self.client = [podman, *self._facts.options]

    async def _close(self) -> None:
        if self._engine is not None:
            for machine in await self._engine.list():
                await self._engine.destroy(machine.id)
            await self._engine.close()

    def about(self) -> dict[str, Any]:
        """The engine, for the description of the machine."""
        facts = self._facts
        storage = self.podman("info", "--format", "{{.Store.GraphDriverName}}").strip()
        network = facts.network
        return {"engine": f"podman {facts.version}", "runtime": facts.runtime, "network": network, "storage": storage}

    def podman(self, *words: str) -> str:
        """What the engine's own client prints."""
        return run([*self.client, *words], env=self._env, cwd=self._directory).out

    @contextlib.contextmanager
    def by_hand(self) -> Iterator[tuple[Ran, Ran]]:
        """A machine by `podman create` and `podman start`, what they took; it is gone after the block."""
        plan = self._plan(uuid.uuid4().hex)
        self.podman(*volume_words(plan))
        try:
            created = run([*self.client, *create_words(plan)], env=self._env, cwd=self._directory)
            yield created, run([*self.client, "start", plan.name], env=self._env, cwd=self._directory)
        finally:
            assert self._engine is not None
            self._loop.run(self._engine.destroy(plan.labels["catty.machine"]))

    def by_engine(self) -> dict[str, float]:
        """A machine by Catty's engine, then claimed; ms by name."""
        return self._loop.run(self._by_engine())

    async def _by_engine(self) -> dict[str, float]:
        assert self._engine is not None
        spec = self._spec(str(uuid.uuid4()))
        try:
            begun = time.perf_counter()
            await self._engine.create(spec)
            await self._engine.start(spec.machine)
            started = time.perf_counter()
            sock = await dial(await self._engine.endpoint(spec.machine), "terminal", seconds=_BOOT_S)
            listening = time.perf_counter()
            control = await Control.open(sock, "")
            try:
                claimed = await _claim(control, spec.machine)
            finally:
                control.close()
        finally:
            await self._engine.destroy(spec.machine)
        return {
            "engine: create + start": 1000 * (started - begun),
            "engine: started to listening": 1000 * (listening - started),
            "claim to agent started": claimed,
        }

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine says of a container."""
        (found,) = json.loads(self.podman("inspect", container))
        return dict(found)

    def container_of(self, machine: str) -> str:
        """The container of a session's machine."""
        return self.podman("ps", "--filter", f"label=catty.machine={machine}", "--format", "{{.Names}}").strip()

    def server_processes(self, place: Stage) -> list[int]:
        """The embedded server and the processes that it started and that live: the engine's service."""
        server = int(json.loads(place.catty("server", "status", "--json").out)["pid"])
        return [server, *children(server)]

    def _spec(self, machine: str) -> MachineSpec:
        return MachineSpec(machine=machine, image=self.image, ca_bundle=host_ca_bundle())

    def _plan(self, machine: str) -> Plan:
        spec = self._spec(machine)
        name = f"catty-{self._owner}-{machine}"
        return machine_plan(spec, name, self._owner, self._facts, host.host_addresses())


async def _claim(control: Control, machine: str) -> float:
    """Claim a machine that listens and have claude started; ms from sending the claim until it says that the agent runs."""
    session = str(uuid.uuid4())
    claim = Claim(
        machine=machine,
        session=session,
        label="bench",
        token=uuid.uuid4().hex,
        agent=agents.launch("claude", session=session, prompts=False),
        env={"ANTHROPIC_API_KEY": "sk-ant-none"},
    )
    text = claim.to_text()
    begun = time.perf_counter()
    await control.request("claim", timeout=_BOOT_S, claim=text)
    await control.request("start", timeout=_BOOT_S)
    while (await control.request("status", timeout=_BOOT_S))["agent"] != "running":
        await asyncio.sleep(0.001)  # each answer is a moment's work for the machine
    return 1000 * (time.perf_counter() - begun)


def children(pid: int) -> list[int]:
    """The live children of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
