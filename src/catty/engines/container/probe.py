"""Probing: what this engine can do on this host is tried, with a container that lives for a fraction of a second.

The trial's root file system is the host's own /usr, read-only, so that nothing has to be built or fetched first. Its exit code says
which limits really hold. What was found is cached, with all that it depends on as the key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import resource
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from catty import constants
from catty.engines.container import host
from catty.engines.container.backend import Backend
from catty.engines.container.containers import Containers
from catty.engines.container.plan import Facts, Plan, endpoint_volume, shm
from catty.errors import CattyError, EngineFailed

__all__ = ["NO_CONTAINERS", "load_facts", "probe", "save_facts"]

NO_CONTAINERS: Final = "does not run containers here"  # in a note, after the name of an OCI runtime

_FORMAT: Final = 1  # raise it when Facts or the trials change meaning
_IMAGE: Final = "localhost/catty-probe:1"
_MEMORY: Final = 64 * constants.MIB
_CPUS: Final = 0.5
_PIDS: Final = 32
_DISK_MB: Final = 64
_LIMITS: Final = ("memory", "cpu", "pids")
_WORKED: Final = 64  # exit code of the trial; plus 1, 2, 4 for memory, cpu, pids limits that hold
_SCRIPT: Final = f"""
code={_WORKED}
first() {{ cat "$@" 2>/dev/null | head -n 1; }}
cd /sys/fs/cgroup
[ "$(first memory.max memory/memory.limit_in_bytes)" = {_MEMORY} ] && code=$((code + 1))
case "$(first cpu.max cpu*/cpu.cfs_quota_us)" in {int(_CPUS * 100_000)}|"{int(_CPUS * 100_000)} 100000") code=$((code + 2));; esac
[ "$(first pids.max pids/pids.max)" = {_PIDS} ] && code=$((code + 4))
exit $code
"""


def load_facts(path: Path, backend: Backend) -> Facts | None:
    """The facts cached in `path`, None if there are none or what they depend on has changed."""
    try:
        cached = json.loads(path.read_text())
        if cached["key"] != _key(backend):
            return None
        facts = cached["facts"]
        lists = {name: tuple(facts[name]) for name in ("options", "notes")}
        return Facts(**{**facts, **lists, "limits": frozenset(facts["limits"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_facts(path: Path, backend: Backend, facts: Facts) -> None:
    """Cache `facts` in `path`, atomically."""
    value = {"key": _key(backend), "facts": {**dataclasses.asdict(facts), "limits": sorted(facts.limits)}}
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=1))
    scratch.replace(path)


async def probe(backend: Backend) -> Facts:
    """What works here, with the plainest options that work. Takes one to ten seconds. Raises EngineFailed with the reason if
    nothing does, EngineDown, EngineSlow."""
    reasons: list[tuple[str, str]] = []
    for candidate in backend.candidates():
        await backend.use(candidate)
        info = (await backend.call("GET", "info", action="say what it is")).body
        facts = _hopes(backend, candidate, info)
        trial = _Trial(backend)
        await trial.prepare()
        found = await _settle(trial, facts)
        if found is not None:
            notes = (*found.notes, *(f"{runtime} {NO_CONTAINERS}: {reason}" for runtime, reason in reasons))
            return dataclasses.replace(found, notes=notes)
        reasons.append((facts.runtime, trial.reason))
    raise EngineFailed(
        action="run a container", reason="; ".join(f"{runtime}: {reason}" for runtime, reason in reasons)
    )


def _hopes(backend: Backend, options: tuple[str, ...], info: dict[str, Any]) -> Facts:
    """All that could be true here, from what the engine says of itself."""
    common = Facts(
        options=options,
        limits=frozenset(_LIMITS),
        nofile=min(constants.NOFILE_LIMIT, host.hard_limit(resource.RLIMIT_NOFILE)),
        nproc=min(constants.PIDS_LIMIT, host.hard_limit(resource.RLIMIT_NPROC)),
        storage=backend.dialect.storage(info),
        version=backend.dialect.version(info),
        disk_limit=True,
    )
    if backend.dialect.own_network:
        security = " ".join(info.get("SecurityOptions") or ())
        remapped = info["DockerRootDir"].rpartition("/")[2].partition(".")[0] if "name=userns" in security else "0"
        return dataclasses.replace(
            common,
            runtime=info["DefaultRuntime"],
            rootless="name=rootless" in security,
            first_id=int(remapped),
            network="bridge",
        )
    rootless = bool(info["host"]["security"]["rootless"])
    return dataclasses.replace(
        common,
        runtime=(info["host"].get("ociRuntime") or {}).get("name", "no OCI runtime"),
        rootless=rootless,
        first_id=os.getuid() if rootless else 0,
        auto_userns=not rootless and host.has_subids("containers"),
        network=next((name for name in ("slirp4netns", "pasta") if shutil.which(name)), ""),
        notes=("storage driver vfs: every machine is a full copy of the image",)
        if info["store"]["graphDriverName"] == "vfs"
        else (),
    )


async def _settle(trial: _Trial, hopes: Facts) -> Facts | None:
    """The most of `hopes` that works, with a note on what does not; None if nothing works."""
    holding = await trial.run(hopes)
    facts = hopes
    notes: list[str] = list(hopes.notes)
    if holding is None:
        plain = dataclasses.replace(
            hopes, auto_userns=False, limits=frozenset(), nofile=1024, nproc=1024, network="", disk_limit=False
        )
        if await trial.run(plain) is None:
            return None
        facts = plain
        for what, better in _improvements(hopes):
            attempt = dataclasses.replace(facts, **better(facts))
            if attempt != facts and await trial.run(attempt) is not None:
                facts = attempt
            elif attempt != facts:
                notes.append(f"no {what}: {trial.reason}")
        holding = await trial.run(facts) or frozenset()
    notes += [
        f"no {limit} limit: the kernel or the engine does not enforce it here" for limit in facts.limits - holding
    ]
    disk = hopes.disk_limit and await trial.disk(facts)
    if not facts.network:
        notes.append("no network for machines: install slirp4netns")
    return dataclasses.replace(facts, limits=facts.limits & holding, disk_limit=disk, notes=tuple(sorted(notes)))


def _improvements(hopes: Facts) -> Iterator[tuple[str, Any]]:
    """Steps from the plainest container towards `hopes`: what it is, and the change it makes to the facts so far."""
    for network in dict.fromkeys((hopes.network, "pasta") if hopes.network == "slirp4netns" else (hopes.network,)):
        yield f"network by {network}", lambda facts, name=network: {"network": facts.network or name}
    yield "user namespace", lambda _: {"auto_userns": hopes.auto_userns}
    for limit in _LIMITS:
        yield f"{limit} limit", lambda facts, name=limit: {"limits": facts.limits | {name}}
    for figure in (hopes.nofile, 20000, 4096):
        yield f"{figure} open files", lambda facts, n=figure: {"nofile": max(facts.nofile, min(n, hopes.nofile))}
    yield f"{hopes.nproc} processes", lambda _: {"nproc": hopes.nproc}


class _Trial:
    """Runs the trial container. `reason` says why the last run failed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._containers = Containers(backend)
        self.reason = ""

    async def prepare(self) -> None:
        path, params = self._backend.dialect.image_import(_IMAGE)
        exists = self._backend.dialect.image_exists(_IMAGE)
        if (await self._backend.call("GET", exists, action="look for an image", expect=(200, 204, 404))).status == 404:
            await self._backend.call("POST", path, action="take an image", params=params, data=_root_file_system())

    async def run(self, facts: Facts) -> frozenset[str] | None:
        """Which limits hold in a container made by `facts`, None if it does not run."""
        plan = self._plan(facts)
        try:
            if plan.network == "bridge":
                await self._containers.create_network(plan.name, plan.labels)
            await self._containers.create(plan, facts.first_id)
            await self._containers.start(plan.name)
            code = await self._containers.wait(plan.name)
        except CattyError as error:
            self.reason = str(error.fields.get("reason", error.message))
            return None
        finally:
            await self._remove(plan)
        if code == _WORKED and self._backend.sandbox:
            return facts.limits  # it shows no cgroups inside: what it accepted is believed
        if not _WORKED <= code < _WORKED + 8:
            self.reason = f"a shell in it ended with {code}"
            return None
        return frozenset(limit for bit, limit in enumerate(_LIMITS) if code - _WORKED & 1 << bit)

    async def disk(self, facts: Facts) -> bool:
        """Whether a container's disk can be limited."""
        plan = dataclasses.replace(self._plan(facts), disk_mb=_DISK_MB, network="")
        try:
            await self._containers.create(plan, facts.first_id)
        except CattyError:
            return False
        finally:
            await self._remove(plan)
        return True

    def _plan(self, facts: Facts) -> Plan:
        name = f"catty-probe-{uuid.uuid4().hex[:12]}"
        return Plan(
            name=name,
            image=_IMAGE,
            command=("/bin/sh", "-c", _SCRIPT),
            binds=tuple((path, path) for path in _host_directories()),
            volumes=(endpoint_volume(name),),
            tmpfs=(shm(_MEMORY),),
            capabilities=("NET_ADMIN",),
            memory=_MEMORY if "memory" in facts.limits else 0,
            cpus=_CPUS if "cpu" in facts.limits else 0,
            pids=_PIDS if "pids" in facts.limits else 0,
            nofile=facts.nofile,
            nproc=facts.nproc,
            runtime=self._backend.runtime,
            network=facts.network,
            auto_userns=facts.auto_userns,
        )

    async def _remove(self, plan: Plan) -> None:
        with contextlib.suppress(CattyError):  # what the trial found is worth more than its remains
            await self._containers.remove(plan.name)
            await self._containers.remove_endpoint(plan.name)
            if plan.network == "bridge":
                await self._containers.remove_network(plan.name)


def _host_directories() -> list[str]:
    """What a dynamically linked shell needs, without links (those are in the trial's own root)."""
    return [
        "/usr",
        *(path for path in ("/bin", "/lib", "/lib64") if Path(path).is_dir() and not Path(path).is_symlink()),
    ]


def _root_file_system() -> bytes:
    """A tar with the mount points and links that the trial needs; nearly nothing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in ("usr", "bin", "lib", "lib64", "proc", "sys", "dev", "run", "tmp", "etc"):
            entry = tarfile.TarInfo(path)
            entry.mode = 0o755
            entry.type = tarfile.DIRTYPE
            if Path("/", path).is_symlink():
                entry.type = tarfile.SYMTYPE
                entry.linkname = str(Path("/", path).readlink())
            archive.addfile(entry)
    return buffer.getvalue()


def _key(backend: Backend) -> str:
    parts = [str(_FORMAT), backend.runtime, *backend.identity(), *host.fingerprint()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
