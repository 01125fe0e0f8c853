"""The embedded server: started on demand by whichever command needs it first, and then on its own.

It is a process in its own session, `python -m catty.server --data ~/.catty/server --embedded`, that listens on a Unix socket in its
data directory. Sessions do not depend on it: it can be stopped, killed and replaced at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import catty
from catty import __version__
from catty.client.api import Api, unix_socket
from catty.client.config import Home, Server
from catty.errors import CattyError, ServerStartFailed, ServerUnreachable

__all__ = ["Embedded", "clean_environment", "serve_here"]

START_S: Final = 30.0  # with migration of the database, on a slow disk
STOP_S: Final = 30.0
_POLL_S: Final = 0.01
_CONNECT_S: Final = 2.0
_STDERR_SHOWN: Final = 3
_ERROR: Final = re.compile(r"error: (?:the embedded server did not start: )?(.*) \[[a-z-]+\]")

# What a server needs of its starter's environment. The rest stays out: it may hold the secrets of whoever happened to be first.
_ENVIRONMENT: Final = frozenset(
    {
        "DBUS_SESSION_BUS_ADDRESS",
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TMPDIR",
        "TZ",
        "USER",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "CATTY_HOME",
    }
)
_ENVIRONMENT_PREFIXES: Final = (
    "CATTY_SERVER_",
    "XDG_",
    "LC_",
    "CONTAINER",
    "DOCKER_",
    "PODMAN_",
    "PYTHONWARN",
    "COVERAGE_",  # tests measure what it runs
)
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "no_proxy", "all_proxy"})


class Embedded:
    """The embedded server of one `~/.catty`."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def server_log(self) -> Path:
        """What the server writes, JSON lines."""
        return self._home.server / "server.log"

    @property
    def stderr_log(self) -> Path:
        """What it could not write there, of the last start only."""
        return self._home.server / "stderr.log"

    def pid(self) -> int | None:
        """The process that listens on the socket; None if none does."""
        try:
            sock = unix_socket(str(self._home.socket), _CONNECT_S)
        except OSError:
            return None
        with sock:
            return _peer(sock)

    def status(self) -> dict[str, Any]:
        """`running`, and if so `pid`, `version`, `protocol`."""
        pid = self.pid()
        if pid is None:
            return {"running": False, "data": str(self._home.server)}
        with contextlib.closing(Api(Server(f"unix:{self._home.socket}", token_file=self._home.token))) as api:
            return {"running": True, "pid": pid, "data": str(self._home.server), **api.version()}

    def ensure(self) -> None:
        """Have a server of this version running. Raises ServerStartFailed."""
        with contextlib.suppress(CattyError):
            status = self.status()
            if status["running"]:
                if status.get("version") != __version__:
                    self.restart()
                return
        self.start()

    def start(self) -> None:
        """Start it unless it listens already; returns when it listens. Raises ServerStartFailed."""
        from catty.setup.environment import ensure_server_environment

        if self.pid() is not None:
            return
        with self._starting():
            if self.pid() is not None:
                return
            with self.stderr_log.open("wb") as stderr:
                process = subprocess.Popen(
                    [
                        str(ensure_server_environment()),
                        "-P",
                        "-m",
                        "catty.server",
                        "--data",
                        str(self._home.server),
                        "--embedded",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    cwd="/",
                    env=clean_environment(),
                    start_new_session=True,
                )
            # Its end is taken note of whenever it comes: an attach may live longer than the server that it started.
            threading.Thread(target=process.wait, name="embedded-server", daemon=True).start()
            deadline = time.monotonic() + START_S
            while self.pid() is None:
                if process.poll() is not None:
                    raise self._failed(process.returncode)
                if time.monotonic() > deadline:
                    raise ServerStartFailed(reason=f"it does not listen after {START_S:g} s")
                time.sleep(_POLL_S)

    def stop(self) -> bool:
        """End it; sessions go on. Returns whether there was one. Raises ServerUnreachable if it does not end."""
        pid = self.pid()
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while self._served():
            if time.monotonic() > deadline:
                raise ServerUnreachable(server="the embedded server", reason=f"process {pid} does not end")
            time.sleep(_POLL_S)
        return True

    def restart(self) -> None:
        """Replace it by one of this version."""
        self.stop()
        self.start()

    def _served(self) -> bool:
        """Whether a server holds the data directory. Its lock goes with it, also if nobody has reaped the process yet."""
        try:
            lock = (self._home.server / "lock").open("a")
        except FileNotFoundError:
            return False
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """One starter at a time: of two commands the second finds the first one's server."""
        self._home.server.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._home.server / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _failed(self, code: int) -> ServerStartFailed:
        """What a server that ended at once said: its own error where it came to that."""
        if shutil.disk_usage(self._home.server).free == 0:  # it may not even have been able to say so
            return ServerStartFailed(reason=f"no space left for {self._home.server}")
        lines = self.stderr_log.read_text(errors="replace").strip().splitlines()
        for line, hint in zip(reversed(lines), ["", *reversed(lines)], strict=False):
            if said := _ERROR.fullmatch(line):
                return ServerStartFailed(reason=said[1], hint=hint.removeprefix("  → ") or None)
        words = " / ".join(line.strip() for line in lines[-_STDERR_SHOWN:])
        return ServerStartFailed(reason=words or f"it exited {code}")


def serve_here(arguments: list[str]) -> NoReturn:
    """Become `python -m catty.server ARGUMENTS` in the foreground."""
    from catty.setup.environment import ensure_server_environment

    python = str(ensure_server_environment())
    environment = os.environ | {"PYTHONPATH": str(Path(catty.__file__).parent.parent)}
    os.execve(python, [python, "-P", "-m", "catty.server", *arguments], environment)  # noqa: S606


def clean_environment() -> dict[str, str]:
    """The environment of the embedded server, with this very package to import."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES) or name.lower() in _PROXIES
    }
    return kept | {"PYTHONPATH": str(Path(catty.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}


def _peer(sock: socket.socket) -> int | None:
    """The process at the other end of a Unix socket."""
    if hasattr(socket, "SO_PEERCRED"):
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return int(pid)
    local, peer_pid = 0, 2  # macOS: SOL_LOCAL, LOCAL_PEERPID
    return int(struct.unpack("i", sock.getsockopt(local, peer_pid, struct.calcsize("i")))[0])
