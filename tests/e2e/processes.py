"""What one server has on this host, seen from outside: its process, its machines with their processes and volumes.

Everything is found by the home directory and by the engine's labels, so that nothing of anybody else is ever touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from catty.client.api import Api
from catty.client.config import Home, Server
from catty.errors import NotFound, ServerUnreachable
from e2e.catty import Catty

LABEL = "brave-tiger-1234"
BIG = 48 << 20  # bytes: several packs, so that there is time to strike
# A program that uses all of a terminal: alternate screen, paste, mouse, hidden cursor, kitty's keys.
FULL_SCREEN = r"clear; printf '\033[?1049h\033[?2004h\033[?1000;1003;1006h\033[?25l\033[>5ufull %s' screen; cat"
# Prints numbered lines, slowly enough for a test that looks away for a moment: a client that takes nothing for a second is shown the
# screen instead. Each key that it reads goes into a file, `!` ends it.
PRINTER_PATH = "/tmp/printer.py"
PRINTER = b"""
import os, select, time, tty
tty.setraw(0)
keys = open('/tmp/keys', 'ab', 0)
os.write(1, b'BEGIN\\r\\n')
number = 0
while True:
    if select.select([0], [], [], 0.01)[0]:
        data = os.read(0, 4096)
        keys.write(data.partition(b'!')[0])
        if b'!' in data:
            break
    os.write(1, b''.join(b'%08d\\r\\n' % (number + i) for i in range(5)))
    number += 5
os.write(1, b'END\\r\\n')
os.system('stty sane')
"""

_POLL_S = 0.005  # what has no event to wait for: files of a store, processes of others


class Host:
    """What belongs to the server of `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def server(self) -> int:
        """The embedded server's process."""
        data = os.fsencode(self._home / "server")
        (found,) = [pid for pid, words in _processes() if b"catty.server" in words and data in words]
        return found

    @property
    def owner(self) -> str:
        """The name that the engine's labels carry."""
        with closing(sqlite3.connect(self._home / "server" / "catty.db")) as database:
            return str(database.execute("SELECT value FROM meta WHERE key = 'installation'").fetchone()[0])

    def container(self, session: dict[str, Any]) -> str:
        """The name of a session's container; its salvage helper's has `-salvage` behind it."""
        return f"catty-{self.owner}-{session['machine_id']}"

    def init(self, session: dict[str, Any]) -> int:
        """PID 1 of a session's machine, by its number on this host."""
        machine = f"CATTY_MACHINE={session['machine_id']}".encode()
        init = b"/opt/catty/bin/catty-init"
        (found,) = [pid for pid, words in _processes() if init in words and machine in _environment(pid)]
        return found

    def runtime(self, session: dict[str, Any], name: str) -> int:
        """The process `terminal` or `workspace` of a session's machine."""
        init, module = self.init(session), f"catty.runtime.{name}".encode()
        (found,) = [pid for pid, words in _processes() if module in words and _parent(pid) == init]
        return found

    def remains(self) -> list[str]:
        """Containers, helpers, volumes and mounts of this server, and what its store holds of sessions."""
        owner = f"name=catty-{self.owner}"
        found = podman("ps", "--all", "--filter", owner, "--format", "{{.Names}}").split()
        found += podman("volume", "ls", "--filter", owner, "--format", "{{.Name}}").split()
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self.owner in line]
        return found + [str(path) for path in self.store("sessions/*/heads/*")]

    def until_nothing_remains(self) -> None:
        """What an engine was still making when its session had ended goes with the keeper's next sweep."""
        until(lambda: self.remains() == [])

    def store(self, pattern: str) -> list[Path]:
        """Objects of the server's store; `pattern` below an owner's directory."""
        return list((self._home / "server" / "store").glob(f"*/{pattern}"))

    def until_saving(self, before: Collection[Path]) -> None:
        """Wait until a pack arrives in the store beside those `before`: a save, or an upload, is under way."""
        until(lambda: set(self.store("packs/*")).difference(before))

    @contextmanager
    def api(self) -> Iterator[Api]:
        """The server's REST interface; it is not started for that."""
        server = Server(f"unix:{self._home / 'server' / 'api.sock'}", token_file=Home(self._home).token)
        with closing(Api(server)) as api:
            yield api

    def until(self, label: str, wanted: Callable[[dict[str, Any]], bool], timeout: float = 60) -> dict[str, Any]:
        """The session once `wanted` holds; seen within milliseconds. It, and the server, may still have to come to be."""
        deadline = time.monotonic() + timeout
        version: int | None = None
        with self.api() as api:
            while True:
                session: dict[str, Any] = {}
                try:
                    session = api.session(label, wait=version, timeout=5)
                except (NotFound, ServerUnreachable):
                    time.sleep(_POLL_S)
                if session and wanted(session):
                    return session
                version = session.get("version")
                assert time.monotonic() < deadline, f"{label} is {session}"


def podman(*words: str) -> str:
    """What the engine's own client prints."""
    return subprocess.run(["podman", *words], check=True, capture_output=True, text=True).stdout.strip()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal that ends a process, and wait until it has ended; whose child it is does not matter."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, number)
        assert select.select([handle], [], [], 30)[0], f"process {pid} survives signal {number}"
    finally:
        os.close(handle)


def until(condition: Callable[[], Any], timeout: float = 60) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(_POLL_S)
    return value


def grow(directory: Path) -> str:
    """Put a file `big` of BIG bytes, which no compression makes smaller, into `directory`. Its SHA-256, in hex."""
    data = os.urandom(BIG)
    (directory / "big").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def grow_machine(catty: Catty) -> str:
    """The same in the machine of session LABEL."""
    return catty.exec(LABEL, f"head -c {BIG} /dev/urandom > big && sha256sum < big").split()[0].decode()


def make(catty: Catty, *args: str) -> subprocess.Popen[bytes]:
    """`new -d` of session LABEL, under way."""
    return catty.start("new", "-d", "--json", "--yes", "--agent", "shell", "--name", LABEL, *args)


def ends(process: subprocess.Popen[bytes], timeout: float = 120) -> tuple[int, bytes, str]:
    """Exit code, standard output and standard error of a command that was started."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err.decode()


def delete_twice(catty: Catty, host: Host) -> None:
    """Whatever state LABEL is in, there is a way out, and it leaves nothing."""
    for _ in range(2):
        done = catty.call("stop", LABEL, "--delete")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{LABEL} deleted\n".encode()
    host.until_nothing_remains()
    assert json.loads(catty.run("list", "--json", "--all")) == []


def processes_of(*words: str) -> list[int]:
    """Those of this host, machines included, with this command line."""
    wanted = [word.encode() for word in words]
    return [pid for pid, found in _processes() if found[: len(wanted)] == wanted]


def _processes() -> Iterator[tuple[int, list[bytes]]]:
    """Of this host: pid and command line."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(entry.parent.name), entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[1])
