"""What options take: durations, sizes, environment, detach keys. Each raises our own errors."""

from __future__ import annotations

import os
import re
from typing import Final

import click

from catty import constants
from catty.errors import InvalidDuration, UsageError

__all__ = ["DETACH_KEYS", "DURATION", "MEMORY", "SIZE", "environment"]

_DURATION: Final = re.compile(r"([0-9]+)([smhd]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class _Duration(click.ParamType[int]):
    name = "TIME"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ARG002
        if isinstance(value, int):
            return value
        match = _DURATION.fullmatch(value.strip().lower())
        seconds = int(match[1]) * _SECONDS[match[2]] if match else -1
        if not constants.TTL_MIN_S <= seconds <= constants.TTL_MAX_S:
            raise InvalidDuration(text=value, low="5m", high="7d")
        return seconds


class _Bytes(click.ParamType[int]):
    """A size; a plain number counts in `unit` bytes."""

    name = "SIZE"

    def __init__(self, unit: int) -> None:
        self._unit = unit

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ARG002
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if not match:
            raise UsageError(f"'{value}' is not a size", hint="Write 512m, 4g or 1.5g.")
        power = _POWERS[match[2].lower()]
        return int(float(match[1]) * (1024**power if power else self._unit))


class _DetachKeys(click.ParamType[tuple[bytes, ...]]):
    name = "KEYS"

    def convert(
        self,
        value: str | tuple[bytes, ...],
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> tuple[bytes, ...]:
        from catty.client.keys import detach_keys

        return detach_keys(value) if isinstance(value, str) else value


DETACH_KEYS: Final = _DetachKeys()
DURATION: Final = _Duration()  # seconds
SIZE: Final = _Bytes(1)  # bytes
MEMORY: Final = _Bytes(constants.MIB)  # bytes; a plain number is MiB


def environment(items: tuple[str, ...]) -> dict[str, str]:
    """The variables that `--env NAME` (taken from ours) and `--env NAME=VALUE` give. Raises UsageError, InvalidName, ReservedName."""
    from catty.client.secrets import check_name

    values = {}
    for item in items:
        name, given, value = item.partition("=")
        check_name(name)
        if not given:
            if name not in os.environ:
                raise UsageError(f"--env {name}: no such variable here", hint=f"Set it, or write --env {name}=VALUE.")
            value = os.environ[name]
        values[name] = value
    return values
