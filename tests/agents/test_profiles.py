"""Profiles are data: what they promise can be read off. That the real programs obey is tests/e2e's business."""

from __future__ import annotations

import json
import tomllib
import uuid

import pytest

from catty import agents
from catty.errors import UnknownAgent
from catty.wire.claim import AgentLaunch, Claim

SESSION = str(uuid.uuid4())


def content(launch: AgentLaunch, path: str) -> str:
    return next(file.content for file in launch.files if file.path == path)


@pytest.mark.parametrize("agent", agents.PROFILES)
@pytest.mark.parametrize("prompts", [False, True])
def test_a_profile_survives_the_claim(agent: str, prompts: bool) -> None:
    launch = agents.launch(agent, session=SESSION, prompts=prompts)
    claim = Claim(machine="m", session=SESSION, label="brave-tiger-1234", token="t", agent=launch)
    assert Claim.from_text(claim.to_text()) == claim


def test_claude_keeps_one_conversation_per_session() -> None:
    launch = agents.launch("claude", session=SESSION, prompts=False)
    assert launch.start == ("claude", "--session-id", SESSION)
    assert launch.resume == ("claude", "--resume", SESSION)
    assert launch.transcript == f".claude/projects/-workspace/{SESSION}.jsonl"


def test_claude_asks_nothing_at_first_start() -> None:
    launch = agents.launch("claude", session=SESSION, prompts=False)
    state = json.loads(content(launch, ".claude.json"))
    assert state["hasCompletedOnboarding"] is True
    assert state["projects"]["/workspace"]["hasTrustDialogAccepted"] is True
    assert json.loads(content(launch, ".claude/settings.json"))["permissions"]["defaultMode"] == "bypassPermissions"


def test_prompts_leave_the_permissions_alone() -> None:
    claude = agents.launch("claude", session=SESSION, prompts=True)
    assert all(file.path != ".claude/settings.json" for file in claude.files)
    config = tomllib.loads(content(agents.launch("codex", session=SESSION, prompts=True), ".codex/config.toml"))
    assert "approval_policy" not in config


def test_codex_approves_everything_in_the_machine() -> None:
    config = tomllib.loads(content(agents.launch("codex", session=SESSION, prompts=False), ".codex/config.toml"))
    assert (config["approval_policy"], config["sandbox_mode"]) == ("never", "danger-full-access")
    assert config["projects"]["/workspace"]["trust_level"] == "trusted"


def test_an_unknown_agent_is_a_usage_error() -> None:
    with pytest.raises(UnknownAgent, match="no agent 'emacs'"):
        agents.launch("emacs", session=SESSION, prompts=False)
