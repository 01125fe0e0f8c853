"""A session from its creation to its end, with the real runtime in local processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from catty.engines.base import MachineSpec
from catty.errors import EngineDown, EngineFailed, ImageMissing
from catty.server.db.schema import sessions as table
from catty.server.main import Server
from catty.workspace.manifest import Manifest
from catty.workspace.model import Entry, Kind, digest
from catty.workspace.packs import PackWriter
from server.process_engine import ProcessEngine
from server.support import QUICK, Rest, a_server, eventually, everything_in

Json = dict[str, Any]


def write(engine: ProcessEngine, session: Json, name: str, content: str) -> None:
    """As the agent would, in its workspace."""
    (engine.root / session["machine_id"] / "workspace" / name).write_text(content)


async def saved(rest: Rest, session: Json) -> dict[str, bytes]:
    """Path and content of what the newest snapshot holds, files of one blob each."""
    manifest = Manifest.from_bytes(await rest("GET", f"/v1/sessions/{session['id']}/snapshots/latest"))
    return {path.decode(): entry.blobs[0] for path, entry in manifest.entries.items() if entry.blobs}


def workspace_of(files: dict[str, str]) -> tuple[bytes, list[bytes]]:
    """(manifest, packs) of an upload."""
    writer, entries = PackWriter(), [Entry(b"workspace", Kind.DIR, 0o755)]
    for name, content in sorted(files.items()):
        data = content.encode()
        writer.add(digest(data), data)
        entries.append(Entry(b"workspace/" + name.encode(), Kind.FILE, size=len(data), blobs=(digest(data),)))
    return Manifest(entries).to_bytes(), [writer.finish()]


async def test_new_to_stopped(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running()
    assert session["error"] is None
    write(engine, session, "file", "work")
    stopped = await rest("POST", f"/v1/sessions/{session['label']}/stop")
    assert (stopped["state"], stopped["reason"], stopped["error"]) == ("stopped", "user", None)
    assert engine.machines() == []
    assert await saved(rest, session) == {"workspace/file": digest(b"work")}
    again = await rest("POST", f"/v1/sessions/{session['label']}/stop")
    assert again["version"] == stopped["version"]
    assert [s["label"] for s in await rest("GET", "/v1/sessions")] == [session["label"]]


async def test_upload_then_start(rest: Rest, engine: ProcessEngine) -> None:
    made = await rest("POST", "/v1/sessions", {"agent": "shell", "workspace": "upload"}, expect=201)
    await rest.until(made["id"], lambda now: now["step"] == "workspace")
    manifest, packs = workspace_of({"a": "one", "b": "two"})
    digests = digest(b"one") + digest(b"two")
    assert await rest("POST", "/v1/blobs/missing", digests) == digests
    await rest("POST", f"/v1/sessions/{made['id']}/workspace", manifest, expect=409)
    for pack in packs:
        await rest("POST", "/v1/packs", pack, expect=201)
    assert await rest("POST", "/v1/blobs/missing", digests) == b""
    path = f"/v1/sessions/{made['id']}/workspace"
    assert await rest("POST", path, manifest, expect=201) == {"number": 1}
    assert await rest("POST", path, manifest, expect=201) == {"number": 1}  # its answer was lost, say
    other = Manifest([Entry(b"workspace", Kind.DIR, 0o755)]).to_bytes()
    assert (await rest("POST", path, other, expect=409))["error"] == "workspace-exists"
    running = await rest.until(made["id"], lambda now: now["state"] != "provisioning")
    assert running["state"] == "running", running
    workspace = engine.root / made["machine_id"] / "workspace"
    assert {entry.name: entry.read_text() for entry in workspace.iterdir()} == {"a": "one", "b": "two"}
    fetched = await rest("POST", "/v1/blobs/fetch", digest(b"two"))
    assert int.from_bytes(fetched[:4]) == len(fetched) - 4


async def test_an_upload_that_does_not_come_fails_the_session(short: Path, engine: ProcessEngine) -> None:
    timing = type(QUICK)(**{name: getattr(QUICK, name) for name in QUICK.__slots__} | {"upload_wait": 0.3})
    async with a_server(short / "data", lambda *_: engine, timing=timing) as (_, rest):
        made = await rest("POST", "/v1/sessions", {"agent": "shell", "workspace": "upload"}, expect=201)
        session = await rest.until(made["id"], lambda now: now["state"] == "stopped")
        assert (session["reason"], session["error"]["code"]) == ("failed", "upload-missing")
        assert engine.machines() == []


async def test_saves_by_itself_and_on_request(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running()
    write(engine, session, "file", "first")
    await eventually(lambda: rest("GET", f"/v1/sessions/{session['id']}/snapshots"))
    write(engine, session, "file", "second")
    number = (await rest("POST", f"/v1/sessions/{session['id']}/save"))["number"]
    assert await saved(rest, session) == {"workspace/file": digest(b"second")}
    assert (await rest("POST", f"/v1/sessions/{session['id']}/save"))["number"] == number
    assert (await rest("GET", f"/v1/sessions/{session['id']}"))["last_saved_at"] is not None


async def test_a_machine_that_dies_is_salvaged(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running()
    write(engine, session, "file", "not saved yet")
    engine.kill(session["machine_id"])
    stopped = await rest.until(session["id"], lambda now: now["state"] == "stopped")
    assert (stopped["reason"], stopped["error"]["code"]) == ("crashed", "machine-died")
    assert await saved(rest, session) == {"workspace/file": digest(b"not saved yet")}
    assert "salvage" in engine.calls
    assert engine.machines() == []


async def test_a_machine_that_runs_but_cannot_be_saved_is_salvaged(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running()
    write(engine, session, "file", "not saved yet")
    (engine.root / session["machine_id"] / "endpoint" / "workspace").unlink()
    stopped = await rest("POST", f"/v1/sessions/{session['id']}/stop")
    assert (stopped["state"], stopped["reason"]) == ("stopped", "user")
    assert await saved(rest, session) == {"workspace/file": digest(b"not saved yet")}
    assert "salvage" in engine.calls
    assert engine.machines() == []


async def test_the_conversation_survives_a_salvage(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running(agent="claude")
    transcript = engine.root / session["machine_id"] / "home/.claude/projects/-workspace/x.jsonl"
    transcript.parent.mkdir(parents=True, exist_ok=True)
    transcript.write_text("said")
    engine.kill(session["machine_id"])
    await rest.until(session["id"], lambda now: now["state"] == "stopped")
    assert (await saved(rest, session))["home/.claude/projects/-workspace/x.jsonl"] == digest(b"said")


async def test_the_last_output_is_there_after_the_end(rest: Rest) -> None:
    session = await rest.running()
    path = f"/v1/sessions/{session['id']}/logs"
    output = await eventually(lambda: rest("GET", path))
    await rest("POST", f"/v1/sessions/{session['id']}/stop")
    assert (await rest("GET", path)).startswith(output)


@pytest.mark.parametrize("step", ["machine", "workspace"])
@pytest.mark.parametrize("delete", [False, True])
async def test_stop_while_starting(rest: Rest, engine: ProcessEngine, step: str, delete: bool) -> None:
    made = await rest("POST", "/v1/sessions", {"agent": "shell", "workspace": "upload"}, expect=201)
    await rest.until(made["id"], lambda now: step == "machine" or now["step"] == step)
    query = "?delete=1" if delete else ""
    for _ in range(2):
        stopped = await rest("POST", f"/v1/sessions/{made['id']}/stop{query}")
        assert (stopped["state"], stopped["reason"]) == ("stopped", "user")
    assert engine.machines() == []


async def test_a_machine_that_the_engine_makes_too_late_goes_too(
    rest: Rest, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up asking an engine for a machine may get it all the same, after it was destroyed."""
    asked, specs, make = asyncio.Event(), [], engine.create

    async def create(spec: MachineSpec) -> Any:
        specs.append(spec)
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(engine, "create", create)
    made = await rest("POST", "/v1/sessions", {"agent": "shell"}, expect=201)
    await asked.wait()
    await rest("POST", f"/v1/sessions/{made['id']}/stop")
    await make(specs[0])
    await eventually(lambda: _true(engine.machines() == []))


async def _true(value: bool) -> bool:
    return value


async def test_stop_many_times_at_once(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running()
    write(engine, session, "file", "work")
    stops = [rest("POST", f"/v1/sessions/{session['id']}/stop") for _ in range(5)]
    assert {stopped["state"] for stopped in await asyncio.gather(*stops)} == {"stopped"}
    assert engine.calls.count("destroy") == 1
    assert await saved(rest, session) == {"workspace/file": digest(b"work")}


async def test_delete_running_stopped_and_deleted(rest: Rest, engine: ProcessEngine, short: Path) -> None:
    session = await rest.running(name="mine")
    write(engine, session, "file", "work")
    await rest("POST", f"/v1/sessions/{session['id']}/save")
    for _ in range(2):
        assert (await rest("POST", "/v1/sessions/mine/stop?delete=1"))["state"] == "stopped"
    assert engine.machines() == []
    await rest("GET", "/v1/sessions/mine", expect=404)
    await rest("GET", f"/v1/sessions/{session['id']}/snapshots", expect=404)
    await rest("POST", "/v1/sessions/mine/stop", expect=404)
    assert await rest("GET", "/v1/sessions?all=1") == []
    assert not list((short / "data" / "store").rglob("heads/*"))
    second = await rest.running(name="mine")
    await rest("POST", "/v1/sessions/mine/stop")
    await rest("POST", "/v1/sessions/mine/stop?delete=1")
    await rest("GET", f"/v1/sessions/{second['id']}", expect=404)


async def test_deleting_twice_spares_a_session_whose_label_begins_alike(rest: Rest) -> None:
    for name in ("web", "web-2"):
        await rest.running(name=name)
    for _ in range(2):
        assert (await rest("POST", "/v1/sessions/web/stop?delete=1"))["label"] == "web"
    assert [session["label"] for session in await rest("GET", "/v1/sessions")] == ["web-2"]
    assert (await rest("POST", "/v1/sessions/web-/stop?delete=1"))["label"] == "web-2"


async def test_delete_while_saving(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running()
    for number in range(200):
        write(engine, session, f"file{number}", "x" * 10_000 + str(number))
    save = asyncio.create_task(rest("POST", f"/v1/sessions/{session['id']}/save", expect=200))
    await asyncio.sleep(0)
    await rest("POST", f"/v1/sessions/{session['id']}/stop?delete=1")
    save.cancel()
    await asyncio.gather(save, return_exceptions=True)
    assert engine.machines() == []
    await rest("GET", f"/v1/sessions/{session['id']}", expect=404)


# -------------------------------------------------------------------------------------------- failures


class Failing(ProcessEngine):
    """Fails where it is told to."""

    faults: dict[str, Exception]

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.faults = {}

    def _fail(self, where: str) -> None:
        if where in self.faults:
            raise self.faults[where]

    async def create(self, spec: MachineSpec) -> Any:
        self._fail("create")
        return await super().create(spec)

    async def start(self, machine: str) -> None:
        self._fail("start")
        await super().start(machine)

    async def inspect(self, machine: str) -> Any:
        self._fail("inspect")
        return await super().inspect(machine)

    async def destroy(self, machine: str) -> None:
        self._fail("destroy")
        await super().destroy(machine)

    def salvage(self, machine: str) -> Any:
        self._fail("salvage")
        return super().salvage(machine)


@pytest.fixture
def engine(short: Path) -> Any:
    engine = Failing(short / "machines")
    yield engine
    engine.destroy_all()


@pytest.mark.parametrize("where", ["create", "start"])
@pytest.mark.parametrize("error", [ImageMissing(image="x"), EngineDown(reason="gone"), RuntimeError("a bug")])
async def test_a_start_that_fails_says_why(rest: Rest, engine: Failing, where: str, error: Exception) -> None:
    engine.faults[where] = error
    made = await rest("POST", "/v1/sessions", {"agent": "shell"}, expect=201)
    session = await rest.until(made["id"], lambda now: now["state"] == "stopped")
    assert session["reason"] == "failed"
    assert session["error"]["code"] == getattr(error, "code", "error")
    assert engine.machines() == []


async def test_an_engine_that_is_away_delays_the_end(rest: Rest, engine: Failing) -> None:
    session = await rest.running()
    engine.faults["inspect"] = EngineDown(reason="gone")
    for _ in range(2):
        refused = await rest("POST", f"/v1/sessions/{session['id']}/stop", expect=503)
        assert (refused["error"], "gone" in refused["message"]) == ("stop-delayed", True)
        waiting = await rest("GET", f"/v1/sessions/{session['id']}")
        assert (waiting["state"], waiting["step"]) == ("stopping", "waiting for the engine")
    engine.faults.clear()
    stopped = await rest.until(session["id"], lambda now: now["state"] == "stopped")
    assert (stopped["reason"], stopped["error"], stopped["step"]) == ("user", None, "")


async def test_a_delete_that_the_engine_delays_says_so(rest: Rest, engine: Failing) -> None:
    session = await rest.running()
    engine.faults["destroy"] = EngineDown(reason="gone")
    for _ in range(2):
        refused = await rest("POST", f"/v1/sessions/{session['id']}/stop?delete=1", expect=503)
        assert refused["error"] == "stop-delayed"
    engine.faults.clear()
    await rest("POST", f"/v1/sessions/{session['id']}/stop?delete=1")
    assert engine.machines() == []
    await rest("GET", f"/v1/sessions/{session['id']}", expect=404)


async def test_a_last_save_that_fails_keeps_the_machine_and_is_tried_again(rest: Rest, engine: Failing) -> None:
    session = await rest.running()
    write(engine, session, "file", "precious")
    engine.faults["salvage"] = EngineFailed(action="salvage", reason="no")
    engine.kill(session["machine_id"])
    stopped = await rest.until(session["id"], lambda now: now["state"] == "stopped")
    assert stopped["error"]["code"] == "save-failed"
    assert engine.machines() == [session["machine_id"]]
    engine.faults.clear()
    mended = await rest.until(session["id"], lambda now: now["error"] is None)
    assert (mended["state"], mended["reason"]) == ("stopped", "crashed")
    assert await saved(rest, session) == {"workspace/file": digest(b"precious")}
    assert engine.machines() == []


async def test_a_kept_machine_can_be_given_up(rest: Rest, engine: Failing) -> None:
    session = await rest.running()
    engine.faults["salvage"] = EngineFailed(action="salvage", reason="no")
    engine.kill(session["machine_id"])
    await rest.until(session["id"], lambda now: now["state"] == "stopped")
    await rest("POST", f"/v1/sessions/{session['id']}/stop?delete=1")
    assert engine.machines() == []
    await rest("GET", f"/v1/sessions/{session['id']}", expect=404)


async def test_list_works_without_an_engine(short: Path) -> None:
    def broken(*_: object) -> ProcessEngine:
        raise EngineDown(reason="gone")

    async with a_server(short / "data", broken) as (_, rest):
        made = await rest("POST", "/v1/sessions", {"agent": "shell"}, expect=201)
        stopped = await rest.until(made["id"], lambda now: now["state"] == "stopped")
        assert stopped["error"]["code"] == "engine-down"
        assert len(await rest("GET", "/v1/sessions")) == 1


# -------------------------------------------------------------------------------------------- time to live


async def test_time_to_live_ends_a_session_like_stop_does(rest: Rest, engine: ProcessEngine, server: Server) -> None:
    session = await rest.running()
    write(engine, session, "file", "work")
    await server.database.execute(update(table).values(ttl_sec=2))
    stopped = await rest.until(session["id"], lambda now: now["state"] == "stopped")
    assert (stopped["reason"], stopped["status"], stopped["error"]) == ("ttl", "timed_out", None)
    assert await saved(rest, session) == {"workspace/file": digest(b"work")}
    assert engine.machines() == []


# -------------------------------------------------------------------------------------------- secrets


async def test_secrets_are_written_nowhere(rest: Rest, short: Path, engine: ProcessEngine) -> None:
    canary = "canary-5b1f5f3e"
    made = {"env": {"A": f"{canary}-1"}, "secrets": {"B": f"{canary}-2"}}
    session = await rest.running(**made)
    await rest("POST", f"/v1/sessions/{session['id']}/secrets", {"secrets": {"C": f"{canary}-3"}})
    await rest("POST", f"/v1/sessions/{session['id']}/save")
    assert canary not in json.dumps(await rest("GET", f"/v1/sessions/{session['id']}"))
    await rest("POST", f"/v1/sessions/{session['id']}/stop")
    everything = everything_in(short)
    assert session["label"].encode() in everything
    assert canary.encode() not in everything
