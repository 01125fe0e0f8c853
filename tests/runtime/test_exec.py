from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from catty.wire import frames
from catty.wire.attach import Exec
from catty.wire.frames import FrameType
from runtime.support import LocalMachine, eventually


@pytest.fixture
async def machine():
    async with LocalMachine(("cat",), env={"SECRET": "s3cret"}) as made:
        await made.claim()
        yield made


async def test_output_error_code(machine: LocalMachine) -> None:
    assert await machine.exec("sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


async def test_input_reaches_the_program_and_ends(machine: LocalMachine) -> None:
    data = os.urandom(3 << 20)
    code, out, _ = await machine.exec("cat", stdin=data)
    assert code == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


async def test_where_and_as_whom(machine: LocalMachine) -> None:
    script = "pwd; echo $HOME $SECRET $MORE; ps -o sid= -p $$ | tr -d ' '; echo $$"
    code, out, _ = await machine.exec("sh", "-c", script, env={"MORE": "more"})
    lines = out.decode().splitlines()
    assert code == 0
    assert lines[:2] == [str(machine.workspace), f"{machine.home} s3cret more"]
    assert lines[2] == lines[3]  # a session of its own
    assert (await machine.exec("pwd", cwd="/usr"))[1] == b"/usr\n"


async def test_only_its_own_descriptors(machine: LocalMachine) -> None:
    code, out, _ = await machine.exec("sh", "-c", "ls /proc/self/fd | tr '\\n' ' '")
    assert (code, out) == (0, b"0 1 2 3 ")  # 3 is the directory that ls reads


@pytest.mark.parametrize(
    ("argv", "cwd", "code", "said"),
    [
        (["no-such-program"], "", 127, b"catty: no-such-program: No such file or directory\n"),
        (["/etc"], "", 126, b"catty: /etc: Permission denied\n"),
        (["true"], "/no/such/place", 127, b"catty: /no/such/place: No such file or directory\n"),
    ],
)
async def test_what_cannot_be_run(machine: LocalMachine, argv: list[str], cwd: str, code: int, said: bytes) -> None:
    assert await machine.exec(*argv, cwd=cwd) == (code, b"", said)


async def test_a_terminal(machine: LocalMachine) -> None:
    program = await machine.program(
        "sh", "-c", "tty; stty size; stty -echo; read x; echo got $x", tty=True, cols=99, rows=31
    )
    await program.until(b"31 99\r\n")
    await program.feed(b"hello\r")
    code, out, err = await program.wait()
    assert code == 0
    assert out.startswith(b"/dev/pts/")
    assert b"got hello\r\n" in out
    assert err == b""


async def test_a_terminal_is_resized(machine: LocalMachine) -> None:
    program = await machine.program(
        "bash", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done", tty=True
    )
    await program.until(b"ready")
    program.wire.send(frames.pack_size(55, 44))
    await program.until(b"44 55")
    program.signal("KILL")
    assert (await program.wait())[0] == -9


async def test_end_of_input_on_a_terminal(machine: LocalMachine) -> None:
    code, out, _ = await machine.exec("cat", stdin=b"line\n", tty=True)
    assert (code, out) == (0, b"line\r\nline\r\n")


@pytest.mark.parametrize(("name", "number"), [("INT", 2), ("TERM", 15), ("HUP", 1), ("KILL", 9)])
async def test_signals(machine: LocalMachine, name: str, number: int) -> None:
    program = await machine.program("sh", "-c", "echo ready; exec sleep 60")
    await program.until(b"ready")
    program.signal(name)
    assert (await program.wait())[0] == -number


async def test_a_cut_connection_ends_the_program_and_its_children(machine: LocalMachine) -> None:
    program = await machine.program("sh", "-c", "trap '' HUP; (trap '' HUP; sleep 60; echo) & echo $$ $!; wait")
    await program.until(b"\n")
    pids = program.stdout.decode().split()
    program.wire.cut()
    await eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    status = await machine.control.request("status")  # type: ignore[union-attr]
    assert status["execs"] == 0


async def test_what_a_program_leaves_running_goes_on(machine: LocalMachine) -> None:
    code, out, _ = await machine.exec("sh", "-c", "sleep 30 & echo $!")
    assert code == 0
    os.kill(int(out), 0)
    os.kill(int(out), 9)


async def test_output_waits_for_a_client_that_does_not_read(machine: LocalMachine) -> None:
    program = await machine.program("sh", "-c", "head -c 50000000 /dev/zero; echo done > finished")
    await program.until(b"\0")
    program.wire.hold(held=True)
    await asyncio.sleep(0.5)  # long enough to print it all, were it not held back
    assert not (machine.workspace / "finished").exists()
    program.wire.hold(held=False)
    code, out, _ = await program.wait()
    assert (code, len(out)) == (0, 50_000_000)


async def test_input_waits_for_a_program_that_does_not_read(machine: LocalMachine) -> None:
    program = await machine.program("sh", "-c", "echo ready; read x < go; cat | wc -c")
    os.mkfifo(machine.workspace / "go")
    await program.until(b"ready")
    await program.feed(bytes(8 << 20), end=True)
    with open(f"/proc/{await machine.pid_of('terminal')}/statm") as file:
        assert int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") < 45 << 20
    await asyncio.to_thread((machine.workspace / "go").write_text, "\n")
    code, out, _ = await program.wait()
    assert (code, out) == (0, b"ready\n8388608\n")


async def test_a_client_that_goes_while_it_has_to_wait(machine: LocalMachine) -> None:
    program = await machine.program("sh", "-c", "echo $$; sleep 60; cat")
    await program.until(b"\n")
    await program.feed(bytes(8 << 20))
    await program.until(b"\n")
    program.wire.cut()
    await eventually(lambda: not os.path.exists(f"/proc/{int(program.stdout)}"))


async def test_input_for_a_program_that_has_closed_it(machine: LocalMachine) -> None:
    code, out, _ = await machine.exec("sh", "-c", "exec <&-; sleep 0.1; echo fine", stdin=bytes(1 << 20))
    assert (code, out) == (0, b"fine\n")


@pytest.mark.parametrize(
    "message",
    [
        frames.pack(FrameType.IN, 5, b"x"),
        frames.pack(FrameType.OUT, 0, b"x"),
        frames.pack_json(FrameType.SIGNAL, 0, {"signal": "STOP"}),
        b"\x02",
        "text",
    ],
)
async def test_nonsense_ends_the_connection_and_the_program(machine: LocalMachine, message: bytes | str) -> None:
    program = await machine.program("sh", "-c", "echo $$; exec sleep 60")
    await program.until(b"\n")
    program.wire.send(message)
    assert (await program.wire.closed)[0] == 1002
    await eventually(lambda: not os.path.exists(f"/proc/{int(program.stdout)}"))


@pytest.mark.parametrize(
    "start", [{}, {"argv": []}, {"argv": "ls"}, {"argv": ["ls"], "user": "nobody"}, {"argv": ["\0"]}]
)
async def test_nonsense_at_the_start(machine: LocalMachine, start: dict[str, object]) -> None:
    wire = await machine.connect("/exec")
    wire.send(frames.pack_json(FrameType.START, 0, start))
    if start == {"argv": ["\0"]}:
        message = await wire.receive()
        assert isinstance(message, bytes)
        assert b"embedded null" in bytes(frames.unpack(message).payload)
        return
    assert (await wire.closed)[0] == 1002


async def test_forty_at_once(machine: LocalMachine) -> None:
    results = await asyncio.gather(*(machine.exec("sh", "-c", f"echo {n}; exit {n}") for n in range(40)))
    assert results == [(n, b"%d\n" % n, b"") for n in range(40)]
    assert Exec(("x",)).user == "agent"
