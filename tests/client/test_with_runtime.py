"""The client and the real runtime: attach and exec, over kills of either side's processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pexpect
import pytest

from runtime.support import LocalMachine

HERE = Path(__file__).parent
ECHO = ["bash", "--norc", "--noprofile", "-c", 'stty -echo; echo ready; while read -r line; do echo "<$line>"; done']


@pytest.fixture
async def machine(request: pytest.FixtureRequest) -> AsyncIterator[LocalMachine]:
    argv = getattr(request, "param", ECHO)
    async with LocalMachine(argv) as made:
        await made.claim()
        await made.start()
        yield made


class User:
    """Somebody at a terminal."""

    def __init__(self, machine: LocalMachine, *options: str) -> None:
        argv = [str(HERE / "attach_main.py"), str(machine.endpoint / "terminal"), "path=/attach"]
        argv += [f"token={machine.claim_.token}", *options]
        environment = os.environ | {"TERM": "xterm-256color", "PYTHONWARNINGS": "error"}
        self.child = pexpect.spawn(sys.executable, argv, env=environment, dimensions=(24, 80), timeout=15)
        self.child.delaybeforesend = None
        self.before = termios.tcgetattr(self.child.child_fd)

    async def sees(self, pattern: str) -> bytes:
        await asyncio.to_thread(self.child.expect, re.escape(pattern.encode()))
        shown: bytes = self.child.before
        return shown

    def types(self, keys: bytes) -> None:
        self.child.send(keys)

    async def leaves(self) -> None:
        self.types(b"\r~.")
        assert await self.exit() == 130

    async def exit(self) -> int | None:
        await asyncio.to_thread(self.child.expect, pexpect.EOF)
        assert termios.tcgetattr(self.child.child_fd) == self.before
        await asyncio.to_thread(self.child.close)
        code: int | None = self.child.exitstatus
        return code


async def test_types_leaves_and_comes_back(machine: LocalMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    user.types(b"hello\r")
    await user.sees("<hello>")
    await user.leaves()
    again = User(machine)
    await again.sees("<hello>")
    again.types(b"world\r")
    await again.sees("<world>")
    await again.leaves()


async def test_a_killed_terminal_loses_and_doubles_nothing(machine: LocalMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    shown = b""
    for number in range(40):
        if number % 10 == 5:
            await machine.kill("terminal")
        user.types(b"line %d\r" % number)
        if number % 4 == 3:
            shown += await user.sees(f"<line {number}>") + b"<line %d>" % number
    lines = [int(line) for line in re.findall(rb"<line (\d+)>", shown)]
    assert lines == list(range(40))
    await user.leaves()


@pytest.mark.parametrize("machine", [["bash", "-c", "echo ready; read -r; exit 7"]], indirect=True)
async def test_the_agents_end_and_its_next_start(machine: LocalMachine) -> None:
    for _ in range(2):
        user = User(machine)
        await user.sees("ready")
        user.types(b"\r")
        assert await user.exit() == 7


@pytest.mark.parametrize(
    "machine", [["bash", "-c", "echo ready; read -r; seq 200000; echo done; read -r"]], indirect=True
)
async def test_much_output_over_a_kill(machine: LocalMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    user.types(b"\r")
    await user.sees("50000\r\n")
    await machine.kill("terminal")
    shown = await user.sees("200000\r\ndone")
    assert [int(n) for n in re.findall(rb"\d+", shown)] == list(range(50001, 200000))
    await user.leaves()


async def test_two_writers_and_a_viewer(machine: LocalMachine) -> None:
    one, two = User(machine), User(machine)
    await one.sees("ready")
    await two.sees("ready")
    one.types(b"from one\r")
    await two.sees("<from one>")
    two.types(b"from two\r")
    await one.sees("<from two>")
    await one.leaves()
    two.types(b"still here\r")
    await two.sees("<still here>")
    await two.leaves()


async def execute(machine: LocalMachine, *words: str, data: bytes = b"") -> tuple[int | None, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "execute_main.py"),
        str(machine.endpoint / "terminal"),
        *words,
        env=os.environ | {"EXEC_TOKEN": machine.claim_.token, "EXEC_PATH": "/exec"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(data), 60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo out; echo err >&2; exit 3", (3, b"out\n", b"err\n")),
        ("cat", (0, b"input", b"")),
        ("kill -9 $$", (137, b"", b"")),
    ],
)
async def test_exec(machine: LocalMachine, script: str, expected: tuple[int, bytes, bytes]) -> None:
    assert await execute(machine, "bash", "-c", script, data=b"input") == expected


async def test_exec_with_much_both_ways(machine: LocalMachine) -> None:
    data = os.urandom(12 << 20)
    code, out, err = await execute(machine, "cat", data=data)
    assert (code, err) == (0, b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


async def test_exec_of_what_is_not_there(machine: LocalMachine) -> None:
    code, out, err = await execute(machine, "no-such-command")
    assert code not in (0, None)
    assert out == b""
    assert b"no-such-command" in err


async def test_exec_in_a_terminal(machine: LocalMachine) -> None:
    words = [str(HERE / "execute_main.py"), str(machine.endpoint / "terminal"), "-t", "bash", "--norc", "-i"]
    environment = os.environ | {"EXEC_TOKEN": machine.claim_.token, "EXEC_PATH": "/exec"}
    child = pexpect.spawn(sys.executable, words, env=environment, dimensions=(24, 80), timeout=10)
    child.delaybeforesend = None
    child.send("stty size; echo $((6*7))\r")
    await asyncio.to_thread(child.expect, rb"24 80\r\n42\r\n")
    child.setwinsize(30, 100)
    await asyncio.to_thread(child.expect, "# |\\$ ")
    child.kill(signal.SIGWINCH)
    child.send("stty size; exit 5\r")
    await asyncio.to_thread(child.expect, rb"30 100")
    await asyncio.to_thread(child.expect, pexpect.EOF)
    await asyncio.to_thread(child.close)
    assert child.exitstatus == 5
