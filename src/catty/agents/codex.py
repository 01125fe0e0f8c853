"""OpenAI's Codex (tested with 0.169.0). It chooses its conversation's id itself; a later start takes up the newest one."""

from __future__ import annotations

from catty.constants import WORKSPACE_DIR
from catty.wire.claim import AgentFile, AgentLaunch

_CONFIG = """\
check_for_update_on_startup = false
{policy}
[notice]
hide_full_access_warning = true

[projects."{workspace}"]
trust_level = "trusted"
"""

_APPROVED = """\
approval_policy = "never"
sandbox_mode = "danger-full-access"
"""

# Codex takes an API key from its own login only, which reads it from standard input.
_LOG_IN = """\
[ -n "${OPENAI_API_KEY:-}" ] && [ ! -e ~/.codex/auth.json ] || exit 0
printenv OPENAI_API_KEY | codex login --with-api-key
"""


def launch(session: str, prompts: bool) -> AgentLaunch:  # noqa: ARG001  # every profile has this form
    """See `catty.agents.launch`."""
    config = _CONFIG.format(policy="" if prompts else _APPROVED, workspace=WORKSPACE_DIR)
    return AgentLaunch(
        name="codex",
        start=("codex",),
        resume=("codex", "resume", "--last"),
        transcript=".codex/sessions/*/*/*/rollout-*.jsonl",
        conversation=(".codex/sessions",),
        files=(AgentFile(".codex/config.toml", config),),
        prepare=_LOG_IN,
    )
