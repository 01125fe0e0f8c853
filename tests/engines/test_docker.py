"""The conformance suite on Docker: a daemon of the test's own, with data, sockets and bridge apart from any other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from catty.engines.container.backend import DockerBackend
from catty.engines.container.engine import ContainerEngine
from engines.conformance import EngineConformance
from engines.site import Site

START_S = 60

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.getuid() != 0, reason="a Docker daemon needs root"),
    pytest.mark.skipif(not shutil.which("dockerd"), reason="no dockerd here (Debian: docker.io)"),
    pytest.mark.skipif(not shutil.which("docker"), reason="no docker client here (Debian: docker-cli)"),
]


@pytest.fixture(scope="module")
def daemon(machine_image: str) -> Iterator[Path]:
    """The socket of a Docker daemon that lives for these tests and holds the image."""
    directory = Path(tempfile.mkdtemp(prefix="catty-docker-"))
    socket, log = directory / "docker.sock", directory / "log"
    words = ["dockerd", f"--host=unix://{socket}", f"--data-root={directory}/data", f"--exec-root={directory}/exec"]
    words += [f"--pidfile={directory}/pid", "--bridge=none", "--storage-driver=overlay2"]
    with open(log, "wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        client = ["docker", f"--host=unix://{socket}"]
        deadline = time.monotonic() + START_S
        while subprocess.run([*client, "info"], capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {log.read_text().splitlines()[-1]}")
            time.sleep(0.1)
        with subprocess.Popen(["podman", "save", machine_image], stdout=subprocess.PIPE) as saving:
            subprocess.run([*client, "load", "--quiet"], stdin=saving.stdout, check=True)
        yield socket
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


class TestDocker(EngineConformance):
    @pytest.fixture
    def site(self, daemon: Path, machine_image: str) -> Site:
        directory = daemon.parent / "engine"
        directory.mkdir(exist_ok=True)
        client = ["docker", f"--host=unix://{daemon}"]
        return Site(lambda owner: ContainerEngine(DockerBackend(daemon), owner, directory), client, machine_image)
