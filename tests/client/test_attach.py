"""The attach client in a real terminal, against a machine that can be cut, held and replaced."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from client.pty_machine import PtyMachine

MAIN = Path(__file__).parent / "attach_main.py"
SHELL = ["bash", "--norc", "--noprofile", "-c", 'stty -echo; echo ready; while read -r line; do echo "<$line>"; done']
FULL_SCREEN = [
    "bash",
    "-c",
    r"stty raw -echo; printf '\e[?1049h\e[?2004h\e[?1003h\e[?1006h\e[?25l\e[>5ufull'; exec cat -v",
]


class User:
    """Somebody at a terminal, from the test's loop."""

    def __init__(self, machine: PtyMachine, *options: str, through_shell: bool = False) -> None:
        argv = [str(MAIN), str(machine.path), *options]
        environment = os.environ | {"TERM": "xterm-256color", "PYTHONWARNINGS": "error"}
        words = ["bash", "--norc", "-i"] if through_shell else [sys.executable, *argv]
        self.child = pexpect.spawn(words[0], words[1:], env=environment, dimensions=(24, 80), timeout=10)
        self.child.delaybeforesend = None
        if through_shell:
            self.child.send(" ".join([sys.executable, *argv]) + "\r")
        self.before = termios.tcgetattr(self.child.child_fd)

    async def sees(self, *patterns: str | bytes | type) -> int:
        wanted = [re.escape(p.encode()) if isinstance(p, str) else p for p in patterns]
        return await asyncio.to_thread(self.child.expect, wanted)

    async def exit(self) -> int:
        await asyncio.to_thread(self.child.expect, pexpect.EOF)
        assert termios.tcgetattr(self.child.child_fd) == self.before, "stty before = after"
        await asyncio.to_thread(self.child.close)
        return self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus

    def types(self, keys: bytes) -> None:
        self.child.send(keys)


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    made: list[PtyMachine] = []

    async def make(argv: list[str] = SHELL, **options: Any) -> PtyMachine:
        machine = PtyMachine(tmp_path / "api.sock", argv, **options)
        made.append(machine)
        await machine.listen()
        return machine

    yield make
    for machine in made:
        await machine.close()


@pytest.fixture
async def machine(machines: Callable[..., Any]) -> PtyMachine:
    made: PtyMachine = await machines()
    return made


async def test_types_sees_and_leaves(machine: PtyMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    user.types(b"hello\r")
    await user.sees("<hello>")
    await machine.until(lambda: machine.acknowledged == len(machine.output))
    user.types(b"~.")
    assert await user.exit() == 130
    assert bytes(machine.keys) == b"hello\r"
    assert machine.process.poll() is None


async def test_ctrl_c_twice_leaves_with_one_forwarded(machines: Callable[..., Any]) -> None:
    machine = await machines(["bash", "-c", "stty raw -echo; echo ready; exec cat -v"])
    user = User(machine)
    await user.sees("ready")
    user.types(b"\x03")
    await user.sees("^C")
    user.types(b"\x03")
    assert await user.exit() == 130
    assert bytes(machine.keys) == b"\x03"


async def test_the_agents_exit_code_is_ours(machines: Callable[..., Any]) -> None:
    machine = await machines(["bash", "-c", "echo ready; read; exit 7"])
    user = User(machine)
    await user.sees("ready")
    user.types(b"\r")
    await user.sees("claude exited (7)")
    assert await user.exit() == 7


async def test_cuts_lose_nothing_and_double_nothing(machine: PtyMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    for number in range(30):
        user.types(b"line %d\r" % number)
        if number % 3 == 0:
            machine.cut()
        await user.sees(f"<line {number}>\r\n")
    assert bytes(machine.keys) == b"".join(b"line %d\r" % number for number in range(30))
    machine.cut()
    os.write(machine.master, b"from elsewhere\n")  # printed while nobody is connected
    await user.sees("<from elsewhere>")
    user.types(b"\r~.")
    assert await user.exit() == 130


async def test_offline_keys_are_kept_shown_and_delivered(machine: PtyMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    machine.deaf()
    machine.cut()
    user.types(b"while offline\r")
    await user.sees(re.compile(rb"reconnecting, \d+ s, 14 keys kept; ~\. to leave"))
    assert bytes(machine.keys) == b""
    await machine.listen()
    await user.sees("<while offline>")
    await machine.until(lambda: (80, 23) in machine.sizes)  # a real change of size, then the real size
    await machine.until(lambda: machine.sizes[-1] == (80, 24))
    user.types(b"~.")
    assert await user.exit() == 130
    assert bytes(machine.keys) == b"while offline\r"


async def test_leaves_while_offline(machine: PtyMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    machine.deaf()
    machine.cut()
    await user.sees("reconnecting")
    user.types(b"\r~.")
    assert await user.exit() == 130


async def test_a_machine_made_again_gives_a_new_screen(machine: PtyMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    machine.made_again()
    machine.output += b"the new one"
    await user.sees("\x1b[H\x1b[2Jthe new one")
    user.types(b"x\r")
    await machine.until(lambda: bytes(machine.keys) == b"x\r")
    user.types(b"~.")
    assert await user.exit() == 130


@pytest.mark.parametrize("how", [b"~.", signal.SIGTERM, signal.SIGHUP, signal.SIGINT, "exit", "refused"])
async def test_every_mode_of_the_terminal_is_restored(machines: Callable[..., Any], how: Any) -> None:
    machine = await machines(FULL_SCREEN)
    user = User(machine)
    await user.sees("full")
    if isinstance(how, bytes):
        user.types(b"\r" + how)
    elif isinstance(how, signal.Signals):
        user.child.kill(how)
    elif how == "exit":
        machine.process.kill()
    else:
        machine.refusal = (409, b'{"error":"session-not-running","message":"session x is stopped (ttl)","hint":""}')
        machine.cut()
    await user.sees(pexpect.EOF)
    undone = user.child.before
    for mode in (b"?2004l", b"?1003l", b"?1006l", b"?25h", b"?1049l", b"<1u"):
        assert b"\x1b[" + mode in undone
    code = await user.exit()
    expected = {b"~.": 130, "exit": 137, "refused": 7, signal.SIGINT: 130}
    assert code == expected.get(how, 128 + how if isinstance(how, signal.Signals) else None)
    if how == "refused":
        assert b"the session has ended: session x is stopped (ttl) [session-ended]" in undone


async def test_a_refusal_at_first_is_the_servers_error(machine: PtyMachine) -> None:
    machine.refusal = (404, b'{"error":"session-not-found","message":"no session","hint":"","exit_code":4}')
    user = User(machine)
    await user.sees("[session-not-found]")
    assert await user.exit() == 4


async def test_nobody_there_at_first(machine: PtyMachine) -> None:
    machine.deaf()
    user = User(machine, "give_up=0.5")
    await user.sees("[server-unreachable]")
    assert await user.exit() == 7


async def test_no_auto_reconnect(machine: PtyMachine) -> None:
    user = User(machine, "once")
    await user.sees("ready")
    machine.cut()
    await user.sees("[connection-lost]")
    assert await user.exit() == 7
    assert machine.accepted == 1


async def test_a_viewer_types_nothing_and_leaves_with_one_ctrl_c(machine: PtyMachine) -> None:
    user = User(machine, "view")
    await user.sees("ready")
    user.types(b"hello\r")
    os.write(machine.master, b"from the writer\n")
    await user.sees("<from the writer>")
    user.types(b"\x03")
    assert await user.exit() == 130
    assert bytes(machine.keys) == b""


async def test_the_window_size_is_told(machine: PtyMachine) -> None:
    user = User(machine)
    await user.sees("ready")
    assert machine.sizes[0] == (80, 24)
    user.child.setwinsize(30, 100)
    await machine.until(lambda: machine.sizes[-1] == (100, 30))
    user.types(b"\r~.")
    assert await user.exit() == 130


async def test_help_and_detach_keys(machine: PtyMachine) -> None:
    user = User(machine, "detach=ctrl-p,ctrl-q")
    await user.sees("ready")
    user.types(b"\r~?")
    await user.sees("~^Z suspend")
    user.types(b"\x10\x11")
    assert await user.exit() == 130
    assert bytes(machine.keys) == b"\r"


async def test_suspend_and_come_back(machines: Callable[..., Any]) -> None:
    machine = await machines(FULL_SCREEN)
    shell = User(machine, through_shell=True)  # without a shell to come back to, the kernel does not stop a process
    await shell.sees("full")
    shell.types(b"\r~\x1a")
    await shell.sees("\x1b[?1049l")
    await shell.sees("Stopped")
    shell.types(b"stty -a | grep -o ' icanon'; echo st''ty\r")
    await shell.sees(" icanon\r\nstty")
    shell.types(b"fg\r")
    await shell.sees("\x1b[?1049h")
    shell.types(b"again")
    await shell.sees("again")
    shell.types(b"\r~.")
    await shell.sees("outcome: disconnected")
    shell.types(b"echo code $?; exit\r")
    await shell.sees("code 130")


async def test_much_output_into_a_slow_terminal(machines: Callable[..., Any]) -> None:
    machine = await machines(["bash", "-c", "echo ready; read; seq 300000; echo done; read"])
    user = User(machine)
    await user.sees("ready")
    user.types(b"\r")
    await machine.until(lambda: machine.output.endswith(b"done\r\n"), timeout=60)
    await asyncio.to_thread(user.child.expect, rb"300000\r\ndone", 60)
    shown = re.findall(rb"\d+", user.child.before + b"300000")
    assert shown == [b"%d" % number for number in range(1, 300001)]
    user.types(b"~.")
    assert await user.exit() == 130
