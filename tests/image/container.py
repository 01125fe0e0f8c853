"""Containers of the session image for tests, without Catty's engine and runtime: the image alone is what is looked at."""

from __future__ import annotations

import contextlib
import functools
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

BUNDLE = (
    "/etc/ssl/certs/ca-certificates.crt"  # in the image; in a session the runtime puts the host's certificates there
)


class Container:
    """A running container; `run` runs a shell script in it."""

    def __init__(self, cli: list[str], name: str) -> None:
        self._cli, self._name = cli, name

    def run(self, script: str, *, user: str = "agent", check: bool = True, timeout: float = 300) -> str:
        """What `script` prints. Run by `sh -c` in /workspace; `check`: it must succeed."""
        command = [*self._cli, "exec", "--user", user, self._name, "sh", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
        assert not check or done.returncode == 0, f"{script}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + ("" if check else done.stderr)


@contextlib.contextmanager
def container(image: str, bundle: Path | None) -> Iterator[Container]:
    """One that does nothing; `bundle` lies where the system's CA certificates are."""
    cli, options = _working_options(image)
    mounts = ["--volume", f"{bundle}:{BUNDLE}:ro"] if bundle else []
    command = [*cli, "run", "--detach", *options, *mounts, "--entrypoint", "sleep", image, "infinity"]
    name = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    try:
        yield Container(cli, name)
    finally:
        subprocess.run([*cli, "rm", "--force", "--time=0", name], capture_output=True, check=True, timeout=120)


@functools.cache
def _working_options(image: str) -> tuple[list[str], list[str]]:
    """The engine's command line and the options of `run` with which a container starts on this host."""
    program = shutil.which("podman") or "docker"
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
    options = ["--rm", f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=4096:4096"]
    if program == "docker":
        return [program], options
    options.append("--network=slirp4netns")
    errors = []
    for runtime in ([], ["--runtime=runc"], ["--runtime=crun"]):
        for userns in (["--userns=auto:size=65536"], []):
            command = [program, *runtime, "run", *options, *userns, "--entrypoint", "true", image]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode == 0:
                return [program, *runtime], [*options, *userns]
            errors.append(done.stderr)
    raise AssertionError("no way to start a container:\n" + "".join(errors))
