"""The engine contract: how a server gets machines. One conformance suite (tests/engines/) holds every engine to it.

An engine makes machines that run the session image's runtime and nothing else; it knows no session, agent or workspace. What
distinguishes engines is told by `Capabilities`, never by their type.

An implementation must provide every abstract method of `Engine`. All of them may be called at any time and from several tasks,
also after a crash of the caller in the middle of one; each leaves either the machine that it promises or none. Errors are
`catty.errors.MachineError`s: EngineDown, EngineSlow, ImageMissing, DiskFull, MachineNotFound, EngineFailed.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from catty import constants

__all__ = [
    "Capabilities",
    "Endpoint",
    "Engine",
    "Exit",
    "Machine",
    "MachineSpec",
    "MachineState",
    "Progress",
    "TcpEndpoint",
    "UnixEndpoint",
]

Progress = Callable[[str, int, int], None]
"""Called with (what happens now, steps done, steps in all)."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this engine can do on this host, found out by probing. `notes` say why something is missing, for `catty doctor`."""

    name: str  # "podman", "docker", …
    version: str
    rootless: bool
    runtime: str  # OCI runtime in use, e.g. "runc"
    user_namespace: bool  # uid 0 of a machine is nobody on the host
    per_machine_namespace: bool  # each machine has host ids of its own
    unix_endpoint: bool
    tcp_endpoint: bool
    disk_limit: bool
    memory_limit: bool
    cpu_limit: bool
    pids_limit: bool
    network_isolation: bool  # other machines, host loopback, link-local metadata, the server's ports: unreachable
    salvage: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a machine is made from. `machine` names it (the caller's choice, a UUID; creating it twice gives the same machine).

    `public_key` (Ed25519, hex) is needed for TCP endpoints only. Nothing in here is secret: engines show it to every local user.
    `closed_addresses` are host addresses that the machine must not reach beside those every engine closes.
    """

    machine: str
    image: str
    cpus: float = constants.CPUS_DEFAULT
    memory_mb: int = constants.MEMORY_DEFAULT_MB
    pids: int = constants.PIDS_LIMIT
    disk_mb: int = 0  # 0: no limit
    labels: dict[str, str] = field(default_factory=dict)  # shown by the engine; for people and adoption
    public_key: str = ""
    ca_bundle: Path | None = None  # extra CA certificates of the host, put into the machine
    runtime: str = ""  # OCI runtime asked for, e.g. "runsc"; "" = the engine's choice
    closed_addresses: tuple[str, ...] = ()


class MachineState(Enum):
    """CREATED: never started. RUNNING. EXITED: it was running; its volume is still there."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as the engine sees it now. `id` is the spec's `machine`; `engine_id` the engine's own name for it."""

    id: str
    engine_id: str
    state: MachineState
    exit_code: int | None = None
    oom_killed: bool = False
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """A machine has ended. `reason` is a short text such as "exited 137 (out of memory)"."""

    machine: str
    exit_code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """The directory that holds the sockets `terminal` and `workspace`, and the host uid that the runtime's sockets must have.

    The directory is written by whoever is root in the machine: open a socket in it only with `engines.endpoint.connect`.
    """

    directory: Path
    owner: int


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """Two TCP ports under TLS; the claim pins the machine's certificate (`fingerprint`, SHA-256 hex; "" before the claim)."""

    host: str
    terminal_port: int
    workspace_port: int
    fingerprint: str = ""


Endpoint = UnixEndpoint | TcpEndpoint


class Engine(abc.ABC):
    """A maker of machines. See the module's text for what holds for every method."""

    @abc.abstractmethod
    async def probe(self) -> Capabilities:
        """What this engine can do here. Tries, rather than believes: the OCI runtime is run once. Cached by the implementation."""

    @abc.abstractmethod
    async def has_image(self, image: str) -> bool:
        """Whether machines can be made from `image` without building or fetching anything."""

    @abc.abstractmethod
    async def ensure_image(self, image: str, progress: Progress) -> None:
        """Build or fetch `image` if it is not there. Raises ImageMissing where this engine cannot make it."""

    @abc.abstractmethod
    async def create(self, spec: MachineSpec) -> Machine:
        """Make a machine, not started, with its volume and endpoint. Called again with the same `spec.machine`: the same machine."""

    @abc.abstractmethod
    async def start(self, machine: str) -> None:
        """Start it; nothing happens if it runs. On return its endpoint may not be listening yet (the caller dials until it is)."""

    @abc.abstractmethod
    async def stop(self, machine: str, grace: float) -> None:
        """SIGTERM to its PID 1, SIGKILL after `grace` seconds. Returns when it has ended; nothing happens if it is not running."""

    @abc.abstractmethod
    async def destroy(self, machine: str) -> None:
        """Remove machine, volume and endpoint, running or not. Nothing happens if it is not there; tries again over passing faults."""

    @abc.abstractmethod
    async def inspect(self, machine: str) -> Machine:
        """The machine as it is now. Raises MachineNotFound."""

    @abc.abstractmethod
    async def list(self) -> list[Machine]:
        """All machines that this engine made for this server (its `owner` name), of an earlier process too: for adoption."""

    @abc.abstractmethod
    def watch(self) -> AsyncIterator[Exit]:
        """Ends of machines, as they happen, until closed. May miss some or repeat some over an engine's restart: look at `list` too."""

    @abc.abstractmethod
    async def endpoint(self, machine: str) -> Endpoint:
        """Where a running machine listens. Raises MachineNotFound."""

    @abc.abstractmethod
    def salvage(self, machine: str) -> AbstractAsyncContextManager[Endpoint]:
        """A helper machine, blank and without network, on the volume of an exited machine, for the length of the context."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Release connections and helper processes. Machines go on running."""
