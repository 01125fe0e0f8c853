"""kill -9 of the server, of a machine's processes and of whole machines, in every phase of a session, on real machines.

Lower levels are proven elsewhere (tests/server/test_faults.py, tests/runtime/test_crash.py, tests/engines/test_faults.py). Here a user
sits at the command line, and what counts is what they are left with: their session or a clear end of it, all files, nothing orphaned.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from e2e.catty import Catty, machine_tree, tree
from e2e.processes import (
    FULL_SCREEN,
    LABEL,
    PRINTER,
    PRINTER_PATH,
    Host,
    delete_twice,
    ends,
    grow,
    grow_machine,
    kill,
    make,
    podman,
    until,
)
from e2e.terminal import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]

STEPS = ("machine", "claim", "workspace", "start", "")


@pytest.fixture
def host(catty: Catty) -> Host:
    catty.run("server", "start")
    return Host(catty.home)


def reached(step: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a session's making has come to `step`; some are over within milliseconds."""
    return lambda session: STEPS.index(session["step"]) >= STEPS.index(step)


def uploaded(project: Path) -> set[str]:
    """What of `project` goes to a machine."""
    return {name for name in tree(project) if name.split("/")[0] not in ("ignored", "node_modules")}


def strike(host: Host, what: str, session: dict[str, Any]) -> None:
    """kill -9 of `what`: server, machine, terminal, workspace."""
    if what == "server":
        kill(host.server())
    elif what == "machine":
        kill(host.init(session))
    else:
        kill(host.runtime(session, what))


# ------------------------------------------------------------------------------------------------ while it is made


def test_server_killed_while_a_session_is_made(catty: Catty, host: Host, tmp_path: Path) -> None:
    for step in STEPS[:-1]:
        making = make(catty)
        host.until(LABEL, reached(step))
        kill(host.server())
        code, out, err = ends(making)
        assert code == 0, (step, err)
        assert json.loads(out)["state"] == "running"
        assert set(machine_tree(catty, LABEL, tmp_path / step)) == uploaded(catty.project)
        delete_twice(catty, host)


def test_server_killed_with_secrets_that_no_machine_has(catty: Catty, host: Host) -> None:
    making = make(catty, "--env", "SETTING=x")
    host.until(LABEL, reached("machine"))
    kill(host.server())
    code, _, err = ends(making)
    assert code == 6
    assert "[secrets-lost]" in err
    assert f"{LABEL} was removed" in err
    delete_twice(catty, host)


@pytest.mark.parametrize("what", ["terminal", "workspace", "machine"])
def test_machine_fault_while_its_files_are_put_in_place(catty: Catty, host: Host, what: str) -> None:
    """A part of the machine comes back and gets them again; a machine that is gone is said to be."""
    big = grow(catty.project)
    making = make(catty)
    session = host.until(LABEL, reached("workspace"))
    machine = host.init(session)
    victim = machine if what == "machine" else host.runtime(session, what)
    until(lambda: os.listdir(f"/proc/{machine}/root/workspace"))  # the files are being written
    kill(victim)
    code, _, err = ends(making)
    if what == "machine":
        assert code == 6
        assert "[machine-died]" in err
        assert f"{LABEL} was removed" in err
    else:
        assert code == 0, err
        assert catty.exec(LABEL, "sha256sum < big") == f"{big}  -\n".encode()
    delete_twice(catty, host)


def test_server_killed_during_an_upload(catty: Catty, host: Host) -> None:
    big = grow(catty.project)
    making = make(catty)
    until(lambda: host.store("packs/*"))
    kill(host.server())
    code, _, err = ends(making)
    assert code == 0, err
    assert catty.exec(LABEL, "sha256sum < big") == f"{big}  -\n".encode()
    delete_twice(catty, host)


# ------------------------------------------------------------------------------------------------ attach


def after(term: Terminal, lines: int) -> None:
    """Until the printer has printed that many more lines."""
    last = term.printed.rstrip(b"\r\n").rpartition(b"\n")[2]
    target = b"%08d\r\n" % ((int(last) if last.isdigit() else 0) + lines)
    deadline = time.monotonic() + 60
    while target not in term.raw:
        assert term.pump(0.05), term.screen_text
        assert time.monotonic() < deadline, (target, bytes(term.raw[-3000:]))


def while_shown(term: Terminal, work: Callable[[], object]) -> None:
    """Do `work` while what the terminal gets is read."""
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work)
        while not doing.done():
            assert term.pump(0.02)
        doing.result()


def test_an_attach_over_every_fault(catty: Catty, host: Host, tmp_path: Path) -> None:
    """Every byte printed and every key typed, once and in order, whatever is killed or restarted under it; then the machine dies."""
    session = json.loads(catty.run("new", "-d", "--json", "--agent", "shell", "--name", LABEL))
    catty.exec(LABEL, f"cat > {PRINTER_PATH}", PRINTER)
    keys = b""

    def type_some() -> None:
        nonlocal keys
        more = bytes(97 + (len(keys) + number) % 26 for number in range(20))
        for key in more:
            term.send(bytes([key]))
        keys += more

    with catty.terminal("connect", LABEL) as term:
        term.wait_for("$")
        term.send(f"python3 {PRINTER_PATH}\r")
        term.wait_for("0000")
        for what in ("server", "terminal", "workspace", "restart", "terminal", "server"):
            type_some()
            if what == "restart":
                while_shown(term, lambda: catty.run("server", "restart"))
            else:
                while_shown(term, functools.partial(strike, host, what, session))
            type_some()  # nobody is there to take them yet
            after(term, 200)
        term.send("!")
        term.wait_for("END")
        printed = term.printed.partition(b"BEGIN\r\n")[2].partition(b"END\r\n")[0]
        assert printed == b"".join(b"%08d\r\n" % number for number in range(printed.count(b"\n")))
        assert catty.exec(LABEL, "cat /tmp/keys") == keys

        catty.exec(LABEL, "echo 'the last words' > /workspace/last")
        term.send(FULL_SCREEN + "\r")
        term.wait_for("full screen")
        kill(host.init(session))
        assert term.wait_exit() == 7
        assert "[session-ended]" in term.screen_text
    term.check_fresh()
    session = host.until(LABEL, lambda now: now["state"] == "stopped")
    assert (session["reason"], session["error"]["code"]) == ("crashed", "machine-died")
    catty.run("download", LABEL, str(tmp_path / "out"))
    assert (tmp_path / "out" / "last").read_text() == "the last words\n"
    assert catty.call("connect", LABEL).returncode != 0
    assert catty.run("stop", LABEL) == catty.run("stop", LABEL) == f"{LABEL} stopped\n".encode()
    delete_twice(catty, host)


# ------------------------------------------------------------------------------------------------ saving, stopping


def test_faults_while_a_machine_is_saved(catty: Catty, host: Host, tmp_path: Path) -> None:
    """`download` saves first. A save that is cut off is made again, within the same command."""
    session = json.loads(catty.run("new", "-d", "--json", "--agent", "shell", "--name", LABEL))
    for what in ("server", "workspace", "terminal", "machine"):
        big = grow_machine(catty)
        before = host.store("packs/*")
        downloading = catty.start("download", LABEL, str(tmp_path / what))
        host.until_saving(before)
        strike(host, what, session)
        code, _, err = ends(downloading)
        assert (code, err) == (0, ""), what
        assert hashlib.sha256((tmp_path / what / "big").read_bytes()).hexdigest() == big
    assert catty.session(LABEL)["reason"] == "crashed"
    delete_twice(catty, host)


def test_faults_while_a_session_stops(catty: Catty, host: Host, tmp_path: Path) -> None:
    for what in ("server", "workspace", "terminal", "machine"):
        session = json.loads(catty.run("new", "-d", "--json", "--agent", "shell", "--name", LABEL))
        big = grow_machine(catty)
        before = host.store("packs/*")
        stopping = catty.start("stop", LABEL)
        host.until(LABEL, lambda now: now["state"] == "stopping")
        host.until_saving(before)
        strike(host, what, session)
        code, out, err = ends(stopping)
        assert (code, out) == (0, f"{LABEL} stopped\n".encode()), (what, err)
        session = catty.session(LABEL)
        assert (session["state"], session["reason"], session["error"]) == ("stopped", "user", None)
        catty.run("download", LABEL, str(tmp_path / what))
        assert hashlib.sha256((tmp_path / what / "big").read_bytes()).hexdigest() == big
        assert [name for name in host.remains() if "heads" not in name] == []
        delete_twice(catty, host)


@pytest.mark.parametrize("what", ["server", "helper"])
def test_fault_while_a_dead_machine_is_salvaged(catty: Catty, host: Host, what: str, tmp_path: Path) -> None:
    session = json.loads(catty.run("new", "-d", "--json", "--agent", "shell", "--name", LABEL))
    big = grow_machine(catty)
    before = host.store("packs/*")
    podman("kill", host.container(session))
    host.until_saving(before)
    if what == "server":
        kill(host.server())
    else:
        podman("kill", host.container(session) + "-salvage")
        # What cannot be saved is kept, and tried again: its user is told meanwhile.
        failed = host.until(LABEL, lambda now: now["state"] == "stopped")
        assert failed["error"]["code"] == "save-failed"
        host.until(LABEL, lambda now: now["error"] is None)
    catty.run("download", LABEL, str(tmp_path / "out"))  # awaits the end
    session = catty.session(LABEL)
    assert (session["state"], session["reason"]) == ("stopped", "crashed")
    assert [name for name in host.remains() if "heads" not in name] == []
    assert hashlib.sha256((tmp_path / "out" / "big").read_bytes()).hexdigest() == big
    delete_twice(catty, host)


def test_machine_and_server_die_together(catty: Catty, host: Host, tmp_path: Path) -> None:
    session = json.loads(catty.run("new", "-d", "--json", "--agent", "shell", "--name", LABEL))
    catty.exec(LABEL, "echo 'the last words' > last; sync last")
    kill(host.server())
    kill(host.init(session))
    catty.run("list")
    session = host.until(LABEL, lambda now: now["state"] == "stopped")
    assert (session["reason"], session["error"]["code"]) == ("crashed", "machine-died")
    assert b"stopped (crashed)" in catty.run("list")
    catty.run("download", LABEL, str(tmp_path / "out"))
    assert (tmp_path / "out" / "last").read_text() == "the last words\n"
    delete_twice(catty, host)
