"""The keeper on real machines: time to live and what counts as activity; machines and records that have lost each other."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from catty.client.api import Api
from catty.client.config import Server
from e2e.catty import Catty
from e2e.terminal import Terminal
from homes import a_home

HERE = Path(__file__).parent
SPEED = 30  # 10 minutes are 20 s
TTL_S = 600

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


@pytest.fixture
def fast(catty: Catty) -> Iterator[Catty]:
    """A command line whose server's clock runs SPEED times as fast (fast_server.py)."""
    data = catty.home / "server"
    words = ["-P", str(HERE / "fast_server.py"), str(SPEED), "--data", str(data), "--embedded", "--listen", ""]
    process = subprocess.Popen([sys.executable, *words], env=catty.env | {"PYTHONPATH": str(HERE.parents[1] / "src")})
    try:
        eventually(lambda: (data / "api.sock").exists() or process.poll() is not None)
        yield catty
        catty.run("stop", "--all", "--delete", "--yes")
    finally:
        process.terminate()
        process.wait(timeout=30)


def eventually(look: Any, seconds: float = 60) -> Any:
    """The first true value that `look` gives."""
    deadline = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return value


def background(catty: Catty, label: str, script: str) -> None:
    """Start a program in the machine that runs on by itself, and prints nothing."""
    catty.exec(label, f"setsid sh -c '{script}' >/dev/null 2>&1 </dev/null &")


def snapshots(catty: Catty, label: str) -> list[dict[str, Any]]:
    server = Server(f"unix:{catty.home}/server/api.sock", token_file=catty.home / "server" / "token")
    with contextlib.closing(Api(server)) as api:
        return api.snapshots(label)


def pump_while_typing(typed: Terminal, other: Terminal, *, until: str) -> None:
    """Until a text stands on the `other` screen, type into the first one every second."""
    deadline = time.monotonic() + 60
    while until not in other.screen_text:
        assert time.monotonic() < deadline, other.screen_text
        other.pump(1)
        typed.send("x")


def containers(part: str) -> list[str]:
    """The names of the engine's containers that have `part` in them."""
    return engine("ps", "--all", "--filter", f"name={part}", "--format", "{{.Names}}")


def volumes(part: str) -> list[str]:
    """The names of the engine's volumes that have `part` in them."""
    return engine("volume", "ls", "--filter", f"name={part}", "--format", "{{.Name}}")


def engine(*args: str) -> list[str]:
    """The lines that Podman prints."""
    return subprocess.run(["podman", *args], capture_output=True, text=True, check=True).stdout.split()


def test_time_to_live_and_what_is_activity(fast: Catty, tmp_path: Path) -> None:
    names = ("typed", "printed", "executing", "computing", "idle")
    with ThreadPoolExecutor() as pool:
        ttl = f"{TTL_S}s"
        made = pool.map(lambda name: fast.new("--agent", "shell", "--no-upload", "--ttl", ttl, "--name", name), names)
        assert tuple(made) == names
    with contextlib.ExitStack() as stack:
        typed = stack.enter_context(fast.terminal("connect", "typed"))
        typed.wait_for("/workspace$")
        typed.send("stty -echo; clear; cat > /dev/null\r")  # so that nothing is printed for what is typed
        with fast.terminal("connect", "printed") as term:
            term.wait_for("/workspace$")
            term.send("clear; while sleep 5; do printf .; done\r")
            term.send("\r~.")
            assert term.wait_exit() == 130
        command = [fast.command, "exec", "executing", "--", "sleep", "1000"]
        executing = subprocess.Popen(command, env=fast.env, cwd=fast.project)
        stack.callback(executing.wait)
        stack.callback(executing.terminate)
        background(fast, "computing", 'while :; do timeout 0.05 sh -c "while :; do :; done"; sleep 0.1; done')
        # Silent, at far less than 5 % of a core: files change, which is no activity.
        background(fast, "idle", "while sleep 0.5; do date +%s.%N > /workspace/tick; done")

        viewer = stack.enter_context(fast.terminal("connect", "idle", "--view"))
        attached = stack.enter_context(fast.terminal("connect", "idle"))
        attached.wait_for("/workspace$")
        began = time.time()
        pump_while_typing(typed, attached, until="stopped in 5 min")
        assert b"\a" in attached.raw
        pump_while_typing(typed, attached, until="[session-ended]")
        assert attached.wait_exit() == 7
        viewer.wait_for("[session-ended]")
        assert b"stopped in 5 min" in viewer.raw

        idle = eventually(lambda: (now := fast.session("idle"))["state"] == "stopped" and now)
        assert (idle["reason"], idle["error"]) == ("ttl", None)
        assert b"stopped (ttl)" in fast.run("list")
        assert not containers(idle["machine_id"])
        assert not volumes(idle["machine_id"])
        lived = datetime.fromisoformat(idle["stopped_at"]).timestamp() - began
        assert lived > TTL_S / SPEED - 1
        assert {fast.session(name)["state"] for name in names[:-1]} == {"running"}

    # The last save is one of its own, made once the agent had ended: it holds what was written after the one before.
    fast.run("download", "idle", str(tmp_path / "out"))
    tick = float((tmp_path / "out" / "tick").read_text())
    *_, before, _ = sorted(snapshots(fast, "idle"), key=lambda snapshot: int(snapshot["number"]))
    assert datetime.fromisoformat(before["created_at"]).timestamp() < tick
    assert b"agent@" in fast.run("logs", "idle")  # its last output, kept after the machine


# ------------------------------------------------------------------------------------------ reconciliation


@pytest.fixture
def neighbour(catty_command: str, project: Path) -> Iterator[Catty]:
    """Another home with another server, on the same host and engine."""
    with a_home(catty_command) as root:
        yield Catty(catty_command, root, project)


def test_machines_and_records_that_lost_each_other(catty: Catty, neighbour: Catty, tmp_path: Path) -> None:
    database = catty.home / "server" / "catty.db"
    theirs = neighbour.new("--agent", "shell", "--no-upload")
    old = catty.new("--agent", "shell", "--no-upload")
    catty.run("server", "stop")
    shutil.copy(database, tmp_path / "backup.db")  # closed in order: there is no -wal beside it
    lost = catty.new("--agent", "shell")
    removed = catty.new("--agent", "shell")
    catty.exec(removed, "echo saved > by-hand.txt")
    catty.run("sync", removed, cwd=tmp_path)  # makes a save
    machines = {label: catty.session(label)["machine_id"] for label in (old, lost, removed)}
    their_machine = neighbour.session(theirs)["machine_id"]

    # A record without a machine: somebody removed it while the server was away.
    catty.run("server", "stop")
    engine("rm", "--force", "--time", "0", *containers(machines[removed]))
    catty.run("server", "start")
    ended = eventually(lambda: (now := catty.session(removed))["state"] == "stopped" and now)
    assert (ended["reason"], ended["error"]["code"]) == ("crashed", "machine-died")
    eventually(lambda: not volumes(machines[removed]))
    catty.run("download", removed, str(tmp_path / "removed"))
    assert (tmp_path / "removed" / "by-hand.txt").read_text() == "saved\n"
    assert catty.exec(lost, "cat README.md") == b"a project\n"

    # Machines without a record: the database is older than they are.
    catty.run("server", "stop")
    shutil.copy(tmp_path / "backup.db", database)
    catty.run("server", "start")
    eventually(lambda: not containers(machines[lost]) and not volumes(machines[lost]))
    assert [session["label"] for session in json.loads(catty.run("list", "--json", "--all"))] == [old]
    assert catty.exec(old, "echo alive") == b"alive\n"

    # No database at all: a new one, and still nothing is forgotten on the host.
    catty.run("server", "stop")
    database.unlink()
    catty.run("server", "start")
    eventually(lambda: not containers(machines[old]) and not volumes(machines[old]))
    assert catty.run("list", "--json", "--all") == b"[]\n"

    # All the while a server beside this one kept what is its own.
    assert containers(their_machine)
    assert neighbour.exec(theirs, "echo alive") == b"alive\n"
    assert neighbour.session(theirs)["state"] == "running"
