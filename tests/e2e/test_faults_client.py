"""The client ended in every phase, by kill -9 and by signals that can be caught: the session's fate is clear, the terminal fresh."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Collection
from pathlib import Path

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
    processes_of,
    until,
)
from e2e.terminal import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


@pytest.fixture
def host(catty: Catty) -> Host:
    catty.env["PYTHONFAULTHANDLER"] = "1"  # a client that crashes shows where
    catty.run("server", "start")
    return Host(catty.home)


PHASES = ("machine", "upload", "workspace")


def come_to(host: Host, phase: str, before: Collection[Path] = ()) -> None:
    """Wait until a `new` with a large tree is that far: it asks for a machine, sends files, waits for the machine to have them.

    `before`: the packs that the store held before it.
    """
    if phase == "machine":
        host.until(LABEL, lambda session: session["step"] != "")
    elif phase == "upload":
        host.until_saving(before)
    else:
        until(lambda: host.store("sessions/*/heads/000001"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_new_that_is_interrupted_removes_its_session(catty: Catty, host: Host, number: signal.Signals) -> None:
    for phase in PHASES:
        grow(catty.project)
        before = host.store("packs/*")
        making = make(catty)
        come_to(host, phase, before)
        making.send_signal(number)
        code, out, err = ends(making)
        assert (code, out) == (128 + number, b""), phase
        assert f"note: {LABEL} was removed\n" in err
        host.until_nothing_remains()
        assert json.loads(catty.run("list", "--json", "--all")) == []
        assert list((catty.home / "sessions").iterdir()) == []


def test_new_whose_terminal_is_closed_removes_its_session(catty: Catty, host: Host) -> None:
    grow(catty.project)
    with catty.terminal("new", "--yes", "--agent", "shell", "--name", LABEL) as term:
        come_to(host, "upload")
        term.hang_up()
    host.until_nothing_remains()
    assert json.loads(catty.run("list", "--json", "--all")) == []


def test_new_left_by_ctrl_c_twice(catty: Catty, host: Host) -> None:
    """The second is impatience with the removal: what is said is what is so."""
    grow(catty.project)
    with catty.terminal("new", "--yes", "--agent", "shell", "--name", LABEL) as term:
        come_to(host, "upload")
        term.send("\x03")
        term.wait_for("removing", f"{LABEL} was removed")
        term.send("\x03")
        assert term.wait_exit() == 130, term.screen_text
    term.check_fresh()
    if f"{LABEL} was removed" in term.screen_text:
        host.until_nothing_remains()
    else:
        assert f"{LABEL} may be left behind" in term.screen_text
    delete_twice(catty, host)


def test_new_killed_before_its_files_were_there(catty: Catty, host: Host) -> None:
    for phase in PHASES[:2]:
        grow(catty.project)
        before = host.store("packs/*")
        making = make(catty)
        come_to(host, phase, before)
        kill(making.pid)
        ends(making)
        assert catty.session(LABEL)["state"] == "provisioning", phase  # it waits for them, for a while
        for _ in range(2):
            assert catty.run("stop", LABEL) == f"{LABEL} stopped\n".encode()
        session = catty.session(LABEL)
        assert (session["state"], session["reason"]) == ("stopped", "user")
        host.until_nothing_remains()
        delete_twice(catty, host)


def test_new_killed_when_its_files_were_there(catty: Catty, host: Host) -> None:
    """The session needs no client any more; the next one takes it over, sync-back too."""
    big = grow(catty.project)
    making = make(catty)
    come_to(host, "workspace")
    kill(making.pid)
    ends(making)
    with catty.terminal("connect", LABEL) as term:
        term.wait_for("$")
        term.send("sha256sum < big > sum\r")
        until(lambda: term.pump(0.05) and (catty.project / "sum").exists() and (catty.project / "sum").read_text())
        leave(term)
    term.check_fresh()
    assert (catty.project / "sum").read_text() == f"{big}  -\n"
    delete_twice(catty, host)


def leave(term: Terminal) -> None:
    term.send("\r~.")
    assert term.wait_exit() == 130, term.screen_text


def full_screen(catty: Catty, term: Terminal) -> None:
    """Run a program that uses all of the terminal, in the session that `term` is attached to."""
    term.wait_for("$")
    term.send(FULL_SCREEN + "\r")
    term.wait_for("full screen")


def test_client_killed_while_it_is_used(catty: Catty, host: Host, tmp_path: Path) -> None:
    """connect, exec, download, stop: the session goes on, or ends as was asked for."""
    session = catty.new("--agent", "shell", "--name", LABEL)
    assert session == LABEL
    catty.exec(LABEL, f"cat > {PRINTER_PATH}", PRINTER)
    typed = bytes(97 + number % 26 for number in range(200))
    with catty.terminal("connect", LABEL) as term:
        term.wait_for("$")
        term.send(f"python3 {PRINTER_PATH}\r")
        term.wait_for("0000")
        for key in typed:
            term.send(bytes([key]))
        kill(term.process.pid)
    with catty.terminal("connect", LABEL) as term:
        term.wait_for("0000")
        taken = catty.exec(LABEL, "cat /tmp/keys")
        assert typed.startswith(taken)
        term.send("more!")
        term.wait_for("END")
        assert catty.exec(LABEL, "cat /tmp/keys") == taken + b"more"
        numbers = [int(number) for number in re.findall(rb"(\d{8})\r\n", term.printed.partition(b"END")[0])]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        leave(term)
    term.check_fresh()

    running = catty.start("exec", LABEL, "--", "sleep", "98765")
    until(lambda: processes_of("sleep", "98765"))
    kill(running.pid)
    ends(running)
    until(lambda: not processes_of("sleep", "98765"))

    grow_machine(catty)
    downloading = catty.start("download", LABEL, str(tmp_path / "out"))
    until(lambda: list(tmp_path.glob(".out.*.catty-tmp/tree/big")))
    kill(downloading.pid)
    ends(downloading)
    assert not (tmp_path / "out").exists()
    catty.run("download", LABEL, str(tmp_path / "out"))
    assert list(tmp_path.glob(".out*")) == []

    big = grow_machine(catty)
    before = host.store("packs/*")
    stopping = catty.start("stop", LABEL)
    host.until(LABEL, lambda now: now["state"] == "stopping")
    host.until_saving(before)
    kill(stopping.pid)
    ends(stopping)
    ended = host.until(LABEL, lambda now: now["state"] == "stopped")
    assert (ended["reason"], ended["error"]) == ("user", None)
    catty.run("download", LABEL, str(tmp_path / "out"), "--force")
    assert hashlib.sha256((tmp_path / "out" / "big").read_bytes()).hexdigest() == big
    delete_twice(catty, host)


def test_terminal_is_fresh_however_an_attach_ends(catty: Catty, host: Host) -> None:
    begin = ("new", "--yes", "--agent", "shell", "--name", LABEL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        with catty.terminal(*(begin if number == signal.SIGINT else ("connect", LABEL))) as term:
            full_screen(catty, term)
            os.kill(term.process.pid, number)
            assert term.wait_exit() == 128 + number
        term.check_fresh()
        with catty.terminal("connect", LABEL) as term:  # the session went on, and its screen is shown again
            term.wait_for("full screen")
            term.send(b"\x03\x0c")
            term.wait_for("$")
            leave(term)
        term.check_fresh()
    with catty.terminal("connect", LABEL, "--no-auto-reconnect") as term:
        full_screen(catty, term)
        kill(host.server())
        assert term.wait_exit() == 7
        assert "[connection-lost]" in term.screen_text
    term.check_fresh()
    with catty.terminal("connect", LABEL) as term:
        term.wait_for("full screen")
        catty.run("stop", LABEL)
        assert term.wait_exit() != 0
    term.check_fresh()
    delete_twice(catty, host)


def test_sync_back_over_every_fault(catty: Catty, host: Host, tmp_path: Path) -> None:
    """What was cut off is gone on with: all files arrive, whole, and none twice or as a conflict."""
    catty.new("--agent", "shell", "--name", LABEL)
    session = catty.session(LABEL)

    def arrived(term: Terminal, count: int) -> None:
        until(lambda: term.pump(0.01) and len(list(catty.project.glob("d-*/*"))) >= count)

    for number, what in enumerate(("client", "server", "workspace", "terminal")):
        with catty.terminal("connect", LABEL) as term:
            term.wait_for("$")
            catty.exec(LABEL, f"mkdir d-{what}; for i in $(seq 300); do head -c 50000 /dev/urandom > d-{what}/$i; done")
            arrived(term, 300 * number + 1)
            if what == "client":
                kill(term.process.pid)
                continue
            kill(host.server() if what == "server" else host.runtime(session, what))
            arrived(term, 300 * (number + 1))
            leave(term)
    kept = {
        name: what for name, what in tree(catty.project).items() if not name.startswith(("ignored", "node_modules"))
    }
    assert kept == machine_tree(catty, LABEL, tmp_path / "machine")
    delete_twice(catty, host)
