"""Which container engine this host has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from catty.engines.container.host import is_root
from catty.errors import EngineNotFound

if TYPE_CHECKING:
    from catty.engines.container.backend import Backend
    from catty.engines.container.engine import ContainerEngine

PODMAN: Final = "podman"
DOCKER: Final = "docker"

__all__ = ["find_docker", "find_podman", "open_engine"]


def open_engine(data_dir: Path, owner: str) -> ContainerEngine:
    """The engine of this host for the server `owner`, whose data directory is `data_dir`: the one that was used there before, else Podman
    if it is there, else Docker. Another one would know nothing of the machines that there are, and they would pass for dead.

    Quick: nothing is started or asked before the engine is used. Raises EngineNotFound.
    """
    from catty.engines.container.backend import DockerBackend, PodmanBackend
    from catty.engines.container.engine import ContainerEngine

    directory = data_dir / "engine"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    memory = directory / "kind"
    used = memory.read_text().strip() if memory.exists() else ""
    backend: Backend
    if used != DOCKER and (podman := find_podman()):
        backend, kind = PodmanBackend(podman, directory), PODMAN
    elif used != PODMAN and (docker := find_docker()):
        backend, kind = DockerBackend(docker), DOCKER
    elif used:
        raise EngineNotFound(
            f"{used}, which holds this server's machines, is not there",
            hint=f"Bring it back. To give up what it holds and use another engine: remove {memory}.",
        )
    else:
        raise EngineNotFound
    if kind != used:
        memory.write_text(kind + "\n")
    return ContainerEngine(backend, owner, directory)


def find_podman() -> str | None:
    """The path of the program, None if there is none."""
    return shutil.which(PODMAN)


def find_docker() -> Path | None:
    """The socket of a Docker daemon that can serve this user, None if there is none.

    Only root: machines' endpoints lie in the daemon's storage, which nobody else may enter.
    """
    if not is_root():
        return None
    named = os.environ.get("DOCKER_HOST", "")
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    sockets = [named.removeprefix("unix://")] if named.startswith("unix://") else []
    sockets += ["/var/run/docker.sock", f"{runtime_dir}/docker.sock"]
    return next((Path(path) for path in sockets if os.access(path, os.R_OK | os.W_OK)), None)
