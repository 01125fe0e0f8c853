"""Podman's own API (libpod): it says more than the one that imitates Docker's (user namespaces, network helpers)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Final

from catty.constants import MIB
from catty.engines.container.dialect import Dialect
from catty.engines.container.plan import ENDPOINT_OPTIONS, IdMap, Plan, Volume

__all__ = ["PodmanDialect"]

_IDS: Final = 65536  # of a machine: up to `nobody` and `nogroup`
_PERIOD_US: Final = 100_000
_LOG_BYTES: Final = 1 * MIB  # what a machine's PID 1 may leave on the host's disk

# One private network per machine, without a bridge and so without neighbours; the host's loopback is not reachable through it.
# Its usual addresses, 10.0.2.0/24, are also those of the host itself in many virtual machines.
_SLIRP: Final = ("cidr=10.213.255.0/24", "allow_host_loopback=false", "enable_ipv6=false")
_NAME_SERVER: Final = "10.213.255.3"
# Pasta made to look the same (podman-run(1) names these options as the equivalent of slirp4netns).
_PASTA: Final = (
    f"--ipv4-only,-a,10.213.255.100,-n,24,-g,10.213.255.2,--dns-forward,{_NAME_SERVER},--no-map-gw,--map-guest-addr,none,"
    "--no-ndp,--no-dhcpv6,--no-dhcp"
)


class PodmanDialect(Dialect):
    name: ClassVar[str] = "podman"
    prefix: ClassVar[str] = "/v4.0.0/libpod/"  # Podman 4 and later
    grace_parameter: ClassVar[str] = "timeout"
    own_network: ClassVar[bool] = False
    leaves_mounts: ClassVar[bool] = True

    def container(self, plan: Plan) -> tuple[dict[str, str], dict[str, Any]]:
        body: dict[str, Any] = {
            "name": plan.name,
            "image": plan.image,
            "hostname": plan.hostname,
            "env": plan.env,
            "labels": plan.labels,
            "cap_add": list(plan.capabilities),
            "systemd": "false",
            "log_configuration": {"driver": "k8s-file", "size": _LOG_BYTES},
            "volumes": [{"Name": v.name, "Dest": v.target, "Options": _volume_options(v)} for v in plan.volumes],
            "mounts": [
                {"type": "tmpfs", "source": "tmpfs", "destination": target, "options": options.split(",")}
                for target, options in plan.tmpfs
            ]
            + [
                {"type": "bind", "source": source, "destination": target, "options": ["rbind", "ro", "nosuid", "nodev"]}
                for source, target in plan.binds
            ],
            "r_limits": [
                {"type": name, "hard": value, "soft": value}
                for name, value in (("nofile", plan.nofile), ("nproc", plan.nproc))
                if value
            ],
            "resource_limits": _resources(plan),
        }
        if plan.command:
            body |= {"entrypoint": list(plan.command), "command": []}
        if plan.disk_mb:
            body["storage_opts"] = {"size": f"{plan.disk_mb}m"}
        return {}, body | _network(plan.network) | _user_namespace(plan)

    def volume(self, volume: Volume, labels: dict[str, str], first_id: int) -> dict[str, Any]:  # noqa: ARG002  # see "U"
        options = {"type": "tmpfs", "device": "tmpfs", "o": ENDPOINT_OPTIONS} if volume.tmpfs else {}
        return {"Name": volume.name, "Driver": "local", "Label": labels, "Options": options}

    def image_exists(self, image: str) -> str:
        return f"images/{image}/exists"

    def image_import(self, image: str) -> tuple[str, dict[str, str]]:
        return "images/import", {"reference": image}

    def version(self, info: dict[str, Any]) -> str:
        return str(info["version"]["Version"])

    def storage(self, info: dict[str, Any]) -> str:
        return str(info["store"]["graphRoot"])

    def removal(self) -> dict[str, str]:
        return {"force": "true", "timeout": "0"}

    def id_map(self, inspected: dict[str, Any]) -> IdMap | None:
        for line in (inspected.get("HostConfig", {}).get("IDMappings") or {}).get("UidMap") or ():
            inside, outside, count = (int(part) for part in str(line).split(":"))
            if inside == 0:
                return outside, count
        return None

    def host_path(self, inspected: dict[str, Any], path: str) -> Path:
        if os.geteuid() == 0:
            return Path(path)
        # A rootless Podman mounts volumes in a namespace of its own. Its monitor process lives in there, as long as the machine.
        return Path(f"/proc/{inspected['State']['ConmonPid']}/root{path}")

    def exit_status(self, body: Any) -> int:
        return int(body)


def _volume_options(volume: Volume) -> list[str]:
    # "U" gives the endpoint to the machine's root, who must be the only one to make sockets in it.
    return ["nocopy", "U", "nosuid", "nodev", "noexec"] if volume.tmpfs else ["nosuid", "nodev"]


def _resources(plan: Plan) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if plan.memory:
        resources["memory"] = {"limit": plan.memory, "swap": plan.memory}  # no swap beside it
    if plan.cpus:
        resources["cpu"] = {"quota": int(plan.cpus * _PERIOD_US), "period": _PERIOD_US}
    if plan.pids:
        resources["pids"] = {"limit": plan.pids}
    return resources


def _network(network: str) -> dict[str, Any]:
    if network == "slirp4netns":
        options = {"network_options": {"slirp4netns": list(_SLIRP)}}
    elif network == "pasta":
        options = {"network_options": {"pasta": _PASTA.split(",")}}
    else:
        return {"netns": {"nsmode": "none"}}
    return {"netns": {"nsmode": network}, "dns_server": [_NAME_SERVER], **options}


def _user_namespace(plan: Plan) -> dict[str, Any]:
    if plan.id_map:
        first, count = plan.id_map
        ids = [{"container_id": 0, "host_id": first, "size": count}]
        return {
            "userns": {"nsmode": "private"},
            "idmappings": {"UIDMap": ids, "GIDMap": ids, "HostUIDMapping": False, "HostGIDMapping": False},
        }
    if plan.auto_userns:
        return {
            "userns": {"nsmode": "auto", "value": f"size={_IDS}"},
            "idmappings": {"AutoUserNs": True, "AutoUserNsOpts": {"Size": _IDS}},
        }
    return {}
