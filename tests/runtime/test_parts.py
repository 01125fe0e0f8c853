"""The small parts of init and listen."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty.runtime import boot, initproto, processes
from catty.runtime.agentfiles import merged, write_file
from catty.runtime.settings import Settings
from runtime.support import ControlClient, LocalMachine

CERTIFICATE = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


# ---------------------------------------------------------------------------------------------- messages


@given(
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=100_000), st.none())),
    st.integers(0, 3),
)
def test_messages_and_descriptors_arrive(message: dict[str, object], count: int) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other, open(os.devnull) as null:
        initproto.send(one, message, (null.fileno(),) * count)
        received = initproto.receive(other)
        assert received is not None
        assert received[0] == message
        assert len(received[1]) == count
        for fd in received[1]:
            assert not os.get_inheritable(fd)
            os.close(fd)
        one.close()
        assert initproto.receive(other) is None


# ---------------------------------------------------------------------------------------------- processes


def test_names_of_processes_may_hold_anything() -> None:
    line = "42 (a) b) 9 (x\n) S 7 42 40 0 -1 4194560 1 2 0 0 100 50 30 20 20 0 1 0 5 6 7"
    process = processes.parse(line)
    assert (process.pid, process.state, process.parent, process.session) == (42, "S", 7, 40)
    assert process.cpu == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))


def test_descendants_and_their_exceptions() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        pids = [process.pid for process in processes.descendants(os.getpid())]
        assert child.pid in pids
        assert len(list(processes.descendants(child.pid))) == 1
        assert child.pid not in [p.pid for p in processes.descendants(os.getpid(), without=[child.pid])]
        assert processes.members(processes.descendants(os.getpid()), {os.getsid(0)})
    finally:
        for process in processes.descendants(child.pid):
            os.kill(process.pid, 9)
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


# ---------------------------------------------------------------------------------------------- files of the agent


def test_merging() -> None:
    assert merged('{"a": {"b": 1, "c": 2}, "d": 3}', '{"a": {"c": 4}}') == json.dumps(
        {"a": {"b": 1, "c": 4}, "d": 3}, indent=2
    )
    assert merged('{"a": 1}', '{"a": 1}') is None
    for broken in ("", "not json", "[1]"):
        assert merged(broken, '{"a": 1}') == '{"a": 1}'


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../x", "", "a//b", "."])
def test_files_stay_in_the_home(tmp_path: Path, path: str) -> None:
    (tmp_path / "home/a").mkdir(parents=True)
    with pytest.raises(OSError, match=r"."):
        write_file(str(tmp_path / "home"), {"path": path, "content": "x"})
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("link", ["dir", "file", "dangling"])
def test_symlinks_are_not_followed(tmp_path: Path, link: str, *, merge: bool) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    (outside / "file").write_text("{}")
    target = {"dir": outside, "file": outside / "file", "dangling": outside / "nothing"}[link]
    (home / "x").symlink_to(target)
    with pytest.raises(OSError, match=r"."):
        write_file(str(home), {"path": "x/file" if link == "dir" else "x", "content": '{"a": 1}', "merge": merge})
    assert (outside / "file").read_text() == "{}"
    assert not (outside / "nothing").exists()


def test_modes_of_files(tmp_path: Path) -> None:
    write_file(str(tmp_path), {"path": ".claude/settings.json", "content": "{}", "mode": 0o640, "merge": True})
    assert (tmp_path / ".claude").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".claude/settings.json").stat().st_mode & 0o777 == 0o640


# ---------------------------------------------------------------------------------------------- boot


def test_new_certificates_join_the_bundle_once(tmp_path: Path) -> None:
    system, local, extra = tmp_path / "system.crt", tmp_path / "local/host.crt", tmp_path / "extra.crt"
    system.write_text("# a comment\n" + CERTIFICATE.format("AAAA\nBBBB") + CERTIFICATE.format("CCCC"))
    extra.write_text(
        CERTIFICATE.format("CCCC") + "junk" + CERTIFICATE.format("DD\r\nEE") + "-----BEGIN CERTIFICATE-----\ncut"
    )
    for _ in range(2):
        env = boot.trust(str(extra), str(system), str(local))
        assert system.read_text().count("BEGIN CERTIFICATE") == 3
    assert system.read_text().endswith(CERTIFICATE.format("DD\nEE"))
    assert local.read_text() == CERTIFICATE.format("DD\nEE")
    assert env["SSL_CERT_FILE"] == env["PIP_CERT"] == str(system)


def test_a_bundle_that_adds_nothing(tmp_path: Path) -> None:
    system, local = tmp_path / "system.crt", tmp_path / "host.crt"
    system.write_text(CERTIFICATE.format("AAAA"))
    env = boot.trust(str(system), str(system), str(local))
    assert not local.exists()
    assert "NODE_EXTRA_CA_CERTS" not in env
    assert boot.trust("", str(system), str(local)) == {}
    assert boot.trust(str(tmp_path / "missing"), str(system), str(local)) == {}


def test_settings() -> None:
    settings = Settings.from_environment({"CATTY_CLOSED": "10.0.0.0/8, ::1/128,", "CATTY_SALVAGE": "1"})
    assert settings.closed == ("10.0.0.0/8", "::1/128")
    assert settings.salvage
    assert (settings.workspace, settings.home, settings.agent_uid) == ("/workspace", "/home/agent", 1000)


# ---------------------------------------------------------------------------------------------- size and speed


async def test_the_runtime_is_small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proportional memory of the three processes when idle, after use: at most 45 MB; the endpoint answers soon."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # what measures them would be measured
    begun = time.monotonic()
    async with LocalMachine(("cat",)) as machine:
        control = ControlClient(await machine.connect("/control", token=""))
        await control.request("hello")
        assert time.monotonic() - begun < 2.0  # 0.15 s on an idle machine
        control.close()
        await machine.claim()
        await machine.start()
        client = await machine.attach()
        await client.type(b"hello\r")
        await client.until(b"hello\r\nhello")
        assert (await machine.exec("true"))[0] == 0
        assert machine.process is not None
        total = 0
        for pid in (machine.process.pid, await machine.pid_of("terminal"), await machine.pid_of("workspace")):
            rollup = await asyncio.to_thread(Path(f"/proc/{pid}/smaps_rollup").read_text)
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        assert total <= 45 * 1024


def test_what_init_imports() -> None:
    """PID 1 stands on the standard library alone, and not on its heavy parts."""
    script = (
        "import sys; before = set(sys.modules); import catty.runtime.init; print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in run.stdout.split()} - {"catty"}
    assert modules <= set(sys.stdlib_module_names)
    assert not modules & {"asyncio", "ctypes", "dataclasses", "inspect", "logging", "ssl", "subprocess", "threading"}
