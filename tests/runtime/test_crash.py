"""kill -9 of the runtime's processes while a machine is in use."""

from __future__ import annotations

import asyncio
import os
import random
import time

from catty.wire import frames
from catty.wire.frames import FrameType
from runtime.support import AttachClient, LocalMachine, eventually

# Prints numbered lines without a pause, and appends each key that it reads to the file `keys`.
BUSY = """
import os, select, time, tty
tty.setraw(0)
keys = open('keys', 'ab', 0)
n = 0
while True:
    if select.select([0], [], [], 0)[0]:
        keys.write(os.read(0, 4096))
    if n < 400000:
        os.write(1, b''.join(b'%08d\\r\\n' % (n + i) for i in range(40)))
        n += 40
        time.sleep(0.0005)
    else:
        select.select([0], [], [])
"""


async def resume(machine: LocalMachine, client: AttachClient) -> AttachClient:
    """As a client does: dial until it is answered, then send again what was not taken."""
    assert client.resumed is not None
    epoch, taken = client.resumed.epoch, client.taken
    while True:
        try:
            back = await machine.attach(
                client=client.resume.client, epoch=epoch, output=client.position, input=client.sent
            )
        except (ConnectionError, OSError):
            await asyncio.sleep(0.01)
            continue
        assert back.resumed is not None
        assert back.resumed.exact
        assert taken <= back.resumed.input <= client.sent
        return back


async def test_terminal_killed_while_a_client_types_and_a_program_prints() -> None:
    """Every byte of output and every key, once and in order, over some deaths; each outage under a second."""
    chance = random.Random(5)
    keys = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=20000))
    output = bytearray()
    async with LocalMachine(("python3", "-c", BUSY)) as machine:
        await machine.claim()
        await machine.start()
        client = await machine.attach()
        await client.until(b"00000000")  # its terminal is raw by now
        kills, worst = 0, 0.0
        while kills < 7 or client.sent < len(keys):
            stop = time.monotonic() + (0.1 + chance.random() * 0.2 if kills < 3 else 1.1)
            while time.monotonic() < stop:
                if client.sent < len(keys):
                    await client.type(keys[client.sent : client.sent + 11])
                await asyncio.sleep(0.002)
            if kills < 7:
                await machine.kill("terminal")
                kills += 1
                begun = time.monotonic()
                await client.wire.closed
                output += client.output
                client = await resume(machine, client)
                worst = max(worst, time.monotonic() - begun)
            else:
                output += client.output
                client.output.clear()
        written = machine.workspace / "keys"
        await eventually(lambda: written.stat().st_size >= len(keys))
        assert written.read_bytes() == keys
        output += client.output
        lines = bytes(output).split(b"\r\n")[:-1]
        assert lines == [b"%08d" % n for n in range(len(lines))]
        assert len(output) > 1_000_000
        assert worst < 1.0


async def test_terminal_killed_while_nobody_looks() -> None:
    async with LocalMachine(("python3", "-c", BUSY)) as machine:
        control = await machine.claim()
        await machine.start()
        await control.event("agent-started")
        agent = int((await machine.exec("pgrep", "-f", "keys = open", "--newest"))[1] or 0)
        for _ in range(3):
            await machine.kill("terminal")
        wire = await machine.connect("/control")
        wire.send('{"id": 1, "op": "status"}')
        assert '"agent":"running"' in str(await wire.receive())
        os.kill(agent, 0)


async def test_the_agent_ends_while_terminal_is_dead() -> None:
    async with LocalMachine(("sh", "-c", "read x; echo last words; exit 5")) as machine:
        await machine.claim()
        await machine.start()
        client = await machine.attach()
        await client.type(b"\r")
        await machine.kill("terminal")
        await client.wire.closed
        back = await resume(machine, client)
        if not back.resumed or back.resumed.input == 0:
            back.wire.send(frames.pack(FrameType.IN, 0, b"\r"))
        await back.until(lambda: back.exit is not None)
        assert back.exit is not None
        assert back.exit["code"] == 5
        assert (bytes(client.output) + bytes(back.output)).count(b"last words\r\n") == 1


async def test_the_exit_is_told_again_by_the_next_terminal() -> None:
    async with LocalMachine(("sh", "-c", "read x; exit 5")) as machine:
        await machine.claim()
        await machine.start()
        client = await machine.attach()
        await client.type(b"\r")
        await client.until(lambda: client.exit is not None)
        await machine.kill("terminal")
        await client.wire.closed
        back = await resume(machine, client)
        await back.until(lambda: back.exit is not None)
        assert back.exit == client.exit


async def test_programs_end_with_the_terminal_that_served_them() -> None:
    async with LocalMachine() as machine:
        await machine.claim()
        program = await machine.program("sh", "-c", "trap '' HUP; echo $$; sleep 60")
        await program.until(b"\n")
        pid = int(program.stdout)
        await machine.kill("terminal")
        await eventually(lambda: not os.path.exists(f"/proc/{pid}"))


async def test_workspace_is_started_again() -> None:
    async with LocalMachine() as machine:
        await machine.claim()
        begun = time.monotonic()
        await machine.kill("workspace")
        await machine.pid_of("workspace")
        assert time.monotonic() - begun < 1.0
        (await machine.dial("workspace")).close()


async def test_the_claim_outlives_terminal() -> None:
    async with LocalMachine(env={"SECRET": "kept"}) as machine:
        await machine.claim()
        await machine.kill("terminal")
        code, out, _ = await machine.exec("sh", "-c", "echo $SECRET")
        assert (code, out) == (0, b"kept\n")


async def test_a_process_that_dies_at_once_is_not_started_all_the_time() -> None:
    """init waits longer and longer, and goes on to serve."""
    async with LocalMachine() as machine:
        await machine.claim()
        for _ in range(6):
            await machine.kill("workspace")
        begun = time.monotonic()
        await machine.pid_of("workspace")
        assert 0.1 < time.monotonic() - begun < 3
        assert (await machine.exec("true"))[0] == 0


async def test_all_ends_when_init_is_killed() -> None:
    async with LocalMachine(("sh", "-c", "echo $$; exec cat")) as machine:
        await machine.claim()
        await machine.start()
        client = await machine.attach()
        agent = int((await client.until(lambda: b"\n" in client.output)).split()[0])
        pids = [await machine.pid_of("terminal"), await machine.pid_of("workspace"), agent]
        assert machine.process is not None
        machine.process.kill()
        await machine.process.wait()
        await eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
