"""Facts about this host that decide how machines are made. Only reads; what can be tried is tried by probe.py."""

from __future__ import annotations

import getpass
import os
import re
import resource
import shutil
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Final

__all__ = [
    "LINK_LOCAL",
    "find_program",
    "fingerprint",
    "hard_limit",
    "has_subids",
    "host_addresses",
    "is_root",
    "tun_usable",
    "wants_overlay",
]

LINK_LOCAL: Final = "169.254.0.0/16"  # cloud metadata services live there
_LOOPBACK: Final = ip_network("127.0.0.0/8")

# What changes how machines are made beside engine and kernel: a cached probe holds only while these do.
_CONFIGURATION: Final = (
    "/etc/subuid",
    "/etc/subgid",
    "/etc/containers/containers.conf",
    "/etc/containers/storage.conf",
    "/usr/share/containers/containers.conf",
    "/usr/share/containers/storage.conf",
    "~/.config/containers/containers.conf",
    "~/.config/containers/storage.conf",
    "/etc/docker/daemon.json",
    "/dev/net/tun",
    "/proc/sys/user/max_user_namespaces",
)
_PROGRAMS: Final = ("podman", "docker", "crun", "runc", "runsc", "slirp4netns", "pasta", "fuse-overlayfs", "newuidmap")


def host_addresses() -> list[str]:
    """The IPv4 addresses of this host, without loopback. Machines have no IPv6 (their network has it switched off)."""
    try:
        trie = Path("/proc/net/fib_trie").read_text()
    except OSError:
        return []
    found = {IPv4Address(text) for text in re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", trie)}
    return [str(address) for address in sorted(found) if address not in _LOOPBACK]


def hard_limit(name: int) -> int:
    """The most that this process may ask for of a resource (`resource.RLIMIT_…`); without a limit a very large number."""
    _, hard = resource.getrlimit(name)
    return hard if hard != resource.RLIM_INFINITY else 1 << 30


def has_subids(name: str | None = None) -> bool:
    """Whether /etc/subuid and /etc/subgid give `name` (the caller's user by default) at least 65536 ids."""
    names = {name} if name else {getpass.getuser(), str(os.getuid())}

    def given(path: str) -> int:
        try:
            lines = [line.strip().split(":") for line in Path(path).read_text().splitlines()]
        except OSError:
            return 0
        return sum(int(line[2]) for line in lines if len(line) == 3 and line[0] in names and line[2].isdigit())

    return given("/etc/subuid") >= 65536 and given("/etc/subgid") >= 65536


def tun_usable() -> bool:
    """Whether network helpers can open /dev/net/tun (normally mode 0666)."""
    return os.access("/dev/net/tun", os.R_OK | os.W_OK)


def fingerprint() -> list[str]:
    """What a cached probe depends on beside the engine's version."""
    release = os.uname()
    parts = [release.release, release.version, str(os.getuid()), os.environ.get("PATH", "")]
    parts += [str(hard_limit(limit)) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]
    for name in _CONFIGURATION:
        try:
            status = Path(name).expanduser().stat()
            parts.append(
                f"{name} {status.st_mtime_ns if name.startswith(('/etc', '/usr', '~')) else ''} {status.st_mode}"
            )
        except OSError:
            parts.append(f"{name} -")
    parts += [f"{name} {shutil.which(name)}" for name in _PROGRAMS]
    return parts


def find_program(name: str) -> str | None:
    """The path of a program, also in the administrators' directories, which are not on every user's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin")


def is_root() -> bool:
    return os.geteuid() == 0


def wants_overlay() -> bool:
    """Whether a Podman without root must be told to use overlay storage: it has none of another kind yet."""
    if is_root():
        return False
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    storage = data / "containers/storage"
    return (storage / "overlay-images").exists() or not (storage / "vfs-images").exists()
