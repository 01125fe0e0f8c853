"""A container engine for this host: found, or installed after saying exactly how. Standard library only: the light CLI runs this."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from catty.engines.container.find import find_docker, find_podman
from catty.engines.container.host import has_subids, is_root
from catty.errors import EngineFailed, EngineNotFound

__all__ = ["InstallPlan", "install", "plan_install"]

# Found by trying on a bare Debian 12. `netavark` keeps apt from taking iptables and a bridge that we do not use; `mount` is what
# Podman mounts endpoints with; the base of the session image is made by mmdebstrap.
_PACKAGES: Final = ("podman", "runc", "netavark", "slirp4netns", "mount", "mmdebstrap")
_ROOTLESS_PACKAGES: Final = ("uidmap",)
_PROGRAMS: Final = {"netavark": "/usr/lib/podman/netavark", "uidmap": "newuidmap"}  # where it is not the package's name
_ALTERNATIVES: Final = {
    "runc": ("crun",),
    "slirp4netns": ("pasta",),
    "netavark": ("/usr/lib/cni/bridge", "/opt/cni/bin/bridge"),
}
_DIRECTORIES: Final = "/usr/sbin:/sbin:/usr/local/sbin"  # not on everybody's PATH

_SUBID_FILES: Final = ("/etc/subuid", "/etc/subgid")
_SUBID_COUNT: Final = 65536
_SUBID_FIRST: Final = 100_000
# Half of all ids, for thousands of machines with 65536 each; far above what user names get.
_CONTAINERS_LINE: Final = "containers:2147483647:2147483648"

_MACOS_HINT: Final = "Machines need Linux: run `catty server` on a Linux machine and `catty login URL` here."
_OTHER_HINT: Final = "Install Podman 4 or newer with slirp4netns and newuidmap (Fedora: `sudo dnf install podman slirp4netns`), then try again."


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """`lines` tell a person what will be done; `commands` are run in this order. `subids`: whether `containers` gets ids."""

    lines: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    subids: bool = False


def plan_install() -> InstallPlan | None:
    """What has to be done before machines can be made here; None if nothing. Raises EngineNotFound where we cannot do it."""
    if not find_podman() and find_docker():
        return None
    packages = [name for name in (*_PACKAGES, *(() if is_root() else _ROOTLESS_PACKAGES)) if not _present(name)]
    if "mmdebstrap" in packages and not _is_debian():
        packages.remove("mmdebstrap")  # knows Debian's archive keys only there
    commands: list[tuple[str, ...]] = []
    lines: list[str] = []
    if packages:
        prefix = _privileged(packages)
        commands += [(*prefix, "apt-get", "update"), _apt_install(prefix, packages)]
        missing = "no container engine found" if "podman" in packages else "Podman lacks some of what it needs"
        lines += [f"{missing}; this installs Debian packages:", *(f"  {shlex.join(command)}" for command in commands)]
    if not is_root() and not has_subids():
        ids = f"{_free_ids()}-{_free_ids() + _SUBID_COUNT - 1}"
        commands.append((*_privileged(()), "usermod", "--add-subuids", ids, "--add-subgids", ids, getpass.getuser()))
        lines += ["user ids for machines, apart from your own:", f"  {shlex.join(commands[-1])}"]
    subids = is_root() and not has_subids("containers")
    if subids:
        lines += ["user ids for machines, so that root in one is nobody on this host:"]
        lines += [f"  the line {_CONTAINERS_LINE} is added to {' and '.join(_SUBID_FILES)}"]
    return InstallPlan(tuple(lines), tuple(commands), subids) if lines else None


def install(plan: InstallPlan, say: Callable[[str], None]) -> None:
    """Do what `plan` says, telling each step. Raises EngineFailed with the last words of what failed."""
    for command in plan.commands:
        say(f"running {shlex.join(command)}")
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        # A package list that cannot be fetched matters only if the installation then fails.
        if done.returncode and "update" not in command:
            words = done.stdout.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            hint = f"Run `{shlex.join(command)}` yourself to see more, then try again."
            raise EngineFailed(f"the container engine could not be installed: {words[-1]}", hint=hint)
    if plan.subids:
        _give_subids(say)


def _give_subids(say: Callable[[str], None]) -> None:
    try:
        for path in map(Path, _SUBID_FILES):
            text = path.read_text() if path.exists() else ""
            if not re.search(r"^containers:", text, re.MULTILINE):
                line = ("" if not text or text.endswith("\n") else "\n") + _CONTAINERS_LINE + "\n"
                with path.open("a") as file:
                    file.write(line)
    except OSError as error:
        # A stronger wall, not a condition: machines run without it.
        say(f"could not add user ids for machines: {error.strerror} ({error.filename})")


def _present(package: str) -> bool:
    names = (_PROGRAMS.get(package, package), *_ALTERNATIVES.get(package, ()))
    return any(shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_DIRECTORIES}") for name in names)


def _privileged(packages: Sequence[str]) -> tuple[str, ...]:
    """What commands of root start with. Raises EngineNotFound where there is no apt or no way to become root."""
    if not shutil.which("apt-get"):
        raise EngineNotFound(hint=_MACOS_HINT if sys.platform == "darwin" else _OTHER_HINT)
    if is_root():
        return ()
    if not shutil.which("sudo"):
        raise EngineNotFound(
            hint=f"Ask an administrator to run `{shlex.join(_apt_install((), packages))}`, then try again."
        )
    return ("sudo",)


def _apt_install(prefix: tuple[str, ...], packages: Sequence[str]) -> tuple[str, ...]:
    words = (
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        *packages,
    )
    return (*prefix, *words)


def _is_debian() -> bool:
    try:
        return re.search(r"^ID=\"?debian\"?$", Path("/etc/os-release").read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def _free_ids() -> int:
    """The first id above all that are given away."""
    last = _SUBID_FIRST
    for path in map(Path, _SUBID_FILES):
        if path.exists():
            for name, first, count in re.findall(r"^([^:\n]+):(\d+):(\d+)$", path.read_text(), re.MULTILINE):
                if name != "containers":
                    last = max(last, int(first) + int(count))
    return last
