"""An engine whose machines are local processes: the real runtime, without a container. For tests of the server.

A machine is a directory: `spec.json`, its volumes `workspace` and `home`, its endpoint, and `pid` once it was started. So another
process finds the machines of an earlier one. Give it a short path: Unix sockets lie in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from catty.engines.base import (
    Capabilities,
    Endpoint,
    Engine,
    Exit,
    Machine,
    MachineSpec,
    MachineState,
    Progress,
    UnixEndpoint,
)
from catty.errors import EngineFailed, MachineNotFound

_POLL_S = 0.05


class ProcessEngine(Engine):
    """Machines below `root`; those of other owners are not seen."""

    def __init__(self, root: Path, owner: str = "test") -> None:
        self.root = root
        self._owner = owner
        self.calls: list[str] = []
        root.mkdir(parents=True, exist_ok=True)

    async def probe(self) -> Capabilities:
        return Capabilities("process", "1", True, "", *[False] * 2, True, *[False] * 6, True)

    async def has_image(self, image: str) -> bool:
        return True

    async def ensure_image(self, image: str, progress: Progress) -> None:
        pass

    async def create(self, spec: MachineSpec) -> Machine:
        self.calls.append("create")
        directory = self.root / spec.machine
        for name in ("workspace", "home", "endpoint"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        facts = {"owner": self._owner, "image": spec.image, "labels": spec.labels}
        (directory / "spec.json").write_text(json.dumps(facts))
        return await self.inspect(spec.machine)

    async def start(self, machine: str) -> None:
        self.calls.append("start")
        if (await self.inspect(machine)).state is not MachineState.RUNNING:
            directory = self._directory(machine)
            (directory / "pid").write_text(str(self._spawn(directory, directory / "endpoint")))

    async def stop(self, machine: str, grace: float) -> None:
        self.calls.append("stop")
        pid = self._pid(machine)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM) if pid else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._ended(machine)
        self.kill(machine)
        await self._ended(machine)

    def kill(self, machine: str) -> None:
        """As if somebody killed the machine from outside: PID 1 first, then all below it."""
        pid = self._pid(machine)
        if pid and _alive(pid):
            for victim in [pid, *_descendants(pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)

    async def destroy(self, machine: str) -> None:
        self.calls.append("destroy")
        if (self.root / machine).exists():
            self.kill(machine)
            await self._ended(machine)
            shutil.rmtree(self.root / machine)

    async def inspect(self, machine: str) -> Machine:
        directory = self._directory(machine)
        labels = json.loads((directory / "spec.json").read_text())["labels"]
        pid = self._pid(machine)
        state = MachineState.CREATED if pid is None else MachineState.RUNNING if _alive(pid) else MachineState.EXITED
        return Machine(machine, machine, state, exit_code=137 if state is MachineState.EXITED else None, labels=labels)

    async def list(self) -> list[Machine]:
        return [await self.inspect(path.name) for path in self.root.iterdir() if (path / "spec.json").exists()]

    async def watch(self) -> AsyncIterator[Exit]:
        running: set[str] = set()
        while True:
            now = {machine.id for machine in await self.list() if machine.state is MachineState.RUNNING}
            for machine in running - now:
                yield Exit(machine, 137, "exited 137")
            running = now
            await asyncio.sleep(_POLL_S)

    async def endpoint(self, machine: str) -> Endpoint:
        return UnixEndpoint(self._directory(machine) / "endpoint", os.geteuid())

    @contextlib.asynccontextmanager
    async def salvage(self, machine: str) -> AsyncIterator[Endpoint]:
        self.calls.append("salvage")
        if (await self.inspect(machine)).state is not MachineState.EXITED:
            raise EngineFailed(action="salvage the machine", reason="it has not exited")
        directory = self._directory(machine)
        endpoint = directory / "salvage"
        shutil.rmtree(endpoint, ignore_errors=True)
        endpoint.mkdir()
        helper = self._spawn(directory, endpoint, salvage=True)
        try:
            yield UnixEndpoint(endpoint, os.geteuid())
        finally:
            for victim in [helper, *_descendants(helper)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            await _gone(helper)

    async def close(self) -> None:
        pass

    def machines(self) -> list[str]:
        """What there is now."""
        return sorted(path.name for path in self.root.iterdir())

    def destroy_all(self) -> None:
        """At the end of a test."""
        for machine in self.machines():
            self.kill(machine)

    def _directory(self, machine: str) -> Path:
        directory = self.root / machine
        if not (directory / "spec.json").exists():
            raise MachineNotFound(machine=machine)
        return directory

    def _pid(self, machine: str) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return int((self.root / machine / "pid").read_text())
        return None

    async def _ended(self, machine: str) -> None:
        if pid := self._pid(machine):
            await _gone(pid)

    def _spawn(self, directory: Path, endpoint: Path, *, salvage: bool = False) -> int:
        """The runtime's first process, which outlives this one. Its pid."""
        environment = os.environ | {
            "CATTY_MACHINE": directory.name,
            "CATTY_ENDPOINT": str(endpoint),
            "CATTY_WORKSPACE_DIR": str(directory / "workspace"),
            "CATTY_AGENT_HOME": str(directory / "home"),
            "CATTY_AGENT_UID": str(os.getuid()),
        }
        if salvage:
            environment["CATTY_SALVAGE"] = "1"
        log = str(directory / "log")
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "catty.runtime.init"],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, append, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, log, append, 0o600),
            ],
            setsid=True,
        )


def _alive(pid: int) -> bool:
    """Whether the process runs; one that waits for its parent, which may be this very process, does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def _gone(pid: int) -> None:
    """Wait for the end of a process."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    _alive(pid)  # takes it off the list, if it is a child of this process


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found
