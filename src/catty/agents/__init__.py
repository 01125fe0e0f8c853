"""Agent profiles: how each coding agent is started, continued and kept from asking first-run questions.

A profile is a function that makes an `AgentLaunch`, plain data for the machine: neither server nor runtime knows an agent by name.
To add one, write its module and name it in `PROFILES`.
"""

from __future__ import annotations

from catty.agents import claude, codex, shell
from catty.errors import UnknownAgent
from catty.wire.claim import AgentLaunch

__all__ = ["PROFILES", "launch"]

PROFILES = {"claude": claude.launch, "codex": codex.launch, "shell": shell.launch}


def launch(agent: str, *, session: str, prompts: bool) -> AgentLaunch:
    """How to run `agent` ("claude", "codex", "shell") in the session with UUID `session`.

    `prompts`: the agent asks before it acts, as it does outside; otherwise everything is approved inside the machine.
    Raises UnknownAgent.
    """
    try:
        profile = PROFILES[agent]
    except KeyError:
        raise UnknownAgent(agent=agent) from None
    return profile(session, prompts)
