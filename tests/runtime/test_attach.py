from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from catty import constants
from catty.wire import frames
from catty.wire.claim import AgentLaunch
from catty.wire.frames import FrameType
from runtime.support import AttachClient, LocalMachine, eventually

SHELL = ("bash", "--norc", "--noprofile")


@asynccontextmanager
async def running(argv: Sequence[str] = SHELL, **more: object) -> AsyncIterator[LocalMachine]:
    """A machine whose agent runs."""
    async with LocalMachine(argv, **more) as machine:  # type: ignore[arg-type]
        await machine.claim()
        await machine.start()
        yield machine


def program(script: str) -> tuple[str, ...]:
    return ("python3", "-c", script)


async def again(machine: LocalMachine, client: AttachClient, **more: object) -> AttachClient:
    """The same client on a new connection."""
    assert client.resumed is not None
    seen = {"epoch": client.resumed.epoch, "output": client.position, "input": client.sent}
    return await machine.attach(client=client.resume.client, **seen | more)


async def test_keys_go_in_and_output_comes_back() -> None:
    async with running() as machine:
        client = await machine.attach()
        await client.type(b"echo $((6*7))\r")
        await client.until(b"\r42\r\n")
        await client.until(lambda: client.taken == client.sent)


async def test_the_first_client_sees_the_agent_from_its_first_byte() -> None:
    async with running(program("import time; print('\\x1b[>q first'); time.sleep(99)")) as machine:
        client = await machine.attach()
        await client.until(b"\x1b[>q first")
        assert client.resumed is not None
        assert (client.resumed.exact, client.resumed.output) == (True, 0)
        other = await machine.attach()
        await other.until(b"first")
        assert other.resumed is not None
        assert not other.resumed.exact
        assert b"\x1b[>q" not in other.snapshots[0]  # a question is asked once


async def test_the_environment_of_the_agent() -> None:
    launch = AgentLaunch(name="t", start=("sh", "-c", "env; pwd; tty; ulimit -c; exec cat"), env={"SETTING": "one"})
    async with running(launch=launch, env={"SECRET": "two"}) as machine:
        output = (await (await machine.attach()).until(lambda: True)).decode()
        client = await machine.attach()
        await client.until(b"/dev/pts/")
        output = (client.snapshots[0] + client.output).decode()
        for line in ("SETTING=one", "SECRET=two", "TERM=xterm-256color", "LANG=C.UTF-8", str(machine.workspace)):
            assert f"{line}\r\n" in output
        assert f"HOME={machine.home}\r\n" in output
        assert "CATTY_" not in output.replace("catty-", "")
        for name in (b"SECRET", b"two"):  # neither in the arguments nor in the environment of the runtime
            for pid in (await machine.pid_of("terminal"), await machine.pid_of("workspace")):
                with open(f"/proc/{pid}/environ", "rb") as file:
                    assert name + b"=" not in file.read()


async def test_a_cut_client_goes_on_at_the_byte() -> None:
    async with running(program("for n in range(20000): print('line', n)\nimport time; time.sleep(99)")) as machine:
        client = await machine.attach()
        whole = bytearray()
        for _ in range(200):
            await client.until(lambda client=client: len(client.output) > 0)
            client.wire.cut()
            await client.wire.closed
            whole += client.output
            if b"line 19999\r\n" in whole:
                break
            client = await again(machine, client)
            assert client.resumed is not None
            assert client.resumed.exact
        expected = b"".join(b"line %d\r\n" % n for n in range(20000))
        assert hashlib.sha256(whole).digest() == hashlib.sha256(expected).digest()


async def test_repeated_input_is_taken_once() -> None:
    async with running(("cat",)) as machine:
        client = await machine.attach()
        await client.type(b"one\r")
        client.wire.send(frames.pack(FrameType.IN, 0, b"one\rtwo\r"))
        await client.until(lambda: client.output.count(b"two") == 2)
        assert client.output.count(b"one") == 2  # the terminal's echo, and cat's


async def test_a_gap_in_the_input_ends_the_connection() -> None:
    async with running() as machine:
        client = await machine.attach()
        client.wire.send(frames.pack(FrameType.IN, 5, b"x"))
        assert (await client.wire.closed)[0] == 1002


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff" + bytes(8),
        b"text",
        frames.pack(FrameType.OUT, 0, b"x"),
        frames.pack(FrameType.ACK, 1 << 40),
        frames.pack(FrameType.RESIZE, 0, b"xyz"),
        frames.pack_json(FrameType.RESUME, 0, {}),
        "a text",
    ],
)
async def test_nonsense_ends_the_connection_and_nothing_else(message: bytes | str) -> None:
    async with running() as machine:
        good, bad = await machine.attach(), await machine.attach()
        bad.wire.send(message)
        assert (await bad.wire.closed)[0] == 1002
        await good.type(b"echo go''od\r")
        await good.until(b"good\r\n")


@pytest.mark.parametrize("first", [frames.pack(FrameType.IN, 0, b"x"), frames.pack(FrameType.RESUME, 0, b"[]"), "x"])
async def test_the_first_message_must_be_resume(first: bytes | str) -> None:
    async with running() as machine:
        wire = await machine.connect("/attach")
        wire.send(first)
        assert (await wire.closed)[0] == 1002


async def test_a_message_that_is_too_big_is_refused() -> None:
    async with running() as machine:
        client = await machine.attach()
        await client.type(bytes(constants.FRAME_MAX_BYTES))
        assert (await client.wire.closed)[0] in (1009, 1006)
        await (await machine.attach()).type(b"x")


async def test_the_smallest_writer_sets_the_size() -> None:
    async with running() as machine:
        big = await machine.attach(cols=200, rows=60)
        await eventually(lambda: big.resumed is not None and (big.resumed.cols, big.resumed.rows) == (200, 60))
        small = await machine.attach(cols=90, rows=70)
        await big.until(lambda: big.sizes[-1:] == [(90, 60)])
        viewer = await machine.attach(cols=10, rows=10, role="viewer")
        assert viewer.resumed is not None
        assert (viewer.resumed.cols, viewer.resumed.rows) == (90, 60)
        await big.type(b"stty size\r")
        await big.until(b"60 90\r\n")
        small.resize(50, 20)
        await viewer.until(lambda: viewer.sizes[-1:] == [(50, 20)])
        await small.close()
        await big.until(lambda: big.sizes[-1:] == [(200, 60)])


async def test_a_viewer_sees_and_cannot_type() -> None:
    async with running() as machine:
        writer, viewer = await machine.attach(), await machine.attach(role="viewer")
        await writer.type(b"echo se''en\r")
        await viewer.until(b"seen\r\n")
        viewer.wire.send(frames.pack(FrameType.IN, 0, b"x"))
        assert (await viewer.wire.closed)[0] == 1002


async def test_ping_is_answered() -> None:
    async with running() as machine:
        wire = (await machine.attach()).wire
        wire.send(frames.pack(FrameType.PING, 77, b"payload"))
        # The reading task of the client drops PONG, so look at the connection of another one.
        other = await machine.connect("/attach")
        other.send(frames.pack_json(FrameType.RESUME, frames.NO_OFFSET, {"client": "raw"}))
        other.send(frames.pack(FrameType.PING, 77, b"payload"))
        while True:
            message = await other.receive()
            assert isinstance(message, bytes)
            frame = frames.unpack(message)
            if frame.type is FrameType.PONG:
                assert (frame.offset, bytes(frame.payload)) == (77, b"payload")
                break


async def test_the_exit_and_a_fresh_start() -> None:
    async with running() as machine:
        client = await machine.attach()
        await client.type(b"exit 7\r")
        await client.until(lambda: client.exit is not None)
        assert client.exit == {"code": 7, "signal": None, "offset": client.position}
        late = await again(machine, client)
        await late.until(lambda: late.exit is not None)
        status = await machine.control.request("status")  # type: ignore[union-attr]
        assert (status["agent"], status["exit_code"]) == ("exited", 7)
        fresh = await machine.attach(fresh=True, cols=101, rows=33)
        await fresh.type(b"stty size; kill -9 $$\r")
        await fresh.until(b"33 101")
        await fresh.until(lambda: fresh.exit is not None)
        assert fresh.exit is not None
        assert (fresh.exit["code"], fresh.exit["signal"]) == (None, 9)
        assert fresh.resumed is not None
        assert client.resumed is not None
        assert fresh.resumed.epoch == client.resumed.epoch  # one stream over all starts


async def test_keys_typed_to_a_dead_agent_do_not_reach_the_next() -> None:
    async with running(program("import sys; sys.stdin.readline(); sys.exit()")) as machine:
        client = await machine.attach()
        await client.type(b"\r")
        await client.until(lambda: client.exit is not None)
        await client.type(b"\r\r\r")
        await client.until(lambda: client.taken == client.sent)
        fresh = await again(machine, client, fresh=True)
        await eventually(lambda: fresh.resumed is not None)
        await fresh.type(b"\r")
        await fresh.until(lambda: fresh.exit is not None)
        assert fresh.output == b"\r\n"


async def test_clients_attached_before_the_start_are_told_what_is_missing() -> None:
    async with LocalMachine(SHELL, secrets_pending=True) as machine:
        control = await machine.claim()
        client = await machine.attach()
        await client.until(lambda: len(client.notices) == 1)
        assert client.notices[0]["code"] == "waiting-workspace"
        await client.type(b"echo $TOKEN\r")  # kept until there is an agent
        await machine.start()
        assert (await control.event("waiting"))["for"] == "secrets"
        await client.until(lambda: len(client.notices) == 2)
        assert client.notices[1]["code"] == "waiting-secrets"
        await control.request("env", env={"TOKEN": "xyzzy"})
        await control.event("agent-started")
        await client.until(b"xyzzy\r\n")


async def test_memory_stays_bounded_and_a_standing_client_stalls_nobody() -> None:
    """60 MB are printed while one client reads nothing; the other gets every byte."""
    script = "import os\nb = b'x' * 65535 + b'\\n'\nfor n in range(900): os.write(1, b)\nprint('END')\nimport time; time.sleep(99)"
    async with running(("sh", "-c", f'stty raw; exec python3 -c "{script}"')) as machine:
        standing, good = await machine.attach(), await machine.attach()
        standing.silent = True
        standing.wire.hold(held=True)
        begun = time.monotonic()
        seen = 0

        def count() -> bool:
            nonlocal seen
            seen = max(seen, good.position)
            done = b"END" in good.output[-100:]
            if len(good.output) > 1 << 20:
                del good.output[: -1 << 10]
            return done

        await good.until(count, 60)
        assert time.monotonic() - begun < 60
        assert seen >= 900 * 65536
        with open(f"/proc/{await machine.pid_of('terminal')}/status") as file:
            peak = int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1))  # type: ignore[union-attr]
        assert peak < 45_000  # kB
        standing.silent = False
        standing.wire.hold(held=False)
        standing.acknowledge()
        await standing.until(b"END", 20)
        assert standing.snapshots, "it fell behind by more than the ring"


async def test_a_writer_that_is_slow_but_moves_gets_every_byte() -> None:
    script = (
        "import os\nfor n in range(400): os.write(1, b'%06d' % n + b'x' * 9993 + b'\\n')\nimport time; time.sleep(99)"
    )
    async with running(("sh", "-c", f'stty raw; exec python3 -c "{script}"')) as machine:
        client = await machine.attach()
        client.silent = True
        while client.position < 4_000_000:
            before = client.position
            client.acknowledge()
            await client.until(lambda before=before: client.position > before)
            await asyncio.sleep(0.02)  # a slow link
        assert not client.snapshots
        assert bytes(client.output) == b"".join(b"%06d" % n + b"x" * 9993 + b"\n" for n in range(400))


async def test_nobody_attached_holds_nothing_back() -> None:
    script = "import os\nfor n in range(400): os.write(1, b'x' * 65536)\nopen('done', 'w')\nimport time; time.sleep(99)"
    async with running(program(script)) as machine:
        await eventually((machine.workspace / "done").exists, 30)
        client = await machine.attach()
        assert client.resumed is not None
        assert not client.resumed.exact
        await client.until(lambda: len(client.snapshots) == 1)


async def test_a_client_beyond_the_ring_gets_a_screen() -> None:
    script = "import os\nprint('begin')\ninput()\nfor n in range(200): os.write(1, b'x' * 65535 + b'\\n')\nprint('END')\ninput()"
    async with running(program(script)) as machine:
        client = await machine.attach()
        await client.until(b"begin")
        await client.type(b"\r")
        client.wire.cut()
        await client.wire.closed
        size = 200 * 65537
        await eventually(lambda: output_of(machine, size), 30)
        back = await again(machine, client)
        assert back.resumed is not None
        assert not back.resumed.exact
        await back.until(b"END")
        assert len(back.snapshots) == 1


async def output_of(machine: LocalMachine, at_least: int) -> bool:
    status = await machine.control.request("status")  # type: ignore[union-attr]
    return bool(status["output"] >= at_least)


async def test_a_full_screen_program_paints_for_a_new_client() -> None:
    script = (
        "import signal, time, os\n"
        "print('\\x1b[?1049h\\x1b[?2004h', end='', flush=True)\n"
        "def paint(*_): print('\\x1b[H\\x1b[2Jsize %d %d' % tuple(os.get_terminal_size()), end='', flush=True)\n"
        "signal.signal(signal.SIGWINCH, paint); paint()\n"
        "while True: time.sleep(1)"
    )
    async with running(program(script)) as machine:
        first = await machine.attach(cols=80, rows=24)
        await first.until(b"size 80 24")
        second = await machine.attach(cols=80, rows=24)
        await second.until(lambda: len(second.snapshots) == 1)
        screen = second.snapshots[0]
        assert b"\x1b[?1049h" in screen
        assert b"\x1b[?2004h" in screen
        assert screen.endswith(b"size 80 24")
        await second.until(b"size 80 23")
        await second.until(b"size 80 24")


async def test_logs_are_the_ring() -> None:
    async with running(program("print('a line'); input()")) as machine:
        await (await machine.attach()).until(b"a line")
        wire = await machine.connect("/logs")
        message = await wire.receive()
        assert isinstance(message, bytes)
        frame = frames.unpack(message)
        assert (frame.type, frame.offset, bytes(frame.payload)) == (FrameType.OUT, 0, b"a line\r\n")
        assert (await wire.closed)[0] == 1000


async def test_a_client_that_comes_back_twice_has_one_connection() -> None:
    async with running() as machine:
        first = await machine.attach()
        await again(machine, first)
        assert (await first.wire.closed)[0] == 1000
        status = await machine.control.request("status")  # type: ignore[union-attr]
        assert status["clients"] == 1


async def test_a_flood_of_input_is_cut_off() -> None:
    async with running(program("import time, tty; tty.setraw(0); print('raw'); time.sleep(99)")) as machine:
        client = await machine.attach()
        await client.until(b"raw")
        for _ in range(12):
            await client.type(bytes(1 << 20))
        assert (await client.wire.closed)[0] == 1002
        assert client.taken < 1 << 20  # what the program does not read is not acknowledged
        status = await machine.control.request("status")  # type: ignore[union-attr]
        assert status["input"] < 8 << 20


async def test_pasting_a_megabyte(tmp_path: object) -> None:
    script = "import sys, tty, os, hashlib\ntty.setraw(0)\nprint('raw')\ns = b''\nwhile len(s) < 1000000: s += os.read(0, 65536)\nprint(hashlib.sha256(s).hexdigest())\ninput()"
    async with running(program(script)) as machine:
        client = await machine.attach()
        await client.until(b"raw")
        data = os.urandom(1_000_000)
        for at in range(0, len(data), 10_000):
            await client.type(data[at : at + 10_000])
        await client.until(hashlib.sha256(data).hexdigest().encode(), 20)
        await client.until(lambda: client.taken == len(data))
