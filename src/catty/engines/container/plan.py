"""What a container is made from, in no engine's words. No I/O: a spec and the facts of a host in, a plan out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

from catty import constants
from catty.engines.base import MachineSpec
from catty.engines.container.host import LINK_LOCAL

__all__ = [
    "ENDPOINT_OPTIONS",
    "HOME_VOLUME",
    "LABEL_CLOSED",
    "LABEL_MACHINE",
    "LABEL_OWNER",
    "LABEL_PREFIX",
    "LABEL_RUNTIME",
    "LABEL_SALVAGE",
    "WORKSPACE_VOLUME",
    "Facts",
    "IdMap",
    "Plan",
    "Volume",
    "endpoint_volume",
    "machine_plan",
    "salvage_plan",
    "sandboxed",
    "shm",
]

LABEL_PREFIX: Final = "catty."  # of our own labels, which callers do not see
LABEL_OWNER: Final = "catty.owner"
LABEL_MACHINE: Final = "catty.machine"
LABEL_SALVAGE: Final = "catty.salvage"
LABEL_RUNTIME: Final = "catty.runtime"  # the OCI runtime that was asked for
LABEL_CLOSED: Final = "catty.closed"  # addresses to be closed from outside, comma-separated
WORKSPACE_VOLUME: Final = "workspace"
HOME_VOLUME: Final = "home"

CA_PATH: Final = "/run/catty/ca.crt"
ENDPOINT_BLOCKS: Final = 256  # pages of 4 KiB: 1 MiB. Podman takes `size=` for a disk quota, so it is said in blocks
ENDPOINT_INODES: Final = 64
ENDPOINT_OPTIONS: Final = f"nr_blocks={ENDPOINT_BLOCKS},nr_inodes={ENDPOINT_INODES},mode=0755,nosuid,nodev,noexec"
# /tmp stays on the machine's own layer: what compilers put there should not count as memory.
RUN: Final = ("/run", f"size={64 * constants.MIB},mode=0755,nosuid,nodev")
SHM_BYTES: Final = 1 * constants.GIB  # browsers crash on the usual 64 MiB; it counts against the machine's memory

IdMap = tuple[int, int]
"""Where a machine's ids 0… lie on the host: (first host id, how many)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What probing found (probe.py). `options` are Podman's global options; `limits` those of memory, cpu, pids that hold here;
    `network` is slirp4netns, pasta or bridge; `first_id` the host's uid of root in a machine where all share one."""

    runtime: str = ""
    options: tuple[str, ...] = ()
    auto_userns: bool = False
    limits: frozenset[str] = frozenset()
    nofile: int = constants.NOFILE_LIMIT
    nproc: int = constants.PIDS_LIMIT
    network: str = ""
    disk_limit: bool = False
    rootless: bool = False
    first_id: int = 0
    storage: str = "/"
    version: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume and where it is mounted. `tmpfs`: a small one in memory (an endpoint)."""

    name: str
    target: str
    tmpfs: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A container. Sizes in bytes; 0 = no limit. `binds` are read-only (host path, target). `id_map` None: the engine's choice."""

    name: str
    image: str
    hostname: str = "catty"
    command: tuple[str, ...] = ()  # empty: the image's entrypoint
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    volumes: tuple[Volume, ...] = ()
    binds: tuple[tuple[str, str], ...] = ()
    tmpfs: tuple[tuple[str, str], ...] = ()  # (target, mount options)
    capabilities: tuple[str, ...] = ()  # beside the default ones
    memory: int = 0
    cpus: float = 0
    pids: int = 0
    disk_mb: int = 0
    nofile: int = 0
    nproc: int = 0
    network: str = ""  # "" = none
    runtime: str = ""  # OCI runtime, where the engine's API takes one; "" = its default
    auto_userns: bool = False
    id_map: IdMap | None = None


def shm(size: int) -> tuple[str, str]:
    """A machine's /dev/shm, of at most `size` bytes and never above SHM_BYTES.

    Podman's own would stay mounted on hosts where `/` is not a shared mount, and keep the container from being
    removed."""
    return "/dev/shm", f"size={min(size, SHM_BYTES)},mode=1777,nosuid,nodev"  # noqa: S108  # a path in the machine


def endpoint_volume(name: str) -> Volume:
    """The endpoint of container `name`: small, so that a machine cannot fill the host through it."""
    return Volume(f"{name}-endpoint", constants.ENDPOINT_DIR, tmpfs=True)


def machine_plan(spec: MachineSpec, name: str, owner: str, facts: Facts, host_addresses: list[str]) -> Plan:
    """The plan of the machine `spec`, as far as `facts` allow."""
    closed = [LINK_LOCAL, *host_addresses, *spec.closed_addresses]
    env = {
        "CATTY_MACHINE": spec.machine,
        "CATTY_PUBLIC_KEY": spec.public_key,
        "CATTY_CLOSED": ",".join(dict.fromkeys(closed)),
    }
    if spec.ca_bundle:
        env["CATTY_CA"] = CA_PATH
    return Plan(
        name=name,
        image=spec.image,
        hostname=f"catty-{spec.machine[:8]}".rstrip("-"),
        env=env,
        labels={**spec.labels, LABEL_OWNER: owner, LABEL_MACHINE: spec.machine},
        volumes=(
            Volume(f"{name}-{WORKSPACE_VOLUME}", constants.WORKSPACE_DIR),
            Volume(f"{name}-{HOME_VOLUME}", constants.AGENT_HOME),
            endpoint_volume(name),
        ),
        binds=((str(spec.ca_bundle), CA_PATH),) if spec.ca_bundle else (),
        tmpfs=(RUN, shm(spec.memory_mb * constants.MIB // 2)),
        # For the routes that close addresses; the runtime gives it up before anything else runs.
        capabilities=("NET_ADMIN",),
        memory=spec.memory_mb * constants.MIB if "memory" in facts.limits else 0,
        cpus=spec.cpus if "cpu" in facts.limits else 0,
        pids=spec.pids if "pids" in facts.limits else 0,
        disk_mb=spec.disk_mb if facts.disk_limit else 0,
        nofile=facts.nofile,
        nproc=min(facts.nproc, spec.pids),
        network=facts.network,
        auto_userns=facts.auto_userns,
    )


def sandboxed(plan: Plan, runtime: str) -> Plan:
    """`plan` for a sandbox, whose addresses are closed from outside (sandbox.py): it can set no routes."""
    labels = {**plan.labels, LABEL_RUNTIME: runtime, LABEL_CLOSED: plan.env["CATTY_CLOSED"]}
    return dataclasses.replace(plan, labels=labels, env={**plan.env, "CATTY_CLOSED": ""}, capabilities=())


def salvage_plan(machine: str, name: str, owner: str, *, image: str, facts: Facts, id_map: IdMap | None) -> Plan:
    """The helper `name`-salvage: the runtime alone on the volumes of container `name`, without network, with its host ids."""
    helper = f"{name}-salvage"
    return Plan(
        name=helper,
        image=image,
        env={"CATTY_MACHINE": machine, "CATTY_SALVAGE": "1"},
        labels={LABEL_OWNER: owner, LABEL_MACHINE: machine, LABEL_SALVAGE: "1"},
        volumes=(
            Volume(f"{name}-{WORKSPACE_VOLUME}", constants.WORKSPACE_DIR),
            Volume(f"{name}-{HOME_VOLUME}", constants.AGENT_HOME),
            endpoint_volume(helper),
        ),
        tmpfs=(RUN, shm(SHM_BYTES)),
        memory=constants.MEMORY_DEFAULT_MB * constants.MIB if "memory" in facts.limits else 0,
        pids=constants.PIDS_LIMIT if "pids" in facts.limits else 0,
        nofile=facts.nofile,
        nproc=facts.nproc,
        id_map=id_map,
    )
