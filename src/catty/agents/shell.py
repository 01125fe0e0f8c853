"""A plain login shell, for people and for scripts."""

from __future__ import annotations

from catty.wire.claim import AgentLaunch


def launch(session: str, prompts: bool) -> AgentLaunch:  # noqa: ARG001  # every profile has this form
    """See `catty.agents.launch`."""
    return AgentLaunch(name="shell", start=("bash", "-l"))
