"""An engine that is gone, slow, full or not there at all: each a clear error, and mended where that is possible. On real Podman."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from catty import constants
from catty.engines.base import Engine, Exit, MachineState
from catty.engines.container import open_engine
from catty.engines.container.backend import DockerBackend, PodmanBackend
from catty.engines.container.engine import ContainerEngine
from catty.errors import DiskFull, EngineDown, EngineFailed, EngineNotFound, EngineSlow
from engines.conformance import ASK_DNS
from engines.site import Site

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not shutil.which("podman"), reason="no podman here")]


@pytest.fixture
async def engine(podman_site: Site) -> AsyncIterator[Engine]:
    async with podman_site.engine() as engine:
        yield engine


@pytest.fixture
def directory(engine_directory: Path) -> Iterator[Path]:
    """A directory of an engine of one's own, with the probe of the others."""
    path = Path(tempfile.mkdtemp(prefix="catty-engine-"))
    yield path
    shutil.rmtree(path)


@contextlib.asynccontextmanager
async def closing(engine: Engine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await engine.close()


def service_pids(directory: Path) -> list[int]:
    """Processes that serve a socket in `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"service" in words and any(word.startswith(b"unix://" + os.fsencode(directory)) for word in words):
            found.append(int(entry.parent.name))
    return found


async def ended(pids: list[int]) -> None:
    async with asyncio.timeout(20):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.02)


async def test_killed_service_is_brought_back(podman_site: Site, engine: Engine, engine_directory: Path) -> None:
    machine = await podman_site.boot(engine)
    pids = service_pids(engine_directory)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await ended(pids)
    assert (await engine.inspect(machine)).state is MachineState.RUNNING


async def test_watch_survives_the_service(podman_site: Site, engine: Engine, engine_directory: Path) -> None:
    machine = await podman_site.boot(engine)
    first = asyncio.ensure_future(anext(engine.watch()))
    await asyncio.sleep(0.5)  # the engine gives no sign that it has begun to tell
    pids = service_pids(engine_directory)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    os.kill(await podman_site.pid(machine), signal.SIGKILL)  # while nobody listens
    async with asyncio.timeout(30):
        assert await first == Exit(machine, 137, "exited 137")


async def test_engine_down(directory: Path) -> None:
    """A Podman that ends at once says why."""
    program = directory / "podman"
    program.write_text("#!/bin/sh\necho 'Error: database is locked' >&2\nexit 125\n")
    program.chmod(0o755)
    engine = ContainerEngine(PodmanBackend(str(program), directory), "test", directory)
    async with closing(engine):
        with pytest.raises(EngineDown, match="database is locked"):
            await engine.list()


async def test_docker_down(directory: Path) -> None:
    engine = ContainerEngine(DockerBackend(directory / "docker.sock"), "test", directory)
    async with closing(engine):
        with pytest.raises(EngineDown, match="is not there"):
            await engine.list()


async def test_engine_slow(podman_site: Site, directory: Path) -> None:
    program = shutil.which("podman") or ""
    engine = ContainerEngine(PodmanBackend(program, directory, call_s=5), podman_site.owner, directory)
    await engine.list()
    pids = service_pids(directory)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineSlow, match="more than 5 s to list machines"):
        await engine.list()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert await engine.list() == []
    await engine.close()
    await ended(pids)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small disk")
async def test_disk_full(podman_site: Site, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    try:
        options = (f"--root={disk}/root", f"--runroot={directory}/run", "--storage-driver=overlay")
        backend = PodmanBackend(shutil.which("podman") or "", directory, globals_=options)
        engine = ContainerEngine(backend, podman_site.owner, directory)
        async with closing(engine):
            await engine.probe()
            change = 'ENTRYPOINT ["/bin/true"]'
            words = [*backend.command(()), "import", "--change", change, "-", "localhost/small:1"]
            subprocess.run(words, input=bytes(10240), check=True, capture_output=True)
            spec = podman_site.spec(image="localhost/small:1")
            with pytest.raises(OSError, match="No space left"):
                (disk / "filler").write_bytes(bytes(32 << 20))
            with pytest.raises(DiskFull, match=rf"100 % full \({disk}/root\)"):
                await engine.create(spec)
            monkeypatch.setattr(constants, "DISK_REFUSE_PERCENT", 101)  # let it try
            with pytest.raises(DiskFull, match=rf"100 % full \({disk}/root\)"):
                await engine.create(spec)
            (disk / "filler").unlink()
            assert (await engine.create(spec)).state is MachineState.CREATED
            await engine.destroy(spec.machine)
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(disk)], check=True)


async def test_nothing_runs_here(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose every OCI runtime fails says which, and why."""
    for name in ("crun", "runc"):
        (directory / name).write_text("#!/bin/sh\necho 'cannot: no cgroups' >&2\nexit 1\n")
        (directory / name).chmod(0o755)
    backend = PodmanBackend(shutil.which("podman") or "", directory)
    monkeypatch.setattr(
        backend, "candidates", lambda: [(f"--runtime={directory}/{name}",) for name in ("crun", "runc")]
    )
    engine = ContainerEngine(backend, "test", directory)
    async with closing(engine):
        with pytest.raises(EngineFailed, match=r"run a container: .*; .*") as caught:
            await engine.probe()
    assert "could not run a container" in caught.value.message
    assert not (directory / "probe.json").exists()


def test_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    if os.access("/var/run/docker.sock", os.W_OK):
        pytest.skip("a Docker daemon runs here")
    with pytest.raises(EngineNotFound):
        open_engine(tmp_path, "test")


async def test_service_ends_with_its_server_and_machines_go_on(
    podman_site: Site, engine: Engine, directory: Path
) -> None:
    machine = podman_site.spec()
    script = f"""
import asyncio, pathlib
from catty.engines.base import MachineSpec
from catty.engines.container import open_engine
async def main():
    engine = open_engine(pathlib.Path({str(directory)!r}), {podman_site.owner!r})
    await engine.create(MachineSpec({machine.machine!r}, {machine.image!r}))
    await engine.start({machine.machine!r})
    print("started", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert server.stdout
    assert await server.stdout.readline() == b"started\n"
    pids = service_pids(directory)
    assert pids
    server.kill()
    await server.wait()
    await ended(pids)
    assert (await engine.inspect(machine.machine)).state is MachineState.RUNNING
    assert await podman_site.beside(machine.machine, ASK_DNS) == (0, "answered")


async def test_second_engine_in_one_directory_shares_the_service(
    podman_site: Site, engine: Engine, directory: Path
) -> None:
    first, second = open_engine(directory, podman_site.owner), open_engine(directory, podman_site.owner)
    await first.list()
    pids = service_pids(directory)
    await second.list()
    assert service_pids(directory) == pids
    await first.close()
    await ended(pids)
    assert await second.list() == []  # makes its own
    await second.close()


async def test_probe_is_cached_until_something_changes(podman_site: Site, directory: Path) -> None:
    engine = open_engine(directory, podman_site.owner)
    found = await engine.probe()
    await engine.close()
    cache = directory / "engine" / "probe.json"
    before = cache.stat().st_mtime_ns

    again = open_engine(directory, podman_site.owner)
    assert await again.probe() == found
    await again.close()
    assert cache.stat().st_mtime_ns == before

    for broken in ("{}", "no json", cache.read_text().replace('"key": "', '"key": "another')):
        cache.write_text(broken)
        afresh = open_engine(directory, podman_site.owner)
        assert await afresh.probe() == found
        await afresh.close()


async def test_socket_path_may_be_long(podman_site: Site, directory: Path) -> None:
    engine = open_engine(directory / ("d" * 120), podman_site.owner)
    assert await engine.list() == []
    await engine.close()
