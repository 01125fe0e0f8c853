"""A `podman system service` of our own, for as long as this process lives. Machines do not depend on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from catty.constants import SUN_PATH_MAX
from catty.errors import EngineDown, EngineSlow

__all__ = ["PodmanService"]

_START_S: Final = 20.0
_END_S: Final = 5.0
_WITHOUT_SUPERVISION_S: Final = 60  # without setpriv the service ends itself after this long without a connection
# A service must not believe that it was socket-activated, nor be a client of another one.
_FOREIGN: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "CONTAINER_HOST", "DOCKER_HOST")


class PodmanService:
    """`ensure` makes it answer, `close` ends it. `options` are Podman's global options (OCI runtime, cgroup manager …).

    Each process has its own, on a socket of its own: another process of the same server may be probing with options that do not work,
    or about to end. It dies with this process, however that ends: the kernel sends it SIGTERM (`setpriv --pdeathsig`).
    """

    def __init__(self, program: str, options: Sequence[str], directory: Path, name: str = "podman") -> None:
        self._program = program
        self._options = tuple(options)
        self._log = directory / f"{name}.log"
        path = directory / f"{name}-{os.getpid()}.sock"
        self._scratch = "" if len(os.fsencode(path)) <= SUN_PATH_MAX else tempfile.mkdtemp(prefix="catty-")
        self.socket = path if not self._scratch else Path(self._scratch) / path.name
        self._process: Process | None = None
        self._lock = asyncio.Lock()

    async def ensure(self) -> None:
        """Make the service answer; costs nothing while it does. Raises EngineDown with its last words, EngineSlow."""
        async with self._lock:
            if _listens(self.socket):
                return
            await self._end()
            await self._spawn()

    async def close(self) -> None:
        async with self._lock:
            await self._end()
            if self._scratch:
                shutil.rmtree(self._scratch, ignore_errors=True)

    async def _spawn(self) -> None:
        self._clear_away()
        supervisor = shutil.which("setpriv")
        words = [supervisor, "--pdeathsig", "TERM", "--"] if supervisor else []
        seconds = 0 if supervisor else _WITHOUT_SUPERVISION_S
        words += [self._program, *self._options, "system", "service", f"--time={seconds}", f"unix://{self.socket}"]
        environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        with open(self._log, "wb") as log:  # noqa: ASYNC230  # a moment, on a local disk
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *words,
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=self.socket.parent,  # conmon leaves a file `oom` where it was started
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineDown(reason=f"{self._program}: {error.strerror}") from None
        ended = asyncio.ensure_future(self._process.wait())
        try:
            async with asyncio.timeout(_START_S):
                while not _listens(self.socket):
                    await asyncio.wait([ended], timeout=0.01)
                    if ended.done():
                        raise EngineDown(reason=self._last_words())
        except TimeoutError:
            await self._end()
            raise EngineSlow(seconds=_START_S, action="start its service") from None
        finally:
            ended.cancel()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:
            # The whole group: a rootless Podman is two processes, of which the first only passes signals on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        self.socket.unlink(missing_ok=True)

    def _clear_away(self) -> None:
        """Remove the sockets of processes that were killed."""
        for path in self.socket.parent.glob("*.sock"):
            if not _listens(path):
                path.unlink(missing_ok=True)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1][-500:]
        return "its service ended at once"


def _listens(path: Path) -> bool:
    # The kernel takes the connection into the backlog: this neither blocks nor needs the service to be awake.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # its backlog is full: slow, not gone
        except OSError:
            return False
    return True
