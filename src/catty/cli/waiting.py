"""Waiting for a session to run, with what it does meanwhile."""

from __future__ import annotations

from typing import Any, Final

from catty.cli.context import Cli
from catty.cli.output import Steps
from catty.errors import SessionNotRunning, from_json

__all__ = ["until_running"]

_STEPS: Final = {
    "machine": "starting the machine",
    "claim": "preparing the machine",
    "workspace": "putting the files in place",
    "start": "starting the agent",
}


def until_running(cli: Cli, session: dict[str, Any], steps: Steps | None = None) -> dict[str, Any]:
    """`session` once it runs. Raises what made it fail, or SessionNotRunning."""
    steps = steps or Steps()
    while session["state"] == "provisioning":
        step = session.get("step") or ""
        steps.say(_STEPS.get(step, step) or "starting")
        session = cli.api.session(session["id"], wait=session["version"])
    steps.clear()
    if session["state"] == "running":
        return session
    if session.get("reason") == "failed" and isinstance(session.get("error"), dict):
        error = session["error"]
        raise from_json({"error": error.get("code"), **error})
    state = session["state"] if not session.get("reason") else f"{session['state']} ({session['reason']})"
    raise SessionNotRunning(label=session["label"], state=state)
