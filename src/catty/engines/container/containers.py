"""Containers, their volumes and networks, in one engine. Every operation may be repeated after a fault in its middle."""

from __future__ import annotations

import asyncio
import ctypes
import json
import math
import os
import secrets
from collections.abc import Mapping
from typing import Any, Final

from catty.engines.container.backend import Backend
from catty.engines.container.host import is_root
from catty.engines.container.plan import Plan, endpoint_volume
from catty.errors import EngineFailed, MachineNotFound

__all__ = ["SUBNETS", "Containers"]

SUBNETS: Final = "10.213.0.0/16"  # Docker: each machine's own network is a /29 in here
_SUBNET_TRIES: Final = 8
_MNT_DETACH: Final = 2  # from linux/fs.h
_NAME_TAKEN: Final = ("already in use", "already exists", "is in use by")


class Containers:
    """Makes, runs and removes what a `Plan` describes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._dialect = backend.dialect

    async def create(self, plan: Plan, first_id: int = 0) -> None:
        """Make it, not started, with its volumes. One of that name that is there stays as it is.

        Raises ImageMissing, DiskFull, EngineFailed.
        """
        action = f"create {plan.name}"
        for volume in plan.volumes:
            # The others are made by the engine along with the container.
            if volume.tmpfs:
                body = self._dialect.volume(volume, plan.labels, first_id)
                await self._call_named("POST", "volumes/create", action=action, body=body)
        params, body = self._dialect.container(plan)
        await self._call_named("POST", "containers/create", action=action, params=params, body=body, image=plan.image)

    async def create_network(self, name: str, labels: Mapping[str, str]) -> str:
        """A network for one machine; the host's address in it. One of that name that is there is used."""
        action = f"make the network {name}"
        for attempt in range(_SUBNET_TRIES):
            present = await self._backend.call("GET", f"networks/{name}", action=action, expect=(200, 404))
            if present.status == 200:
                return str(present.body["IPAM"]["Config"][0]["Gateway"])
            low, high = secrets.randbelow(256), secrets.randbelow(32) * 8
            subnet = {"Subnet": f"10.213.{low}.{high}/29", "Gateway": f"10.213.{low}.{high + 1}"}
            body = {"Name": name, "Labels": dict(labels), "Driver": "bridge", "IPAM": {"Config": [subnet]}}
            try:
                await self._backend.call("POST", "networks/create", action=action, body=body, expect=(201, 409))
            except EngineFailed as error:
                if "overlap" not in error.message or attempt == _SUBNET_TRIES - 1:
                    raise
        raise EngineFailed(action=action, reason=f"no room for another network in {SUBNETS}")

    async def start(self, name: str) -> None:
        """Raises MachineNotFound, EngineFailed."""
        path = f"containers/{name}/start"
        reply = await self._backend.call("POST", path, action=f"start {name}", expect=(204, 304, 404))
        if reply.status == 404:
            raise MachineNotFound(machine=name)

    async def stop(self, name: str, grace: float) -> None:
        """SIGTERM, after `grace` seconds SIGKILL; returns when it has ended. Raises MachineNotFound, EngineFailed."""
        params = {self._dialect.grace_parameter: str(math.ceil(grace))}
        path = f"containers/{name}/stop"
        reply = await self._backend.call(
            "POST", path, action=f"stop {name}", params=params, expect=(204, 304, 404), extra_s=grace
        )
        if reply.status == 404:
            raise MachineNotFound(machine=name)

    async def wait(self, name: str) -> int:
        """Its exit code, once it has one."""
        reply = await self._backend.call("POST", f"containers/{name}/wait", action=f"wait for {name}")
        return self._dialect.exit_status(reply.body)

    async def inspect(self, name: str) -> dict[str, Any] | None:
        """The engine's description of it, None if it is not there."""
        path = f"containers/{name}/json"
        reply = await self._backend.call("GET", path, action=f"inspect {name}", expect=(200, 404))
        return reply.body if reply.status == 200 else None

    async def list(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """The engine's short descriptions of all that have these labels, running or not."""
        params = {"all": "true", "filters": filters(label=[f"{key}={value}" for key, value in labels.items()])}
        reply = await self._backend.call("GET", "containers/json", action="list machines", params=params)
        return reply.body or []

    async def remove(self, name: str) -> None:
        """Remove the container, running or not. Nothing happens if it is not there."""
        params = self._dialect.removal()
        # 409: somebody else is removing it; the volumes' removal finds out whether that went well.
        await self._backend.call(
            "DELETE", f"containers/{name}", action=f"remove {name}", params=params, expect=(200, 204, 404, 409)
        )

    async def remove_volume(self, name: str) -> None:
        """Nothing happens if it is not there."""
        action = f"remove the volume {name}"
        await self._backend.call(
            "DELETE", f"volumes/{name}", action=action, expect=(204, 404), params={"force": "true"}
        )

    async def remove_network(self, name: str) -> None:
        """Nothing happens if it is not there."""
        await self._backend.call("DELETE", f"networks/{name}", action=f"remove the network {name}", expect=(204, 404))

    async def remove_endpoint(self, name: str) -> None:
        """The endpoint of container `name`, after the container. Nothing happens if it is not there."""
        volume = endpoint_volume(name).name
        if self._dialect.leaves_mounts and is_root():
            path = f"volumes/{volume}/json"
            reply = await self._backend.call("GET", path, action="look at a volume", expect=(200, 404))
            if reply.status == 200:
                await asyncio.to_thread(_unmount, str(reply.body["Mountpoint"]))
        await self.remove_volume(volume)

    async def _call_named(self, method: str, path: str, **more: Any) -> None:
        """A call that makes something with a name, which is content if the name is taken: by an earlier try of the same."""
        try:
            await self._backend.call(method, path, expect=(200, 201, 409), **more)
        except EngineFailed as error:
            if not any(sign in error.message for sign in _NAME_TAKEN):
                raise


def filters(**conditions: list[str]) -> str:
    """The `filters` parameter of lists and events."""
    return json.dumps(conditions)


def _unmount(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    while os.path.ismount(path):
        if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
            raise EngineFailed(action=f"unmount {path}", reason=os.strerror(ctypes.get_errno()))
