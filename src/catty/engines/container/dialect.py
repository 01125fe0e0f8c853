"""What differs between engines' APIs: bodies of requests, places of facts in answers. No I/O."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, ClassVar

from catty.engines.container.plan import IdMap, Plan, Volume

__all__ = ["Dialect"]


class Dialect(abc.ABC):
    """One per engine. `inspected` is always the answer to `GET containers/NAME/json`."""

    name: ClassVar[str]
    prefix: ClassVar[str]  # of each path
    grace_parameter: ClassVar[str]  # of `stop`
    own_network: ClassVar[bool]  # whether a machine needs a network made for it first
    # Whether a removed container's endpoint may stay mounted: Podman unmounts it in the mount namespace of its monitor process, which
    # does not reach the host's where `/` is not a shared mount.
    leaves_mounts: ClassVar[bool]

    @abc.abstractmethod
    def container(self, plan: Plan) -> tuple[dict[str, str], dict[str, Any]]:
        """Parameters and body of `POST containers/create`."""

    @abc.abstractmethod
    def volume(self, volume: Volume, labels: dict[str, str], first_id: int) -> dict[str, Any]:
        """Body of `POST volumes/create`. `first_id`: the host's uid of root in the machine, where the engine does not see to it."""

    @abc.abstractmethod
    def image_exists(self, image: str) -> str:
        """The path whose status says whether `image` is there."""

    @abc.abstractmethod
    def image_import(self, image: str) -> tuple[str, dict[str, str]]:
        """Path and parameters to post a root file system as a tar to."""

    @abc.abstractmethod
    def version(self, info: dict[str, Any]) -> str:
        """The engine's version, from `GET info`."""

    @abc.abstractmethod
    def storage(self, info: dict[str, Any]) -> str:
        """The host directory where images and volumes lie, from `GET info`."""

    @abc.abstractmethod
    def removal(self) -> dict[str, str]:
        """Parameters of `DELETE containers/NAME` that remove it, running or not, at once."""

    @abc.abstractmethod
    def id_map(self, inspected: dict[str, Any]) -> IdMap | None:
        """Where the container's ids lie on the host; None where all machines share one place."""

    @abc.abstractmethod
    def host_path(self, inspected: dict[str, Any], path: str) -> Path:
        """How this process sees `path`, a path of the engine's own mount namespace."""

    @abc.abstractmethod
    def exit_status(self, body: Any) -> int:
        """The exit code in the answer to `POST containers/NAME/wait`."""

    def mountpoint(self, inspected: dict[str, Any], target: str) -> str:
        """The engine's path of what is mounted at `target`; empty if nothing is."""
        for mount in inspected.get("Mounts") or ():
            if mount.get("Destination") == target:
                return str(mount.get("Source", ""))
        return ""
