"""Docker's API (and what else speaks it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final

from catty.constants import MIB
from catty.engines.container.dialect import Dialect
from catty.engines.container.plan import ENDPOINT_OPTIONS, IdMap, Plan, Volume

__all__ = ["DockerDialect"]

_NANO: Final = 1_000_000_000
# Docker gives these to every container; a machine needs none of them.
_NOT_NEEDED: Final = ("AUDIT_WRITE", "MKNOD", "NET_RAW")


class DockerDialect(Dialect):
    name: ClassVar[str] = "docker"
    prefix: ClassVar[str] = "/"  # without a version: the daemon's own
    grace_parameter: ClassVar[str] = "t"
    own_network: ClassVar[bool] = True
    leaves_mounts: ClassVar[bool] = False

    def container(self, plan: Plan) -> tuple[dict[str, str], dict[str, Any]]:
        host: dict[str, Any] = {
            "CapAdd": list(plan.capabilities),
            "CapDrop": list(_NOT_NEEDED),
            "Init": False,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": f"{MIB}", "max-file": "1"}},
            "Mounts": [
                {"Type": "volume", "Source": v.name, "Target": v.target, "VolumeOptions": {"NoCopy": v.tmpfs}}
                for v in plan.volumes
            ]
            + [{"Type": "bind", "Source": source, "Target": target, "ReadOnly": True} for source, target in plan.binds],
            "Tmpfs": {target: f"{options},exec" for target, options in plan.tmpfs},
            "Ulimits": [
                {"Name": name, "Hard": value, "Soft": value}
                for name, value in (("nofile", plan.nofile), ("nproc", plan.nproc))
                if value
            ],
            "NetworkMode": plan.name if plan.network else "none",
        }
        if plan.memory:
            host |= {"Memory": plan.memory, "MemorySwap": plan.memory}
        if plan.cpus:
            host["NanoCpus"] = int(plan.cpus * _NANO)
        if plan.pids:
            host["PidsLimit"] = plan.pids
        if plan.runtime:
            host["Runtime"] = plan.runtime
        if plan.disk_mb:
            host["StorageOpt"] = {"size": f"{plan.disk_mb}m"}
        body: dict[str, Any] = {
            "Image": plan.image,
            "Hostname": plan.hostname,
            "Env": [f"{name}={value}" for name, value in plan.env.items()],
            "Labels": plan.labels,
            "HostConfig": host,
        }
        if plan.command:
            body |= {"Entrypoint": list(plan.command), "Cmd": []}
        return {"name": plan.name}, body

    def volume(self, volume: Volume, labels: dict[str, str], first_id: int) -> dict[str, Any]:
        owner = f",uid={first_id},gid={first_id}" if first_id else ""
        options = {"type": "tmpfs", "device": "tmpfs", "o": ENDPOINT_OPTIONS + owner} if volume.tmpfs else {}
        return {"Name": volume.name, "Driver": "local", "Labels": labels, "DriverOpts": options}

    def image_exists(self, image: str) -> str:
        return f"images/{image}/json"

    def image_import(self, image: str) -> tuple[str, dict[str, str]]:
        repository, _, tag = image.rpartition(":")
        return "images/create", {"fromSrc": "-", "repo": repository, "tag": tag}

    def version(self, info: dict[str, Any]) -> str:
        return str(info["ServerVersion"])

    def storage(self, info: dict[str, Any]) -> str:
        return str(info["DockerRootDir"])

    def removal(self) -> dict[str, str]:
        return {"force": "true"}

    def id_map(self, inspected: dict[str, Any]) -> IdMap | None:  # noqa: ARG002  # the daemon has one for all
        return None

    def host_path(self, inspected: dict[str, Any], path: str) -> Path:  # noqa: ARG002  # it is the host's
        return Path(path)

    def exit_status(self, body: Any) -> int:
        return int(body["StatusCode"])
