"""The container engine: machines as containers of Podman (rootful, rootless) or Docker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from catty import constants
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
from catty.engines.ca import host_ca_bundle
from catty.engines.container import host
from catty.engines.container.api import disk_full
from catty.engines.container.backend import Backend
from catty.engines.container.containers import SUBNETS, Containers, filters
from catty.engines.container.images import build_image
from catty.engines.container.plan import (
    HOME_VOLUME,
    LABEL_CLOSED,
    LABEL_MACHINE,
    LABEL_OWNER,
    LABEL_PREFIX,
    LABEL_RUNTIME,
    LABEL_SALVAGE,
    WORKSPACE_VOLUME,
    Facts,
    machine_plan,
    salvage_plan,
    sandboxed,
)
from catty.engines.container.probe import load_facts, probe, save_facts
from catty.engines.container.sandbox import close_addresses
from catty.errors import (
    CattyError,
    DiskFull,
    EngineDown,
    EngineFailed,
    EngineSlow,
    ImageMissing,
    MachineNotFound,
    MachineUnreachable,
)

__all__ = ["ContainerEngine"]

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_DESTROY_TRIES: Final = 4
_DESTROY_WAIT_S: Final = 0.2  # before the second try; doubled for each further one
_WATCH_AGAIN_S: Final = 0.2  # before the engine's events are asked for again; doubled up to:
_WATCH_AGAIN_MAX_S: Final = 10.0
_OOM_EXIT: Final = 137  # 128 + SIGKILL

_STATES: Final = {
    "created": MachineState.CREATED,
    "configured": MachineState.CREATED,
    "initialized": MachineState.CREATED,
    "running": MachineState.RUNNING,
    "paused": MachineState.RUNNING,
    "restarting": MachineState.RUNNING,
    "stopping": MachineState.RUNNING,
}


class ContainerEngine(Engine):
    """`owner` names the server: engines of different owners never touch each other's machines. `directory` holds the engine's socket,
    log and cached probe. Nothing is asked of the backend before the first call."""

    def __init__(self, backend: Backend, owner: str, directory: Path) -> None:
        if not _NAME.fullmatch(owner):
            raise ValueError(f"{owner!r} cannot be an owner's name")
        self._backend = backend
        self._containers = Containers(backend)
        self._owner = owner
        self._directory = directory
        self._main = _Flavour(backend, directory / "probe.json")
        self._flavours: dict[str, _Flavour] = {}  # by OCI runtime asked for
        self._asked: dict[str, str] = {}  # OCI runtimes of machines that this process made

    async def probe(self) -> Capabilities:
        facts = await self.facts()
        return Capabilities(
            name=self._backend.dialect.name,
            version=facts.version,
            rootless=facts.rootless,
            runtime=facts.runtime,
            user_namespace=facts.rootless or facts.auto_userns or facts.first_id != 0,
            per_machine_namespace=facts.auto_userns,
            unix_endpoint=True,
            tcp_endpoint=False,
            disk_limit=facts.disk_limit,
            memory_limit="memory" in facts.limits,
            cpu_limit="cpu" in facts.limits,
            pids_limit="pids" in facts.limits,
            network_isolation=bool(facts.network),
            salvage=True,
            notes=facts.notes,
        )

    async def has_image(self, image: str) -> bool:
        await self.facts()
        path = self._backend.dialect.image_exists(image)
        reply = await self._backend.call("GET", path, action="look for an image", expect=(200, 204, 404))
        return reply.status != 404

    async def ensure_image(self, image: str, progress: Progress) -> None:
        if await self.has_image(image):
            return
        facts = await self.facts()
        log = self._directory / "image.log"
        await build_image(self._backend.command(facts.options), image, progress, log, host_ca_bundle())

    async def create(self, spec: MachineSpec) -> Machine:
        flavour = await self._flavour(spec.runtime)
        facts = await flavour.facts()
        name = self._name(spec.machine)
        if not facts.network:
            raise EngineFailed(action="give a machine a network", reason="neither slirp4netns nor pasta works here")
        full = disk_full(Path(facts.storage))
        refuse = full.fields["percent"] >= constants.DISK_REFUSE_PERCENT and not facts.disk_limit
        if refuse and await self._containers.inspect(name) is None:
            raise full
        closed = host.host_addresses()
        if self._backend.dialect.own_network:
            labels = {LABEL_OWNER: self._owner, LABEL_MACHINE: spec.machine}
            closed += [SUBNETS, await self._containers.create_network(name, labels)]
        plan = machine_plan(spec, name, self._owner, facts, closed)
        if flavour.backend.sandbox:
            plan = sandboxed(plan, spec.runtime)
        try:
            await flavour.containers.create(dataclasses.replace(plan, runtime=flavour.backend.runtime), facts.first_id)
        except (EngineFailed, ImageMissing, DiskFull):
            with contextlib.suppress(CattyError):  # what failed first is what the caller must know
                if await self._containers.inspect(name) is None:
                    await self._destroy(name)
            raise
        self._asked[spec.machine] = spec.runtime
        return await self.inspect(spec.machine)

    async def start(self, machine: str) -> None:
        if machine not in self._asked:
            self._asked[machine] = (await self._labels(machine)).get(LABEL_RUNTIME, "")
        flavour = await self._flavour(self._asked[machine])
        with _named(machine):
            await flavour.containers.start(self._name(machine))
        if flavour.backend.sandbox:
            await self._close_addresses(machine)

    async def stop(self, machine: str, grace: float) -> None:
        await self.facts()
        with _named(machine):
            await self._containers.stop(self._name(machine), grace)

    async def destroy(self, machine: str) -> None:
        await self.facts()
        for attempt in range(_DESTROY_TRIES):
            try:
                await self._destroy(self._name(machine))
            except (EngineFailed, EngineSlow, EngineDown):
                if attempt == _DESTROY_TRIES - 1:
                    raise
                await asyncio.sleep(_DESTROY_WAIT_S * 2**attempt)
            else:
                return

    async def inspect(self, machine: str) -> Machine:
        return _machine(await self._inspect(machine))

    async def list(self) -> list[Machine]:
        await self.facts()
        found = await self._containers.list({LABEL_OWNER: self._owner})
        ids = [item["Labels"][LABEL_MACHINE] for item in found if LABEL_SALVAGE not in item["Labels"]]
        inspected = await asyncio.gather(*(self._containers.inspect(self._name(machine)) for machine in ids))
        return [_machine(item) for item in inspected if item]

    async def watch(self) -> AsyncIterator[Exit]:
        await self.facts()
        since = time.time()
        wait = _WATCH_AGAIN_S
        while True:
            conditions = filters(type=["container"], event=["die", "died"], label=[f"{LABEL_OWNER}={self._owner}"])
            # Numbers of seconds with a fraction: what happened while nobody listened is told again.
            params = {"stream": "true", "since": f"{since:.6f}", "filters": conditions}
            try:
                async for event in self._backend.lines("events", action="tell what happens", params=params):
                    since, wait = max(since, event.get("timeNano", 0) / 1e9 + 1e-6), _WATCH_AGAIN_S
                    labels = event.get("Actor", {}).get("Attributes", {})
                    if LABEL_MACHINE in labels and LABEL_SALVAGE not in labels:
                        yield await self._exit(labels[LABEL_MACHINE])
            except (EngineDown, EngineSlow, EngineFailed):
                pass
            await asyncio.sleep(wait)
            wait = min(wait * 2, _WATCH_AGAIN_MAX_S)

    async def endpoint(self, machine: str) -> Endpoint:
        return self._endpoint(await self._inspect(machine), await self.facts())

    @contextlib.asynccontextmanager
    async def salvage(self, machine: str) -> AsyncIterator[Endpoint]:
        facts = await self.facts()
        inspected = await self._inspect(machine)
        if _machine(inspected).state is MachineState.RUNNING:
            raise EngineFailed(action="salvage the machine", reason="it is running")
        id_map = self._backend.dialect.id_map(inspected)
        image = str(inspected.get("ImageName") or inspected["Config"]["Image"])
        plan = salvage_plan(machine, self._name(machine), self._owner, image=image, facts=facts, id_map=id_map)
        await self._remove_helper(plan.name)  # of a server that died while it salvaged
        try:
            await self._containers.create(plan, facts.first_id)
            await self._containers.start(plan.name)
            helper = await self._containers.inspect(plan.name)
            if helper is None:
                raise MachineNotFound(machine=plan.name)
            yield self._endpoint(helper, facts)
        finally:
            await self._remove_helper(plan.name)

    async def close(self) -> None:
        for flavour in (self._main, *self._flavours.values()):
            await flavour.backend.close()

    async def facts(self) -> Facts:
        """What probing found, from the cache or by probing now; the backend answers from here on."""
        return await self._main.facts()

    async def _flavour(self, runtime: str) -> _Flavour:
        """What makes machines with the OCI runtime that a spec asks for."""
        if runtime in ("", (await self.facts()).runtime):
            return self._main
        if not _NAME.fullmatch(runtime):
            raise EngineFailed(action="use an OCI runtime", reason=f"{runtime!r} is not the name of one")
        if runtime not in self._flavours:
            self._flavours[runtime] = _Flavour(
                self._backend.variant(runtime), self._directory / f"probe-{runtime}.json"
            )
        return self._flavours[runtime]

    async def _close_addresses(self, machine: str) -> None:
        inspected = await self._inspect(machine)
        closed = inspected["Config"]["Labels"].get(LABEL_CLOSED, "").split(",")
        try:
            await close_addresses(inspected, closed, rootless=(await self.facts()).rootless)
        except EngineFailed:
            await self._containers.stop(self._name(machine), 0)  # better none than an open one
            raise

    async def _labels(self, machine: str) -> dict[str, str]:
        return (await self._inspect(machine))["Config"].get("Labels") or {}

    def _name(self, machine: str) -> str:
        if not _NAME.fullmatch(machine):
            raise MachineNotFound(machine=machine)
        return f"catty-{self._owner}-{machine}"

    async def _inspect(self, machine: str) -> dict[str, Any]:
        await self.facts()
        inspected = await self._containers.inspect(self._name(machine))
        if inspected is None:
            raise MachineNotFound(machine=machine)
        return inspected

    async def _destroy(self, name: str) -> None:
        await self._remove_helper(f"{name}-salvage")
        await self._containers.remove(name)
        await self._containers.remove_endpoint(name)
        for volume in (WORKSPACE_VOLUME, HOME_VOLUME):
            await self._containers.remove_volume(f"{name}-{volume}")
        if self._backend.dialect.own_network:
            await self._containers.remove_network(name)

    async def _remove_helper(self, name: str) -> None:
        await self._containers.remove(name)
        await self._containers.remove_endpoint(name)

    async def _exit(self, machine: str) -> Exit:
        try:
            ended = await self.inspect(machine)
        except MachineNotFound:
            return Exit(machine, None, "removed")
        reason = f"exited {ended.exit_code}"
        if ended.oom_killed and ended.exit_code == _OOM_EXIT:
            reason += " (out of memory)"
        return Exit(machine, ended.exit_code, reason)

    def _endpoint(self, inspected: dict[str, Any], facts: Facts) -> UnixEndpoint:
        if _machine(inspected).state is not MachineState.RUNNING:
            raise MachineUnreachable(reason="it is not running")
        dialect = self._backend.dialect
        mountpoint = dialect.mountpoint(inspected, constants.ENDPOINT_DIR)
        id_map = dialect.id_map(inspected)
        owner = id_map[0] if id_map else facts.first_id
        return UnixEndpoint(dialect.host_path(inspected, mountpoint), owner)


class _Flavour:
    """An engine with one OCI runtime, and what was found about it."""

    def __init__(self, backend: Backend, cache: Path) -> None:
        self.backend = backend
        self.containers = Containers(backend)
        self._cache = cache
        self._facts: Facts | None = None
        self._probing = asyncio.Lock()

    async def facts(self) -> Facts:
        """From the cache or by probing now; the backend answers from here on."""
        async with self._probing:
            if self._facts is None:
                self._cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                facts = load_facts(self._cache, self.backend)
                if facts is None:
                    facts = await probe(self.backend)
                    save_facts(self._cache, self.backend, facts)
                else:
                    await self.backend.use(facts.options)
                self.backend.api.storage = Path(facts.storage)
                self._facts = facts
            return self._facts


@contextlib.contextmanager
def _named(machine: str) -> Any:
    """Errors name the machine as the caller does."""
    try:
        yield
    except MachineNotFound:
        raise MachineNotFound(machine=machine) from None


def _machine(inspected: dict[str, Any]) -> Machine:
    state = inspected["State"]
    status = _STATES.get(str(state["Status"]), MachineState.EXITED)
    # After a restart of the host Podman calls a container that once ran "created" again.
    if status is MachineState.CREATED and not str(state.get("StartedAt", "0001")).startswith("0001"):
        status = MachineState.EXITED
    labels = dict(inspected["Config"].get("Labels") or {})
    exited = status is MachineState.EXITED
    return Machine(
        id=labels.get(LABEL_MACHINE, ""),
        engine_id=str(inspected["Id"]),
        state=status,
        exit_code=int(state["ExitCode"]) if exited else None,
        oom_killed=bool(state.get("OOMKilled")) and exited,
        labels={key: value for key, value in labels.items() if not key.startswith(LABEL_PREFIX)},
    )
