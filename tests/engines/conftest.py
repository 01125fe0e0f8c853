"""Sites: places where engines are tested."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from catty.engines.container.backend import PodmanBackend
from catty.engines.container.engine import ContainerEngine
from engines.site import Site

IMAGE = "localhost/catty-stand-in:1"


@pytest.fixture(scope="session")
def engine_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where engines keep socket and cached probe, so that one probe serves all tests."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture
def podman_site(engine_directory: Path) -> Site:
    program = shutil.which("podman") or "podman"
    cli = [program] if os.getuid() == 0 else [program, "--storage-driver=overlay"]
    return Site(
        lambda owner: ContainerEngine(PodmanBackend(program, engine_directory), owner, engine_directory), cli, IMAGE
    )


@pytest.fixture
def runsc_site(podman_site: Site, engine_directory: Path) -> Site:
    podman_site.runtime = "runsc"
    return podman_site
