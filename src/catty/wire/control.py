"""Control messages between server and machine: JSON text messages on the WebSocket `/control` of the `terminal` endpoint.

    server → machine   {"id": 7, "op": "status", …}
    machine → server   {"id": 7, "ok": true, …}  or  {"id": 7, "ok": false, "error": code, "message": …}
    machine → server   {"event": "agent-exited", …}            at any time, to every control connection

Before the claim only `hello` and `claim` are answered; after it the connection's `Authorization: Bearer TOKEN` must be the
claim's. Whatever comes from a machine is hostile input: `parse` checks form and size, the caller checks meaning.

    op          request                              reply
    hello       -                                    machine, version, epoch, claimed (bool), session ("" if blank)
    claim       claim (text), signature (hex, TCP)   epoch
    start       -                                    -            the workspace is in place: the agent may start (idempotent)
    status      -                                    see `Status`
    env         env {}                               -            adds to the session's environment; ends secrets_pending
    notice      level, code, message                 -            shown by attached clients, not part of the stream
    signal      signal (INT TERM HUP KILL)           -            to the agent's process group
    shutdown    grace (seconds)                      -            HUP, TERM, KILL to the agent; the machine stays for the last save

    event           fields
    agent-started   pid, resumed (bool)
    agent-exited    code (int|null), signal (int|null)
    waiting         for ("secrets" | "workspace")
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from catty.errors import BadRequest

__all__ = ["MESSAGE_MAX_BYTES", "Status", "dump", "parse"]

MESSAGE_MAX_BYTES: Final = 4 << 20  # a claim with files and secrets; far above any honest message


@dataclass(frozen=True, slots=True)
class Status:
    """What a machine says of itself. Ages are seconds on its own monotonic clock; None = never."""

    agent: str  # "waiting" | "running" | "exited"
    exit_code: int | None
    exit_signal: int | None
    clients: int
    output: int  # bytes printed so far
    input: int  # bytes typed so far, all clients
    output_age: float | None
    input_age: float | None
    execs: int  # running now
    cpu_seconds: float  # used by all processes of the machine but the runtime's

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Status:
        """Raises BadRequest where a field has the wrong type."""
        try:
            return cls(
                agent=str(value["agent"]),
                exit_code=_int_or_none(value["exit_code"]),
                exit_signal=_int_or_none(value["exit_signal"]),
                clients=int(value["clients"]),
                output=int(value["output"]),
                input=int(value["input"]),
                output_age=_float_or_none(value["output_age"]),
                input_age=_float_or_none(value["input_age"]),
                execs=int(value["execs"]),
                cpu_seconds=float(value["cpu_seconds"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadRequest(f"not a status: {type(error).__name__}") from None


def dump(message: dict[str, Any]) -> str:
    """The text of a message."""
    return json.dumps(message, separators=(",", ":"))


def parse(text: str | bytes) -> dict[str, Any]:
    """The message in a text. Raises BadRequest if it is too long or no JSON object."""
    if len(text) > MESSAGE_MAX_BYTES:
        raise BadRequest("control message too long")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest("control message is no JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("control message is no JSON object")
    return value


def _int_or_none(value: Any) -> int | None:
    return None if value is None else int(value)


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
