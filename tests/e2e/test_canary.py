"""Two secrets go through everything that sessions do; then they are searched for in everything that Catty writes or causes.

A word that may be found is planted in each of the places that are searched, so a search that finds nothing has looked.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import secrets
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from e2e import search
from e2e.catty import Catty
from e2e.terminal import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


@dataclass
class Words:
    """`stored`: given by `secrets set`; `passed`: by `--env`. `planted` is no secret, and to be found."""

    stored: str
    passed: str
    planted: str


@pytest.fixture
def words() -> Words:
    return Words(*(f"{name}{secrets.token_hex(12)}" for name in ("stored", "passed", "planted")))


@pytest.fixture
def catty(catty_command: str, catty_home: Path, project: Path, tmp_path: Path) -> Catty:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return Catty(catty_command, catty_home, project, CATTY_DEBUG="1", TMPDIR=str(temporary))


def podman(*args: str) -> bytes:
    return subprocess.run(["podman", *args], capture_output=True, check=True).stdout


def at_rest(catty: Catty, began: float) -> dict[str, search.Blobs]:
    """The places that are there whether a machine runs or not."""
    server = catty.home / "server"
    others = (path for path in catty.home.iterdir() if path.name not in ("env", "server", "debug.log"))
    return {
        "database": search.files(*server.glob("catty.db*")),
        "store": search.store(server / "store"),
        "store, as it is": search.files(server / "store"),
        "server's log": search.files(*server.glob("server.log*"), server / "stderr.log"),
        "debug log": search.files(catty.home / "debug.log"),
        "terminals' logs": search.files(server / "logs"),
        "client's files": search.files(*others),
        "server's files": search.files(server),
        "temporary files": search.files(
            Path(catty.env["TMPDIR"]), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), since=began
        ),
        "command lines": search.processes("cmdline"),
        "environments": search.processes("environ"),
    }


def of_machine(machine: str) -> dict[str, search.Blobs]:
    """The places that a machine brings with it."""
    name = podman("ps", "--all", "--filter", f"name={machine}", "--format", "{{.Names}}").decode().strip()
    inspected: dict[str, Any] = json.loads(podman("inspect", name))[0]
    volumes = podman("volume", "ls", "--quiet", "--filter", f"name={machine}").decode().split()
    known: list[dict[str, Any]] = json.loads(podman("volume", "inspect", *volumes))
    info: dict[str, Any] = json.loads(podman("info", "--format", "json"))["store"]
    roots = [Path(info[root]) for root in ("graphRoot", "runRoot")]
    pid = int(inspected["State"]["Pid"])
    runtime = {
        where
        for where, line in search.processes("cmdline", inside=pid)
        if b"/opt/catty" in line or where.endswith(f"/{pid}")
    }
    assert len(runtime) >= 3, "init, terminal and workspace"
    return {
        "inspect": [(name, json.dumps(inspected).encode())],
        "inspect of volumes": [(str(volumes), json.dumps(known).encode())],
        "engine's files": search.files(
            *(root / "overlay-containers" / inspected["Id"] for root in roots), roots[0] / "libpod", Path("/run/libpod")
        ),
        "volumes": search.files(*(Path(volume["Mountpoint"]) for volume in known)),
        "writable layer": search.files(Path(inspected["GraphDriver"]["Data"]["UpperDir"])),
        "machine's command lines": search.processes("cmdline", inside=pid),
        "environments of the runtime": (
            (where, data) for where, data in search.processes("environ", inside=pid) if where in runtime
        ),
    }


def check(places: dict[str, search.Blobs], words: Words, machine: str = "") -> None:
    """The planted word is found in every place, the secrets in none."""
    planted, hidden = search.spellings(words.planted.encode()), search.spellings(words.stored.encode())
    hidden |= search.spellings(words.passed.encode())
    seen, leaks = set(), []
    for place, blobs in places.items():
        # The runtime's environment is the engine's: of all that is known here it holds the machine's name alone.
        known = {machine.encode()} if place == "environments of the runtime" else planted
        for where, data in blobs:
            for layer in search.layers(data):
                if search.holds(layer, known):
                    seen.add(place)
                if search.holds(layer, hidden):
                    leaks.append((place, where))
    assert leaks == []
    assert set(places) - seen == set(), "nothing was planted there, or nothing was searched"


@pytest.mark.parametrize(
    "hide",
    [
        bytes,
        lambda word: word.hex().encode(),
        lambda word: b"x" + base64.b64encode(b"y" + word + b"zz"),
        lambda word: base64.b64encode(b"yy" + word),
        lambda word: base64.b64encode(word + b"z"),
        lambda word: b"head" + zlib.compress(b"before" + word),
        gzip.compress,
        lambda word: b"head" + zstandard.compress(b"a" * 1000 + word) + b"tail",
        lambda word: zstandard.compress(zlib.compress(word.hex().encode())),
    ],
)
def test_the_search_finds(hide: Callable[[bytes], bytes]) -> None:
    word, other = secrets.token_hex(16).encode(), secrets.token_hex(16).encode()
    found = list(search.layers(hide(word)))
    assert any(search.holds(layer, search.spellings(word)) for layer in found)
    assert not any(search.holds(layer, search.spellings(other)) for layer in found)


def test_secrets_are_written_nowhere(catty: Catty, project: Path, words: Words) -> None:
    began = time.time()
    planted = words.planted
    (project / "planted.txt").write_text(planted)
    catty.run("secrets", "set", "STORED", "-", stdin=f"{words.stored}\n".encode())
    # Given to the one process that is asked to take it from its environment, and that has ended when the search begins.
    giving = catty.given(PASSED=words.passed)
    label = giving.new("--agent", "shell", "--env", "PASSED", "--name", planted)
    machine = catty.session(label)["machine_id"]
    digests = catty.exec(label, "for v in $STORED $PASSED; do printf %s $v | sha256sum; done").decode().split()[::2]
    assert digests == [hashlib.sha256(word.encode()).hexdigest() for word in (words.stored, words.passed)]

    with contextlib.ExitStack() as stack:
        term: Terminal = stack.enter_context(catty.given(SEEN=planted).terminal("connect", label))
        term.wait_for("/workspace$")
        term.send(f"clear; test -n $STORED && echo {planted} | tee /tmp/layer\r")
        term.wait_for(f"{planted}\nagent@")
        line = [catty.command, "exec", label, "--", "sh", "-c", f"echo {planted}; sleep 1000"]
        running = stack.enter_context(subprocess.Popen(line, env=catty.env, cwd=project, stdout=subprocess.PIPE))
        stack.callback(running.terminate)
        assert running.stdout is not None
        assert running.stdout.readline() == f"{planted}\n".encode()
        catty.run("download", label, str(project.parent / "download"))  # makes a save
        (Path(catty.env["TMPDIR"]) / "planted").write_text(planted)
        live = at_rest(catty, began)
        del live["terminals' logs"]  # written later
        check(live | of_machine(machine), words, machine)
        catty.run("server", "restart")
        assert catty.exec(label, "printf %s $STORED | wc -c").split() == [str(len(words.stored)).encode()]
        podman("kill", *podman("ps", "--filter", f"name={machine}", "--format", "{{.Names}}").decode().split())
        term.wait_for("[session-ended]", timeout=60)

    # Stopped in order, and one that never came to be.
    stopped = giving.new("--agent", "shell", "--env", "PASSED")
    with catty.terminal("connect", stopped) as term:
        term.wait_for("/workspace$")
        term.send(f"clear; echo {planted}\r")
        term.wait_for(f"{planted}\nagent@")
        term.send("\r~.")
        term.wait_exit()
    catty.run("stop", stopped)
    catty.run("server", "stop")
    catty.given(CATTY_SERVER_IMAGE="localhost/catty-none:1").run("server", "start")
    failed = giving.call("new", "-d", "--agent", "shell", "--env", "PASSED")
    assert failed.returncode == 6, failed.stderr
    assert b"[image-missing]" in failed.stderr
    assert not any(word.encode() in failed.stderr + failed.stdout for word in (words.stored, words.passed))

    waiting = subprocess.Popen(["sleep", "1000"], env={"SEEN": planted}, executable="/bin/sleep")
    naming = subprocess.Popen([f"sleep {planted}", "1000"], executable="/bin/sleep")
    try:
        check(at_rest(catty, began), words)
    finally:
        for process in (waiting, naming):
            process.kill()
            process.wait()
    reasons = {session["label"]: session["reason"] for session in json.loads(catty.run("list", "--json"))}
    assert (reasons[label], reasons[stopped]) == ("crashed", "user")
