"""Claude Code (tested with 2.1.330): its first-run files, and its conversation by id.

The id of the conversation is the session's UUID from the first start on (`--session-id`), so a later start in the same machine or
another one finds it (`--resume`) wherever its transcript was restored.
"""

from __future__ import annotations

import json

from catty.constants import WORKSPACE_DIR
from catty.wire.claim import AgentFile, AgentLaunch

# Where Claude Code keeps the transcripts of a directory: its path with every `/` as `-`.
_TRANSCRIPTS = f".claude/projects/{WORKSPACE_DIR.replace('/', '-')}"

_QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
    "DISABLE_AUTOUPDATER": "1",
}

_ONBOARDED = {
    "hasCompletedOnboarding": True,
    "hasSeenAutoDefaultNotice": True,
    "hasSeenAutoDefaultNudge": True,
    "projects": {WORKSPACE_DIR: {"hasTrustDialogAccepted": True}},
}

_APPROVED = {"permissions": {"defaultMode": "bypassPermissions"}, "skipDangerousModePermissionPrompt": True}

# The dialog about an API key from the environment asks once per key and remembers its last 20 characters. The key may arrive long
# after the claim (a resumed session), so this runs before every start; jq reads it from its environment, never from an argument.
_APPROVE_API_KEY = """\
[ -n "${ANTHROPIC_API_KEY:-}" ] || exit 0
umask 077
jq '.customApiKeyResponses.approved = ((.customApiKeyResponses.approved // []) + [env.ANTHROPIC_API_KEY[-20:]] | unique)' \\
    ~/.claude.json > ~/.claude.json.catty && mv ~/.claude.json.catty ~/.claude.json
"""


def launch(session: str, prompts: bool) -> AgentLaunch:
    """See `catty.agents.launch`."""
    files = [AgentFile(".claude.json", json.dumps(_ONBOARDED), merge=True)]
    if not prompts:
        files.append(AgentFile(".claude/settings.json", json.dumps(_APPROVED), merge=True))
    return AgentLaunch(
        name="claude",
        start=("claude", "--session-id", session),
        resume=("claude", "--resume", session),
        transcript=f"{_TRANSCRIPTS}/{session}.jsonl",
        conversation=(".claude/projects",),
        env=_QUIET,
        files=tuple(files),
        prepare=_APPROVE_API_KEY,
    )
