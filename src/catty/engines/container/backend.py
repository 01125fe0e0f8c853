"""The engines that there are: how each is reached, brought back when it went away, and asked again."""

from __future__ import annotations

import abc
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from catty.engines.container.api import CALL_S, Api, Reply
from catty.engines.container.dialect import Dialect
from catty.engines.container.docker import DockerDialect
from catty.engines.container.host import find_program, wants_overlay
from catty.engines.container.podman import PodmanDialect
from catty.engines.container.sandbox import RUNSC, runsc_programs
from catty.engines.container.service import PodmanService
from catty.errors import EngineDown

__all__ = ["Backend", "DockerBackend", "PodmanBackend"]


class Backend(abc.ABC):
    """An engine on this host. `use` chooses its global options; calls need no more: they reach it, or say why not."""

    dialect: Dialect
    api: Api
    # The OCI runtime that requests name, where they can ("": none), and whether it is a sandbox with a network of its own making:
    # gVisor takes no routes from inside and shows no cgroups.
    runtime: str = ""
    sandbox: bool = False

    @abc.abstractmethod
    def candidates(self) -> list[tuple[str, ...]]:
        """Global options that may make it work here, the plainest first."""

    @abc.abstractmethod
    def identity(self) -> list[str]:
        """What tells this engine from another version of it, without asking it."""

    @abc.abstractmethod
    def command(self, options: Sequence[str]) -> list[str]:
        """The command line of its own client (for building images), up to the subcommand."""

    @abc.abstractmethod
    def variant(self, runtime: str) -> Backend:
        """The same engine, with this OCI runtime."""

    @abc.abstractmethod
    async def use(self, options: Sequence[str]) -> None:
        """Have it answer with these global options from now on."""

    @abc.abstractmethod
    async def ensure(self) -> None:
        """Bring it back if it went away. Raises EngineDown."""

    async def call(self, method: str, path: str, **more: Any) -> Reply:
        """`Api.call`, once more if the engine had gone and could be brought back. Callers see to it that twice does no harm."""
        try:
            return await self.api.call(method, path, **more)
        except EngineDown:
            await self.ensure()
            return await self.api.call(method, path, **more)

    async def lines(self, path: str, **more: Any) -> AsyncIterator[Any]:
        """`Api.lines`, after bringing the engine back if need be."""
        await self.ensure()
        async for line in self.api.lines(path, **more):
            yield line

    async def close(self) -> None:
        await self.api.close()


class PodmanBackend(Backend):
    """Podman through a service of our own, whose socket lies in `directory`. `globals_`: options that it always gets (tests)."""

    def __init__(
        self,
        program: str,
        directory: Path,
        *,
        globals_: Sequence[str] = (),
        call_s: float = CALL_S,
        name: str = "podman",
    ) -> None:
        self.dialect = PodmanDialect()
        self._program = program
        # Its events go to a file: a user may not be allowed to read the journal.
        self._globals = ("--events-backend=file", *globals_)
        self._given = tuple(globals_)
        self._directory = directory
        self._name = name
        self._call_s = call_s
        self._candidates = _podman_candidates()
        self._options: tuple[str, ...] = ()
        self._service = self._make_service()
        self.api = self._make_api()

    def candidates(self) -> list[tuple[str, ...]]:
        return self._candidates

    def variant(self, runtime: str) -> Backend:
        # A service each: Podman 4 ignores the OCI runtime that a request names.
        other = PodmanBackend(
            self._program, self._directory, globals_=self._given, call_s=self._call_s, name=f"podman-{runtime}"
        )
        other.sandbox = runtime == RUNSC
        programs = runsc_programs(self._directory) if other.sandbox else [runtime]
        other._candidates = [(f"--runtime={program}",) for program in programs]
        return other

    def identity(self) -> list[str]:
        status = Path(self._program).stat()
        return [self.dialect.name, self._program, str(status.st_mtime_ns), str(status.st_size), *self._globals]

    def command(self, options: Sequence[str]) -> list[str]:
        return [self._program, *self._globals, *options]

    async def use(self, options: Sequence[str]) -> None:
        if tuple(options) != self._options:
            await self.close()
            self._options = tuple(options)
            self._service = self._make_service()
            self.api = self._make_api()
        await self._service.ensure()

    async def ensure(self) -> None:
        await self._service.ensure()

    async def close(self) -> None:
        await self.api.close()
        await self._service.close()

    def _make_service(self) -> PodmanService:
        return PodmanService(self._program, (*self._globals, *self._options), self._directory, self._name)

    def _make_api(self) -> Api:
        return Api(self._service.socket, self.dialect.prefix, call_s=self._call_s)


class DockerBackend(Backend):
    """Docker's daemon, which listens on `socket`."""

    def __init__(self, socket: Path, *, call_s: float = CALL_S, runtime: str = "") -> None:
        self.dialect = DockerDialect()
        self.runtime = runtime
        self.sandbox = runtime == RUNSC
        self._socket = socket
        self._call_s = call_s
        self.api = Api(socket, self.dialect.prefix, call_s=call_s)

    def candidates(self) -> list[tuple[str, ...]]:
        return [()]

    def variant(self, runtime: str) -> Backend:
        # It must stand in daemon.json, runsc with the flags of sandbox.py.
        return DockerBackend(self._socket, call_s=self._call_s, runtime=runtime)

    def identity(self) -> list[str]:
        try:
            started = self._socket.stat().st_ctime_ns  # a daemon makes its socket when it starts: upgrades restart it
        except OSError:
            started = 0
        return [self.dialect.name, str(self._socket), str(started)]

    def command(self, options: Sequence[str]) -> list[str]:  # noqa: ARG002  # Docker has none
        return [shutil.which("docker") or "docker", "--host", f"unix://{self._socket}"]

    async def use(self, options: Sequence[str]) -> None:
        pass

    async def ensure(self) -> None:
        if not self._socket.exists():
            raise EngineDown(reason=f"{self._socket} is not there")


def _podman_candidates() -> list[tuple[str, ...]]:
    runtimes = [f"--runtime={name}" for name in ("runc", "crun") if find_program(name)]
    candidates = [(), *((runtime,) for runtime in runtimes), *(("--cgroup-manager=cgroupfs", r) for r in runtimes)]
    # Podman remembers the driver of its first start for good: where it would choose vfs (a full copy of the image per machine),
    # it must be told before that.
    overlay = ("--storage-driver=overlay",) if wants_overlay() else ()
    return [(*overlay, *candidate) for candidate in candidates]
