"""What a request for a new session may say: checked, with errors that name the field. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from catty import agents, constants
from catty.errors import BadRequest, InvalidDuration, InvalidLabel, InvalidLimit, InvalidName, ReservedName
from catty.labels import is_label
from catty.server.sessions.find import is_uuid

__all__ = ["NewSession", "check_environment", "parse_new_session"]

CPUS_RANGE: Final = (0.1, 512.0)
MEMORY_RANGE_MB: Final = (256, 4 << 20)  # below 256 MiB no agent starts
SIZE_RANGE: Final = (1, 0xFFFF)
ENVIRONMENT_MAX_BYTES: Final = 1 * constants.MIB  # beside the agent's files it must fit into one claim
VALUE_MAX_BYTES: Final = 128 * constants.KIB - 1024  # Linux takes no environment string beyond 128 KiB
REQUEST_ID_MAX: Final = 64

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class NewSession:
    """A checked request. `env` holds the user's settings and secrets alike; it is never written down (hence not in `repr`)."""

    agent: str
    name: str
    ttl_sec: int
    cpus: float
    memory_mb: int
    upload: bool
    prompts: bool
    cols: int
    rows: int
    request_id: str | None
    env: dict[str, str] = field(repr=False)


def parse_new_session(body: Any) -> NewSession:
    """The request in a JSON body; unknown keys are ignored (a newer client). An empty `name` asks for a random label.

    Raises UsageErrors: BadRequest, UnknownAgent, InvalidLabel, InvalidDuration, InvalidLimit, InvalidName, ReservedName.
    """
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    agent = _typed(body, "agent", str, "claude")
    agents.launch(agent, session="", prompts=False)
    name = _typed(body, "name", str, "")
    if name and (not is_label(name) or is_uuid(name)):  # a label that reads as an id could stand in for a session
        raise InvalidLabel(label=name)
    ttl = _typed(body, "ttl_sec", int, constants.TTL_DEFAULT_S)
    if not constants.TTL_MIN_S <= ttl <= constants.TTL_MAX_S:
        raise InvalidDuration(text=f"{ttl}s", low="5m", high="7d")
    workspace = _typed(body, "workspace", str, "empty")
    if workspace not in ("upload", "empty"):
        raise BadRequest("'workspace' is upload or empty")
    request_id = _typed(body, "request_id", str, "")
    if len(request_id) > REQUEST_ID_MAX:
        raise BadRequest(f"'request_id' has at most {REQUEST_ID_MAX} characters")
    return NewSession(
        agent=agent,
        name=name,
        ttl_sec=ttl,
        cpus=_within(body, "cpus", constants.CPUS_DEFAULT, CPUS_RANGE),
        memory_mb=int(_within(body, "memory_mb", constants.MEMORY_DEFAULT_MB, MEMORY_RANGE_MB)),
        upload=workspace == "upload",
        prompts=_typed(body, "prompts", bool, False),
        cols=int(_within(body, "cols", 80, SIZE_RANGE)),
        rows=int(_within(body, "rows", 24, SIZE_RANGE)),
        request_id=request_id or None,
        env=check_environment(_typed(body, "env", dict, {}) | _typed(body, "secrets", dict, {})),
    )


def check_environment(env: Any) -> dict[str, str]:
    """`env` itself if an environment may hold it. Raises BadRequest, InvalidName, ReservedName; no error repeats a value."""
    if not isinstance(env, dict):
        raise BadRequest("an environment is a JSON object")
    total = 0
    for name, value in env.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidName(name=str(name)[:80])
        if name in constants.RESERVED_NAMES or name.startswith(constants.RESERVED_PREFIXES):
            raise ReservedName(name=name)
        if not isinstance(value, str) or "\0" in value:
            raise BadRequest(f"the value of '{name}' must be text without NUL")
        try:
            size = len(name) + len(value.encode())
        except UnicodeEncodeError:
            raise BadRequest(f"the value of '{name}' is no valid Unicode") from None
        if size > VALUE_MAX_BYTES:
            raise BadRequest(f"the value of '{name}' is longer than {VALUE_MAX_BYTES} bytes")
        total += size
    if total > ENVIRONMENT_MAX_BYTES:
        raise BadRequest(f"the environment is larger than {ENVIRONMENT_MAX_BYTES} bytes")
    return env


def _typed(body: dict[str, Any], key: str, type_: type, default: Any) -> Any:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        raise BadRequest(f"'{key}' must be {_WORDS[type_]}")
    return value


_WORDS: Final = {str: "text", int: "a whole number", bool: "true or false", dict: "an object"}


def _within(body: dict[str, Any], key: str, default: float, bounds: tuple[float, float]) -> float:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadRequest(f"'{key}' must be a number")
    if not bounds[0] <= value <= bounds[1]:
        raise InvalidLimit(name=key, low=bounds[0], high=bounds[1], value=value)
    return value
