"""Every error that a user can see: class, stable code, exit code, HTTP status, message and what to do.

    CattyError
    ├── UsageError                  exit 2    400
    ├── NotLoggedIn                 exit 3    401
    ├── NotFound                    exit 4    404
    ├── Conflict                    exit 5    409
    ├── MachineError                exit 6    502
    ├── ConnectionLost              exit 7    503
    └── (others)                    exit 1    500

A class's docstring is its message, with `{fields}` that the constructor's keywords fill; `hint` is the line that says what to do
(it may hold fields too). The server sends `to_json()`, the client raises what `from_json()` makes of it, so an error reads the
same wherever it arose. Codes are stable: scripts match them. Each one stands in docs/errors.md (a test sees to it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Callers name errors as catty.errors.NAME; in which of the three modules one is defined is of no matter to them.
from catty.errors.base import *  # noqa: F403
from catty.errors.base import CattyError, RemoteError
from catty.errors.machine import *  # noqa: F403
from catty.errors.request import *  # noqa: F403


def all_errors() -> Iterator[type[CattyError]]:
    """Every error class with a code of its own, in order of definition."""

    def below(cls: type[CattyError]) -> Iterator[type[CattyError]]:
        for child in cls.__subclasses__():
            if child is not RemoteError:
                yield child
                yield from below(child)

    yield CattyError
    yield from below(CattyError)


def from_json(body: Any) -> CattyError:
    """The error that a server's `to_json()` described; a `RemoteError` where its code is not known here."""
    if not isinstance(body, dict):
        return RemoteError(code="error", message=str(body), hint="", exit_code=1)
    code, message = str(body.get("error", "error")), str(body.get("message", ""))
    hint = str(body.get("hint", ""))
    for cls in all_errors():
        if cls.code == code:
            error = cls.__new__(cls)
            CattyError.__init__(error, message, hint=hint)
            return error
    exit_code = body.get("exit_code", 1)
    return RemoteError(code=code, message=message, hint=hint, exit_code=exit_code if isinstance(exit_code, int) else 1)
