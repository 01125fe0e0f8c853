"""The claim: what makes a blank machine one session's machine, once (docs/protocol.md, "Claim").

A machine boots blank, with the runtime alone. The server dials it and sends the claim as a text (JSON) and, where the endpoint is
TCP, an Ed25519 signature over exactly that text, made with the key whose public half the machine got at its creation. The claim
names the machine, so one recorded elsewhere does not fit; the first claim wins, a repetition of the same one is answered as the
first was (a server that died between sending and recording asks again), any other is refused. Secrets travel in the claim and
nowhere else: they live in the memory of the machine's PID 1.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from catty.errors import BadRequest

__all__ = ["AgentFile", "AgentLaunch", "Claim"]


@dataclass(frozen=True, slots=True)
class AgentFile:
    """A file that the agent needs before its first start; `path` is relative to its home.

    `merge`: the content is a JSON object whose keys are laid over those of an existing file (nested objects too), so that
    what a restored home holds is kept. Otherwise an existing file is left alone.
    """

    path: str
    content: str
    mode: int = 0o600
    merge: bool = False


@dataclass(frozen=True, slots=True)
class AgentLaunch:
    """How the machine runs the agent. Plain data: the runtime knows no agent by name.

    `start` is the command line of the first start; `resume` that of later ones, used when a file fits `transcript` (a glob
    relative to the home; empty: always `start`). `conversation` lists the paths under the home that belong to a snapshot.
    `env` are settings, not secrets; `prepare` is a shell script run as the agent's user before each start ("" for none).
    """

    name: str
    start: tuple[str, ...]
    resume: tuple[str, ...] = ()
    transcript: str = ""
    conversation: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    files: tuple[AgentFile, ...] = ()
    prepare: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """`token`: what the server presents on every later connection to this machine (hex). `env`: the user's secrets and settings,
    given to the agent and to `exec`. `secrets_pending`: the user's secrets are not known to the server (a machine made again);
    the agent waits for the control request `env`."""

    machine: str
    session: str
    label: str
    token: str
    agent: AgentLaunch
    env: dict[str, str] = field(default_factory=dict)
    cols: int = 80
    rows: int = 24
    secrets_pending: bool = False

    def to_text(self) -> str:
        """The text that is sent and signed."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Claim:
        """Raises BadRequest if the text is no claim. Unknown keys are ignored (a newer server)."""
        try:
            value: Any = json.loads(text)
            launch = value["agent"]
            files = tuple(AgentFile(**_known(AgentFile, file)) for file in launch.get("files", ()))
            fields = _known(AgentLaunch, launch) | {"files": files}
            for name in ("start", "resume", "conversation"):
                fields[name] = tuple(fields.get(name, ()))
            return cls(**(_known(cls, value) | {"agent": AgentLaunch(**fields)}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(f"not a claim: {type(error).__name__}") from None


def _known(cls: type, value: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    return {key: item for key, item in value.items() if key in names}
