"""`catty doctor`: each thing that machines need on this host, what was found by trying, and how to mend it."""

from __future__ import annotations

import getpass
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from catty import constants
from catty.engines import ca
from catty.engines.container import host, open_engine
from catty.engines.container.engine import ContainerEngine
from catty.engines.container.plan import Facts
from catty.engines.container.probe import NO_CONTAINERS
from catty.errors import CattyError
from catty.image.identity import current_image

__all__ = ["Check", "examine"]

_LOCAL_CAS: Final = Path("/usr/local/share/ca-certificates")  # where an administrator puts a company's own
_OWNER: Final = "setup"
_VFS_MEND: Final = "Save what you need of your Podman, then `podman system reset`: it starts anew, with overlay."
_SUBIDS_MEND: Final = (
    "add the line `containers:2147483647:2147483648` to /etc/subuid and /etc/subgid (`catty setup` does it)"
)


@dataclass(frozen=True, slots=True)
class Check:
    """`found`: what was seen, in a few words. `mend`: what to do about it; empty if nothing can or need be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


async def examine(data_dir: Path) -> list[Check]:
    """Examine this host for the server whose data directory is `data_dir`. Never raises for what it finds wrong."""
    checks = [_python()]
    try:
        engine = open_engine(data_dir, _OWNER)
    except CattyError as error:
        checks.append(Check("engine", "fail", error.message, "`catty setup` installs Podman"))
        return [*checks, _ca_bundle(), _disk("disk", data_dir)]
    try:
        checks += await _engine(engine)
    finally:
        await engine.close()
    return [*checks, _ca_bundle(), _disk("disk of the server's data", data_dir)]


async def _engine(engine: ContainerEngine) -> list[Check]:
    try:
        facts = await engine.facts()
        capabilities = await engine.probe()
    except CattyError as error:
        return [Check("engine", "fail", error.message, error.hint), *_devices()]
    kind = "rootless" if facts.rootless else "rootful"
    return [
        Check("engine", "ok", f"{capabilities.name} {facts.version}, {kind}"),
        _oci_runtime(facts),
        _limits(facts),
        Check("open files, processes", "ok", f"at most {facts.nofile} and {facts.nproc} in a machine"),
        _user_namespace(facts),
        _network(facts),
        *_lingering(facts),
        *_devices(),
        _disk("disk of machines", Path(facts.storage), "" if facts.disk_limit else ", not limited per machine"),
        *(Check("note", "warn", note, _VFS_MEND) for note in facts.notes if note.startswith("storage")),
        await _image(engine),
    ]


def _python() -> Check:
    return Check(
        "Python", "ok", f"{platform.python_version()} ({sys.executable})"
    )  # an older one would not have come this far


def _oci_runtime(facts: Facts) -> Check:
    others = "; ".join(note for note in facts.notes if NO_CONTAINERS in note)
    return Check("OCI runtime", "ok", f"{facts.runtime} ran a container" + (f" ({others})" if others else ""))


def _limits(facts: Facts) -> Check:
    missing = {"memory", "cpu", "pids"} - facts.limits
    cgroups = _cgroups()
    if not missing:
        return Check("limits", "ok", f"memory, CPU and processes hold ({cgroups})")
    why = "rootless machines need cgroup v2" if facts.rootless and cgroups != "cgroup v2" else "controllers are missing"
    mend = (
        "boot with systemd.unified_cgroup_hierarchy=1, or run the server as root"
        if cgroups != "cgroup v2"
        else "delegate the controllers: `systemctl edit user@.service`, [Service] Delegate=cpu memory pids"
    )
    return Check("limits", "warn", f"{', '.join(sorted(missing))} cannot be limited ({cgroups}: {why})", mend)


def _cgroups() -> str:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return "cgroup v2"
    return "cgroup v1 and v2, hybrid" if (root / "unified").is_dir() else "cgroup v1"


def _user_namespace(facts: Facts) -> Check:
    name = "user namespaces"
    if facts.auto_userns:
        return Check(name, "ok", "each machine has host ids of its own")
    if facts.rootless:
        return Check(name, "ok", "root in a machine is your own user on this host; machines share its ids")
    if facts.first_id:
        return Check(name, "ok", f"root in a machine is user {facts.first_id} on this host; machines share its ids")
    mend = _SUBIDS_MEND if not host.has_subids("containers") else "; ".join(_about(facts, "user namespace"))
    return Check(name, "warn", "root in a machine is root on this host", mend)


def _lingering(facts: Facts) -> list[Check]:
    """A rootless user's machines end with the user's last login, unless the user lingers."""
    if not facts.rootless or not Path("/run/systemd/system").exists():
        return []
    user = getpass.getuser()
    if Path("/var/lib/systemd/linger", user).exists():
        return [Check("after logout", "ok", "machines go on")]
    return [Check("after logout", "warn", "machines may end with your last login", f"`loginctl enable-linger {user}`")]


def _network(facts: Facts) -> Check:
    if facts.network:
        return Check("network", "ok", f"{facts.network}: each machine alone, host and link-local addresses closed")
    reasons = "; ".join(_about(facts, "network")) or "no network helper found"
    return Check("network", "fail", reasons, "install slirp4netns (`catty setup` does it)")


def _devices() -> list[Check]:
    if host.tun_usable():
        return []
    mend = "`sudo modprobe tun; sudo chmod 0666 /dev/net/tun`"
    return [Check("/dev/net/tun", "fail", "this user cannot open it; machines need it for their network", mend)]


def _about(facts: Facts, what: str) -> list[str]:
    return [note for note in facts.notes if note.startswith(f"no {what}")]


async def _image(engine: ContainerEngine) -> Check:
    image = current_image()
    try:
        if await engine.has_image(image):
            return Check("session image", "ok", image)
    except CattyError as error:
        return Check("session image", "fail", error.message, error.hint)
    return Check(
        "session image", "warn", f"{image} is not built yet", "`catty setup` builds it (about 5 minutes, once)"
    )


def _ca_bundle() -> Check:
    bundle = ca.host_ca_bundle()
    if bundle is None:
        return Check(
            "CA certificates", "warn", "no bundle found", "install the package ca-certificates, or set SSL_CERT_FILE"
        )
    count = bundle.read_bytes().count(b"-----BEGIN CERTIFICATE-----")
    own = len(list(_LOCAL_CAS.rglob("*.crt")))
    more = f", {own} of them added on this host" if own else ""
    return Check("CA certificates", "ok", f"{bundle}: {count}{more}; machines trust them too")


def _disk(name: str, path: Path, more: str = "") -> Check:
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    percent = 100 * usage.used / max(usage.used + usage.free, 1)
    found = f"{percent:.0f} % used, {usage.free / constants.GIB:.1f} GiB free ({path}){more}"
    if percent < constants.DISK_REFUSE_PERCENT:
        return Check(name, "ok", found)
    return Check(name, "fail", found, "free some space: new sessions are refused")
