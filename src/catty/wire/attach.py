"""JSON payloads of the attach and exec dialects, as values (docs/protocol.md, "Attach", "Exec")."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from catty.errors import BadRequest
from catty.wire.frames import NO_OFFSET

__all__ = ["Exec", "Resume", "Resumed"]

_CLIENT_ID_MAX = 64


@dataclass(frozen=True, slots=True)
class Resume:
    """A client's first message.

    `client` names the client over its reconnects (random hex); `epoch` and `output` (the frame's offset) say what it has seen, an
    empty epoch that it has seen nothing; `input` is the end of the input that it has sent so far; `fresh` marks the first
    connection of a `new` or `connect`, which starts an agent that has exited again (a reconnect does not).
    """

    client: str
    cols: int
    rows: int
    epoch: str = ""
    output: int = NO_OFFSET
    input: int = 0
    fresh: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "epoch": self.epoch,
            "in": self.input,
            "cols": self.cols,
            "rows": self.rows,
            "fresh": self.fresh,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], output: int) -> Resume:
        """Raises BadRequest where a field has the wrong type or range."""
        client = _text(value, "client")
        if not 0 < len(client) <= _CLIENT_ID_MAX:
            raise BadRequest("client id must have 1 to 64 characters")
        return cls(
            client,
            max(1, _number(value, "cols", 80)),
            max(1, _number(value, "rows", 24)),
            _text(value, "epoch"),
            output,
            _number(value, "in", 0),
            value.get("fresh") is True,
        )


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine's answer: its epoch, where output goes on (the frame's offset), how much input of this client it has taken,
    the acknowledgement window in bytes, and whether a SNAPSHOT follows (`exact` false: the client must clear its screen)."""

    epoch: str
    output: int
    input: int
    window: int
    exact: bool
    cols: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "in": self.input,
            "window": self.window,
            "exact": self.exact,
            "cols": self.cols,
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], output: int) -> Resumed:
        """Raises BadRequest where a field has the wrong type."""
        return cls(
            _text(value, "epoch"),
            output,
            _number(value, "in", 0),
            _number(value, "window", 0),
            value.get("exact") is True,
            _number(value, "cols", 80),
            _number(value, "rows", 24),
        )


@dataclass(frozen=True, slots=True)
class Exec:
    """First message of an exec connection. `tty` gives it a PTY of cols × rows; `user` is `agent` or `root`; `env` is added to the
    session's environment; an empty `cwd` is /workspace."""

    argv: tuple[str, ...]
    tty: bool = False
    user: str = "agent"
    cwd: str = ""
    cols: int = 80
    rows: int = 24
    env: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "argv": list(self.argv),
            "tty": self.tty,
            "user": self.user,
            "cwd": self.cwd,
            "cols": self.cols,
            "rows": self.rows,
            "env": self.env,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Exec:
        """Raises BadRequest where a field has the wrong type, or there is no command."""
        argv, env = value.get("argv"), value.get("env", {})
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise BadRequest("exec needs a command")
        if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
            raise BadRequest("exec's env must map names to text")
        user = _text(value, "user") or "agent"
        if user not in ("agent", "root"):
            raise BadRequest("exec's user is agent or root")
        return cls(
            tuple(argv),
            value.get("tty") is True,
            user,
            _text(value, "cwd"),
            max(1, _number(value, "cols", 80)),
            max(1, _number(value, "rows", 24)),
            env,
        )


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key, "")
    if not isinstance(text, str):
        raise BadRequest(f"'{key}' must be text")
    return text


def _number(value: dict[str, Any], key: str, default: int) -> int:
    number = value.get(key, default)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise BadRequest(f"'{key}' must be a number")
    return number
