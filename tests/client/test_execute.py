"""exec: streams, exit codes, signals, a terminal; against a real process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pexpect
import pytest

from client.exec_machine import ExecMachine

MAIN = Path(__file__).parent / "execute_main.py"


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[ExecMachine]:
    made = ExecMachine(tmp_path / "api.sock")
    await made.listen()
    yield made
    await made.close()


async def start(machine: ExecMachine, *words: str, stdin: int = PIPE, stdout: int = PIPE) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(MAIN), str(machine.path), *words, stdin=stdin, stdout=stdout, stderr=PIPE
    )


async def finish(process: Process, data: bytes = b"") -> tuple[int, bytes, bytes]:
    out, err = await asyncio.wait_for(process.communicate(data if process.stdin else None), 30)
    return process.returncode or 0, out, err


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo out; echo err >&2; exit 3", (3, b"out\n", b"err\n")),
        ("true", (0, b"", b"")),
        ("kill -9 $$", (137, b"", b"")),
        ("cat; cat >&2 <<< done", (0, b"input", b"done\n")),
    ],
)
async def test_output_and_exit_code(machine: ExecMachine, script: str, expected: tuple[int, bytes, bytes]) -> None:
    assert await finish(await start(machine, "bash", "-c", script), b"input") == expected


async def test_much_both_ways(machine: ExecMachine) -> None:
    data = os.urandom(20 << 20)
    code, out, err = await finish(await start(machine, "cat"), data)
    assert (code, err) == (0, b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


async def test_a_file_as_input_and_a_command_that_does_not_read_it(machine: ExecMachine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    with (tmp_path / "file").open("rb") as file:
        assert (await finish(await start(machine, "cat", stdin=file.fileno())))[1] == b"from a file"
    read, write = os.pipe()  # an input that never ends
    assert (await finish(await start(machine, "true", stdin=read)))[0] == 0
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 42), (signal.SIGTERM, 43)])
async def test_signals_go_to_the_command(machine: ExecMachine, number: signal.Signals, code: int) -> None:
    script = "trap 'exit 42' INT; trap 'exit 43' TERM; echo ready; while :; do sleep 0.01; done"
    process = await start(machine, "bash", "-c", script)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 10) == code


async def test_a_command_that_ignores_ctrl_c_is_left_after_three(machine: ExecMachine) -> None:
    process = await start(machine, "bash", "-c", "trap '' INT; echo ready; exec sleep 60")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(machine.runs[0].signals.get(), 10) == "INT"
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 10) == 130
    await asyncio.wait_for(machine.runs[0].over.wait(), 10)  # and ended in the machine


async def test_a_command_that_ignores_term_keeps_the_client_for_seconds(machine: ExecMachine) -> None:
    process = await start(machine, "bash", "-c", "trap '' TERM; echo ready; exec sleep 60")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert await machine.runs[0].signals.get() == "TERM"
    assert await asyncio.wait_for(process.wait(), 30) == 143
    await asyncio.wait_for(machine.runs[0].over.wait(), 10)


async def test_a_lost_connection_is_an_error(machine: ExecMachine) -> None:
    process = await start(machine, "sleep", "60")
    while not machine.runs:
        await asyncio.sleep(0.01)
    await machine.runs[0].started.wait()
    machine.runs[0].transport.disconnect(graceful=False)
    code, _, err = await finish(process)
    assert code == 7
    assert b"[connection-lost]" in err


async def test_a_reader_that_goes_away_ends_the_command(machine: ExecMachine) -> None:
    read, write = os.pipe()
    process = await start(machine, "yes", stdout=write)
    os.close(write)
    await asyncio.to_thread(os.read, read, 10)
    os.close(read)
    code, _, err = await finish(process)
    assert (code, err) == (141, b"")
    await asyncio.wait_for(machine.runs[0].over.wait(), 10)


async def test_with_a_terminal(machine: ExecMachine) -> None:
    words = [str(MAIN), str(machine.path), "-t", "bash", "--norc", "-i"]
    child = pexpect.spawn(sys.executable, words, dimensions=(24, 80), timeout=10)
    child.delaybeforesend = None
    before = termios.tcgetattr(child.child_fd)
    child.send("echo $((6*7)); tty\r")
    await asyncio.to_thread(child.expect, rb"[\r\n]42\r\n/dev/pts/")
    child.send("sh -c 'echo sleeping; exec sleep 60'\r")  # it is in the foreground when it says so
    await asyncio.to_thread(child.expect, rb"[\r\n]sleeping\r\n")
    child.send("\x03")
    await asyncio.to_thread(child.expect, rb"\^C.*# ")
    child.send("echo after\r")
    await asyncio.to_thread(child.expect, rb"[\r\n]after\r\n")
    child.setwinsize(30, 100)
    while not machine.runs[0].sizes:
        await asyncio.sleep(0.01)
    assert machine.runs[0].sizes == [(100, 30)]
    child.send("exit 5\r")
    await asyncio.to_thread(child.expect, pexpect.EOF)
    assert termios.tcgetattr(child.child_fd) == before
    await asyncio.to_thread(child.close)
    assert child.exitstatus == 5


async def test_leaving_a_terminal(machine: ExecMachine) -> None:
    words = [str(MAIN), str(machine.path), "-t", "sleep", "60"]
    child = pexpect.spawn(sys.executable, words, dimensions=(24, 80), timeout=10)
    child.delaybeforesend = None
    while not machine.runs:
        await asyncio.sleep(0.01)
    await machine.runs[0].started.wait()
    child.send("\r~.")
    await asyncio.to_thread(child.expect, pexpect.EOF)
    await asyncio.to_thread(child.close)
    assert child.exitstatus == 130
    await asyncio.wait_for(machine.runs[0].over.wait(), 10)


async def test_without_a_terminal_there_is_no_terminal(machine: ExecMachine) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(MAIN), str(machine.path), "-t", "true"], capture_output=True, check=False
    )
    assert b"NotATerminal" in done.stderr
