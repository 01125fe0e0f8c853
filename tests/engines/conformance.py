"""What every engine must do. A subclass for each engine gives the fixture `site`; what may differ is read from `Capabilities`."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from catty.engines.base import Engine, Exit, MachineState, UnixEndpoint
from catty.engines.container.host import host_addresses
from catty.engines.endpoint import connect, dial
from catty.errors import EndpointRefused, EngineFailed, ImageMissing, MachineNotFound, MachineUnreachable
from engines.site import BOOT_S, Site, listening

# Tries to connect; prints what came of it.
CONNECT = """python3 - {host} {port} <<'END'
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("connected")
except OSError as error:
    print("closed", error)
END"""

# Asks the machine's first name server anything; an answer of any kind will do.
ASK_DNS = """python3 - <<'END'
import re, socket
server = re.search(r"^nameserver (\\S+)", open("/etc/resolv.conf").read(), re.M)[1]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
question = b"\\x07example\\x03com\\x00\\x00\\x01\\x00\\x01"
sock.sendto(b"\\x12\\x34\\x01\\x00\\x00\\x01" + bytes(6) + question, (server, 53))
print("answered" if sock.recv(512).startswith(b"\\x12\\x34") else "nonsense")
END"""

BURN_CPU = """python3 - <<'END'
import os, time
for _ in range(2):
    if not os.fork():
        end = time.monotonic() + 2
        while time.monotonic() < end:
            pass
        os._exit(0)
os.wait(), os.wait()
used = os.times()
print(used.children_user + used.children_system)
END"""


class EngineConformance:
    @pytest.fixture
    async def engine(self, site: Site) -> AsyncIterator[Engine]:
        async with site.engine() as engine:
            yield engine

    # ------------------------------------------------------------------------------------------ life

    async def test_life_of_a_machine(self, site: Site, engine: Engine) -> None:
        spec = site.spec(labels={"session": "brave-tiger-1234"})
        created = await engine.create(spec)
        assert (created.id, created.state) == (spec.machine, MachineState.CREATED)
        assert created.labels["session"] == "brave-tiger-1234"
        assert await engine.create(spec) == created
        await engine.stop(spec.machine, 1)

        await engine.start(spec.machine)
        await engine.start(spec.machine)
        assert (await engine.inspect(spec.machine)).state is MachineState.RUNNING
        endpoint = await engine.endpoint(spec.machine)
        for listener in ("terminal", "workspace"):
            (await dial(endpoint, listener, seconds=BOOT_S)).close()
        await site.claim(engine, spec.machine)
        assert await site.succeed(engine, spec.machine, "echo $((6 * 7))") == "42"
        assert await site.inside(engine, spec.machine, "id -u; exit 7", user="agent") == (7, "1000")

        await engine.stop(spec.machine, 10)
        ended = await engine.inspect(spec.machine)
        assert (ended.state, ended.exit_code) == (MachineState.EXITED, 0)
        await engine.stop(spec.machine, 10)
        with pytest.raises(MachineUnreachable):
            await engine.endpoint(spec.machine)

        await engine.destroy(spec.machine)
        await engine.destroy(spec.machine)
        with pytest.raises(MachineNotFound):
            await engine.inspect(spec.machine)
        assert await site.remains() == []

    async def test_unknown_machine(self, engine: Engine) -> None:
        unknown = str(uuid.uuid4())
        for call in (engine.start(unknown), engine.stop(unknown, 1), engine.inspect(unknown), engine.endpoint(unknown)):
            with pytest.raises(MachineNotFound, match=f"'{unknown}'"):
                await call
        await engine.destroy(unknown)

    async def test_destroys_what_runs_and_what_never_ran(self, site: Site, engine: Engine) -> None:
        running = await site.boot(engine)
        created = (await engine.create(site.spec())).id
        await asyncio.gather(engine.destroy(running), engine.destroy(created))
        assert await engine.list() == []
        assert await site.remains() == []

    async def test_destroyed_by_two_at_once(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        await asyncio.gather(engine.destroy(machine), engine.destroy(machine))
        assert await site.remains() == []

    async def test_stop_kills_after_the_grace(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        os.kill(await site.pid(machine), signal.SIGSTOP)  # deaf to SIGTERM
        await engine.stop(machine, 1)
        assert (await engine.inspect(machine)).exit_code == 137

    async def test_starts_again_with_its_files(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        await site.succeed(engine, machine, "echo kept > /workspace/file; echo home > /home/agent/file")
        await engine.stop(machine, 10)
        await engine.start(machine)
        await site.claim(engine, machine)
        assert await site.succeed(engine, machine, "cat /workspace/file /home/agent/file") == "kept\nhome"

    async def test_adopted_by_a_later_process(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine, labels={"session": "x"})
        later = site.open(site.owner)
        stranger = site.open(f"{site.owner}-stranger")
        try:
            assert [(found.id, found.state, found.labels["session"]) for found in await later.list()] == [
                (machine, MachineState.RUNNING, "x")
            ]
            (await dial(await later.endpoint(machine), "workspace", seconds=BOOT_S)).close()
            assert await stranger.list() == []
            with pytest.raises(MachineNotFound):
                await stranger.inspect(machine)
            await stranger.destroy(machine)
        finally:
            await later.close()
            await stranger.close()
        assert (await engine.inspect(machine)).state is MachineState.RUNNING

    async def test_missing_image(self, site: Site, engine: Engine) -> None:
        spec = site.spec(image="localhost/catty-no-such-image:1")
        assert not await engine.has_image(spec.image)
        with pytest.raises(ImageMissing, match="catty-no-such-image"):
            await engine.create(spec)
        assert await site.remains() == []
        assert await engine.has_image(site.image)

    # ------------------------------------------------------------------------------------------ death

    async def test_killed_from_outside_and_salvaged(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        await site.succeed(engine, machine, "echo work > /workspace/file")
        exits = engine.watch()
        first = asyncio.ensure_future(anext(exits))
        await asyncio.sleep(0.5)  # the engine gives no sign that it has begun to tell
        os.kill(await site.pid(machine), signal.SIGKILL)
        async with asyncio.timeout(30):
            assert await first == Exit(machine, 137, "exited 137")
        assert (await engine.inspect(machine)).state is MachineState.EXITED

        async with engine.salvage(machine) as endpoint:
            (await dial(endpoint, "workspace", seconds=BOOT_S)).close()
            helper = f"{machine}-salvage"
            assert await site.beside(helper, "cat /workspace/file") == (0, "work")
            assert "tap0" not in (await site.beside(helper, "cat /proc/net/dev"))[1]
            assert [found.id for found in await engine.list()] == [machine]
        assert (await engine.inspect(machine)).state is MachineState.EXITED
        async with engine.salvage(machine) as endpoint:  # as often as need be
            (await dial(endpoint, "workspace", seconds=BOOT_S)).close()

    async def test_running_machine_is_not_salvaged(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        with pytest.raises(EngineFailed, match="running"):
            async with engine.salvage(machine):
                pass

    async def test_helper_of_a_dead_server_is_replaced_and_destroyed(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        await engine.stop(machine, 10)
        left_behind = engine.salvage(machine)
        await left_behind.__aenter__()
        async with engine.salvage(machine) as endpoint:
            (await dial(endpoint, "workspace", seconds=BOOT_S)).close()
        await engine.salvage(machine).__aenter__()
        await engine.destroy(machine)
        assert await site.remains() == []

    # ------------------------------------------------------------------------------------------ limits

    async def test_memory_limit(self, site: Site, engine: Engine) -> None:
        if not (await engine.probe()).memory_limit:
            pytest.skip("no memory limit here (see Capabilities.notes)")
        machine = await site.boot(engine, memory_mb=256)
        code, output = await site.inside(engine, machine, "python3 -c 'bytearray(400 << 20); print(\"not limited\")'")
        assert code != 0, output
        assert (await engine.inspect(machine)).state is MachineState.RUNNING

    async def test_process_limit(self, site: Site, engine: Engine) -> None:
        if not (await engine.probe()).pids_limit:
            pytest.skip("no process limit here (see Capabilities.notes)")
        machine = await site.boot(engine, pids=64)
        code, output = await site.inside(
            engine,
            machine,
            "python3 -c 'import os, time\nfor _ in range(200): os.fork() or (time.sleep(9), os._exit(0))'",
        )
        assert code != 0
        assert "Resource temporarily unavailable" in output

    async def test_cpu_limit(self, site: Site, engine: Engine) -> None:
        if not (await engine.probe()).cpu_limit:
            pytest.skip("no CPU limit here (see Capabilities.notes)")
        machine = await site.boot(engine, cpus=0.5)
        assert float(await site.succeed(engine, machine, BURN_CPU)) < 1.5  # of 4 s that two processes would use in 2 s

    async def test_endpoint_is_small(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        code, output = await site.inside(engine, machine, "head -c 3M /dev/zero > /run/catty/endpoint/fat")
        assert code != 0
        assert "No space left" in output
        code, output = await site.inside(
            engine, machine, "cd /run/catty/endpoint; for i in $(seq 100); do : > $i; done"
        )
        assert "No space left" in output

    # ------------------------------------------------------------------------------------------ isolation

    async def test_reaches_its_name_server(self, site: Site, engine: Engine) -> None:
        # Shows that the machine has a network, without which the tests below would prove nothing.
        assert await site.succeed(engine, await site.boot(engine), ASK_DNS) == "answered"

    async def test_host_is_out_of_reach(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        gateway = await site.succeed(engine, machine, "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'")
        with listening("0.0.0.0") as port, listening("127.0.0.1") as loopback_port:
            targets = [(address, port) for address in (*host_addresses(), gateway, "127.0.0.1")]
            targets += [(address, loopback_port) for address in (gateway, "127.0.0.1")]
            for host, number in targets:
                said = await site.succeed(engine, machine, CONNECT.format(host=host, port=number))
                assert said.startswith("closed"), f"{host}:{number} {said}"

    async def test_link_local_is_out_of_reach(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        said = await site.succeed(engine, machine, CONNECT.format(host="169.254.169.254", port=80))
        assert said.startswith("closed")
        assert "timed out" not in said, "closed by accident, not by a route"

    async def test_closed_addresses_are_out_of_reach(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine, closed_addresses=("192.0.2.128/25", "198.51.100.7"))
        for address in ("192.0.2.200", "198.51.100.7"):
            said = await site.succeed(engine, machine, CONNECT.format(host=address, port=80))
            assert said.startswith("closed")
            assert "timed out" not in said

    async def test_other_machine_is_out_of_reach(self, site: Site, engine: Engine) -> None:
        one, other = await site.boot(engine), await site.boot(engine)
        address = await site.succeed(engine, other, "hostname -I | cut -d' ' -f1")
        await site.succeed(
            engine,
            other,
            "setsid python3 -m http.server 8099 --bind 0.0.0.0 >/dev/null 2>&1 </dev/null & sleep 1; echo up",
        )
        assert await site.succeed(engine, other, CONNECT.format(host=address, port=8099)) == "connected"
        said = await site.succeed(engine, one, CONNECT.format(host=address, port=8099))
        assert said.startswith("closed")

    async def test_nothing_of_the_engine_or_host_inside(self, site: Site, engine: Engine, tmp_path: Path) -> None:
        machine = await site.boot(engine)
        found = await site.succeed(
            engine, machine, "find / -xdev -type s 2>/dev/null; ls /run /var/run; cat /proc/net/unix"
        )
        for word in ("podman", "docker", "containerd"):
            assert word not in found
        capabilities = int(await site.succeed(engine, machine, "sed -n 's/^CapBnd:\\s*//p' /proc/1/status"), 16)
        for name, bit in (("SYS_ADMIN", 21), ("SYS_MODULE", 16), ("SYS_RAWIO", 17), ("MKNOD", 27), ("SYS_PTRACE", 19)):
            assert not capabilities >> bit & 1, name
        assert not capabilities >> 12 & 1, "NET_ADMIN opens what routes close"
        code, _ = await site.inside(engine, machine, "sudo ip route flush table main type blackhole", user="agent")
        assert code != 0
        assert (
            await site.succeed(engine, machine, "sed -n 's/^NoNewPrivs:\\s*//p; s/^Seccomp:\\s*//p' /proc/1/status")
            == "0\n2"
        )

    async def test_root_inside_is_not_root_outside(self, site: Site, engine: Engine) -> None:
        capabilities = await engine.probe()
        one, other = await site.boot(engine), await site.boot(engine)
        uids = [Path(f"/proc/{await site.pid(machine)}").stat().st_uid for machine in (one, other)]
        assert all((uid != 0) == capabilities.user_namespace for uid in uids)
        assert (uids[0] != uids[1]) == capabilities.per_machine_namespace
        endpoint = await engine.endpoint(one)
        assert isinstance(endpoint, UnixEndpoint)
        assert endpoint.owner == uids[0]

    @pytest.mark.parametrize(
        "swap",
        [
            "ln -s workspace terminal",
            "ln -s /run/podman/podman.sock terminal",
            "mkfifo terminal",
            "ln workspace terminal; chown 1000 workspace",
            "echo > terminal",
        ],
    )
    async def test_replaced_socket_is_refused(self, site: Site, engine: Engine, swap: str) -> None:
        machine = await site.boot(engine)
        endpoint = await engine.endpoint(machine)
        await site.succeed(engine, machine, f"cd /run/catty/endpoint && rm terminal && {swap}")
        with pytest.raises(
            (EndpointRefused, MachineUnreachable)
        ):  # unreachable: a kernel that keeps its fifos to itself
            connect(endpoint, "terminal")

    # ------------------------------------------------------------------------------------------ what a machine is given

    async def test_ca_bundle_is_there_and_read_only(self, site: Site, engine: Engine, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle.crt"
        bundle.write_text("certificates")
        tmp_path.chmod(0o755)
        machine = await site.boot(engine, ca_bundle=bundle)
        assert (
            await site.succeed(engine, machine, "cat $(tr '\\0' '\\n' </proc/1/environ | sed -n 's/^CATTY_CA=//p')")
            == "certificates"
        )
        code, _ = await site.inside(engine, machine, "echo forged > /run/catty/ca.crt")
        assert code != 0
        assert bundle.read_text() == "certificates"

    async def test_environment_and_name(self, site: Site, engine: Engine) -> None:
        machine = await site.boot(engine)
        environment = (await site.succeed(engine, machine, "tr '\\0' '\\n' </proc/1/environ")).splitlines()
        assert f"CATTY_MACHINE={machine}" in environment
        assert any(line.startswith("CATTY_CLOSED=169.254.0.0/16,") for line in environment)
        assert await site.succeed(engine, machine, "hostname") == f"catty-{machine[:8]}"
