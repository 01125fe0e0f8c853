"""Sites: places where engines are tested."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from catty.engines.container.backend import PodmanBackend
from catty.engines.container.engine import ContainerEngine
from engines.site import Site

IMAGE_VARIABLE = "CATTY_TEST_IMAGE"  # the image of a child that tests as another user (test_rootless.py)


@pytest.fixture(scope="session")
def machine_image(request: pytest.FixtureRequest) -> str:
    """What machines are made from: the session image, or the image that is given."""
    if given := os.environ.get(IMAGE_VARIABLE):
        return given
    session_image: str = request.getfixturevalue("session_image")
    return session_image


@pytest.fixture(scope="session")
def engine_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where engines keep socket and cached probe, so that one probe serves all tests."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture
def podman_site(engine_directory: Path, machine_image: str) -> Site:
    program = shutil.which("podman") or "podman"
    cli = [program] if os.getuid() == 0 else [program, "--storage-driver=overlay"]
    return Site(
        lambda owner: ContainerEngine(PodmanBackend(program, engine_directory), owner, engine_directory),
        cli,
        machine_image,
    )
