from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import replace

import picows
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from catty import __version__
from catty.wire.claim import AgentFile, AgentLaunch
from catty.wire.control import Status
from runtime.support import ControlClient, LocalMachine, eventually


async def test_hello_and_claim() -> None:
    async with LocalMachine() as machine:
        control = ControlClient(await machine.connect("/control", token=""))
        hello = await control.request("hello")
        assert (hello["machine"], hello["version"], hello["claimed"], hello["session"]) == (
            "local",
            __version__,
            False,
            "",
        )
        for op in ("start", "status", "env", "notice", "signal", "shutdown"):
            assert (await control.raw(op))["error"] == "not-authorized"
        claimed = await control.request("claim", claim=machine.claim_.to_text())
        assert claimed["epoch"] == hello["epoch"]
        hello = await control.request("hello")
        assert (hello["claimed"], hello["session"]) == (True, machine.claim_.session)
        await control.request("status")  # who brought the claim has shown the token
        control.close()


async def test_the_first_claim_wins() -> None:
    async with LocalMachine() as machine:
        control = await machine.claim()
        assert (await control.request("claim", claim=machine.claim_.to_text()))["epoch"]  # asked again after a crash
        other = replace(machine.claim_, token="0ther")
        stranger = ControlClient(await machine.connect("/control", token=""))
        assert (await stranger.raw("claim", claim=other.to_text()))["error"] == "claim-refused"
        assert (await stranger.raw("status"))["error"] == "not-authorized"
        await control.request("status")
        stranger.close()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"machine": 1}', "x" * 100])
async def test_what_is_no_claim(text: str) -> None:
    async with LocalMachine() as machine:
        control = ControlClient(await machine.connect("/control", token=""))
        assert (await control.raw("claim", claim=text))["error"] == "bad-request"
        assert (await control.raw("claim", claim=replace(machine.claim_, machine="another").to_text()))[
            "error"
        ] == "claim-refused"
        await control.request("claim", claim=machine.claim_.to_text())
        control.close()


async def test_signed_claims() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    async with LocalMachine(settings={"CATTY_PUBLIC_KEY": public}) as machine:
        control = ControlClient(await machine.connect("/control", token=""))
        text = machine.claim_.to_text()
        wrong = Ed25519PrivateKey.generate().sign(text.encode()).hex()
        for signature in ("", "zz", wrong, None):
            assert (await control.raw("claim", claim=text, signature=signature))["error"] == "claim-refused"
        await control.request("claim", claim=text, signature=key.sign(text.encode()).hex())
        control.close()


@pytest.mark.parametrize("path", ["/attach", "/exec", "/logs", "/control", "/nothing"])
async def test_who_has_not_the_token_is_refused(path: str) -> None:
    async with LocalMachine() as machine:
        if path != "/control":
            with pytest.raises(picows.WSHandshakeError) as error:
                await machine.connect(path)
            assert error.value.response.status == (404 if path == "/nothing" else 403)
        await machine.claim()
        for token in ("wrong", "", "c0ffe", "c0ffeee"):
            if path == "/control" and not token:
                continue
            with pytest.raises(picows.WSHandshakeError) as error:
                await machine.connect(path, token=token)
            assert error.value.response.status == (404 if path == "/nothing" else 401)


async def test_only_the_owner_of_the_socket_may_connect() -> None:
    async with LocalMachine() as machine:
        await machine.claim()
        for name in ("terminal", "workspace"):
            assert stat.S_IMODE((machine.endpoint / name).stat().st_mode) == 0o600


async def test_nonsense_ends_the_connection() -> None:
    async with LocalMachine() as machine:
        await machine.claim()
        for text in ("", "[]", "nul", "[" * 100_000):
            wire = await machine.connect("/control")
            wire.send(text)
            assert (await wire.closed)[0] == 1002
        control = ControlClient(await machine.connect("/control"))
        for op in ("", "nothing", None, 5, ["status"]):
            assert (await control.raw(op))["error"] == "bad-request"  # type: ignore[arg-type]
        control.close()


async def test_events_and_status_of_an_agent() -> None:
    async with LocalMachine(("sh", "-c", "read x; exit 4")) as machine:
        control = await machine.claim()
        status = Status.from_json(await control.request("status"))
        assert (status.agent, status.exit_code, status.clients, status.output, status.output_age) == (
            "waiting",
            None,
            0,
            0,
            None,
        )
        await machine.start()
        started = await control.event("agent-started")
        assert not started["resumed"]
        os.kill(started["pid"], 0)
        await machine.start()  # twice is once
        client = await machine.attach()
        await client.type(b"abc")
        await client.until(b"abc")
        status = Status.from_json(await control.request("status"))
        assert (status.agent, status.clients, status.input, status.output) == ("running", 1, 3, 3)
        assert status.input_age is not None
        assert 0 <= status.input_age < 5
        await client.type(b"\r")
        assert (await control.event("agent-exited"))["code"] == 4
        await machine.start()  # nor does it start one that has exited
        assert Status.from_json(await control.request("status")).agent == "exited"


async def test_cpu_seconds_count_what_the_agent_and_its_dead_children_use() -> None:
    burn = "python3 -c 'import time\nwhile time.process_time() < 0.3: pass'"
    async with LocalMachine(("sh", "-c", f"read x; {burn}; {burn} & wait; echo done; read x")) as machine:
        control = await machine.claim()
        await machine.start()
        client = await machine.attach()
        before = Status.from_json(await control.request("status")).cpu_seconds
        await client.type(b"\r")
        await client.until(b"done")
        after = Status.from_json(await control.request("status")).cpu_seconds
        assert 0.5 < after - before < 3
        await machine.exec("sh", "-c", burn)
        assert 0.25 < Status.from_json(await control.request("status")).cpu_seconds - after < 3


async def test_notices_and_signals() -> None:
    async with LocalMachine(
        ("sh", "-c", "trap 'echo interrupted' INT; echo ready; while :; do sleep 0.05; done")
    ) as machine:
        control = await machine.claim()
        await machine.start()
        client = await machine.attach()
        await client.until(b"ready")
        await control.request("notice", level="warning", code="ttl", message="5 minutes left")
        await client.until(lambda: client.notices == [{"level": "warning", "code": "ttl", "message": "5 minutes left"}])
        await control.request("signal", signal="INT")
        await client.until(b"interrupted")
        for fields in ({"level": "loud", "code": "", "message": ""}, {"level": "info"}):
            assert (await control.raw("notice", **fields))["error"] == "bad-request"
        assert (await control.raw("signal", signal="STOP"))["error"] == "bad-request"


async def test_shutdown_ends_the_agent_and_its_jobs_and_the_machine_stays() -> None:
    script = "trap '' HUP TERM; (trap '' HUP TERM; sleep 60) & echo $!; while :; do sleep 0.05; done"
    async with LocalMachine(("sh", "-c", script)) as machine:
        control = await machine.claim()
        await machine.start()
        client = await machine.attach()
        job = int((await client.until(lambda: b"\n" in client.output)).split()[0])
        begun = time.monotonic()
        await control.request("shutdown", grace=0.5)
        assert 0.4 < time.monotonic() - begun < 3
        assert not os.path.exists(f"/proc/{job}")
        status = Status.from_json(await control.request("status"))
        assert (status.agent, status.exit_signal) == ("exited", 9)
        await control.request("notice", level="info", code="test", message="after the end")
        await client.until(lambda: bool(client.notices))
        assert client.exit is None  # that it was ended with its session is for the server to say
        assert (await control.raw("start"))["error"] == "stopping"
        await control.request("shutdown", grace=5)  # twice is fine, and quick


async def test_sigterm_ends_the_machine_in_order() -> None:
    async with LocalMachine(
        ("sh", "-c", "trap 'echo bye > bye; exit 0' HUP; echo up; while :; do sleep 0.02; done")
    ) as machine:
        await machine.claim()
        await machine.start()
        await (await machine.attach()).until(b"up")
        assert machine.process is not None
        machine.process.terminate()
        assert await machine.process.wait() == 0
        assert (machine.workspace / "bye").read_text() == "bye\n"


async def test_a_salvage_machine_runs_no_agent() -> None:
    async with LocalMachine(settings={"CATTY_SALVAGE": "1"}) as machine:
        (await machine.dial("workspace")).close()
        assert machine._children("terminal") == []


async def test_the_agent_is_started_as_its_launch_says() -> None:
    launch = AgentLaunch(
        name="test",
        start=("sh", "-c", "echo first; cat .prepared ~/.config/t/one.json; read x"),
        resume=("sh", "-c", "echo again; read x"),
        transcript="talks/*/*.jsonl",
        files=(
            AgentFile(".config/t/one.json", '{"a": {"b": 1}}', merge=True),
            AgentFile("plain", "not for you"),
            AgentFile("link/file", "x"),
        ),
        prepare="cd ~ && echo prepared $SECRET > $HOME/../workspace/.prepared; echo noise",
    )
    async with LocalMachine(launch=launch, env={"SECRET": "s3cret"}) as machine:
        (machine.home / "plain").write_text("mine")
        (machine.directory / "outside").mkdir()
        (machine.home / "link").symlink_to(machine.directory / "outside")
        (machine.home / ".config/t").mkdir(parents=True)
        (machine.home / ".config/t/one.json").write_text('{"a": {"c": 2}}')
        control = await machine.claim()
        await machine.start()
        assert not (await control.event("agent-started"))["resumed"]
        client = await machine.attach()
        await client.until(b"prepared s3cret")
        assert b"noise" not in client.output
        assert json.loads((machine.home / ".config/t/one.json").read_text()) == {"a": {"b": 1, "c": 2}}
        assert (machine.home / "plain").read_text() == "mine"
        assert list((machine.directory / "outside").iterdir()) == []
        (machine.home / "talks/x").mkdir(parents=True)
        (machine.home / "talks/x/1.jsonl").write_text("{}")
        await client.type(b"\r")
        await client.until(lambda: client.exit is not None)
        fresh = await machine.attach(fresh=True)
        assert (await control.event("agent-started"))["resumed"]
        await eventually(lambda: b"again" in fresh.output or any(b"again" in screen for screen in fresh.snapshots))


async def test_an_agent_that_is_not_there() -> None:
    async with LocalMachine(("no-such-agent",)) as machine:
        control = await machine.claim()
        await machine.start()
        assert (await control.event("agent-exited"))["code"] == 127
        client = await machine.attach()
        await client.until(b"catty: no-such-agent: No such file or directory")
        await client.until(lambda: client.exit is not None)
