"""A session from its creation to its end, with the real runtime in local processes."""

from __future__ import annotations

from pathlib import Path

from server.process_engine import ProcessEngine
from server.support import Rest


def machine_of(engine: ProcessEngine, session: dict[str, str]) -> Path:
    return engine.root / session["machine_id"]


async def test_new_to_stopped(rest: Rest, engine: ProcessEngine) -> None:
    session = await rest.running()
    assert session["error"] is None
    (machine_of(engine, session) / "workspace" / "file").write_text("work")
    stopped = await rest("POST", f"/v1/sessions/{session['label']}/stop")
    assert (stopped["state"], stopped["reason"], stopped["error"]) == ("stopped", "user", None)
    assert engine.machines() == []
    heads = await rest("GET", f"/v1/sessions/{session['id']}/snapshots")
    assert heads[-1]["files"] == 1
    again = await rest("POST", f"/v1/sessions/{session['label']}/stop")
    assert again["version"] == stopped["version"]
