"""What every error is, and the six kinds that decide a command's exit code."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class CattyError(Exception):
    """{message}"""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    hint: str = ""

    def __init__(self, message: str | None = None, *, hint: str | None = None, **fields: Any) -> None:
        """`fields` fill the class's message and hint; `message` and `hint` replace them as they stand."""
        self.fields = fields
        template = inspect.cleandoc(type(self).__doc__ or "{message}")
        self.message = message if message is not None else template.format(**fields)
        self.hint = hint if hint is not None else type(self).hint.format(**fields) if fields else type(self).hint
        super().__init__(self.message)

    def to_json(self) -> dict[str, Any]:
        """The body of an HTTP error response (`error`, `message`: the dialect of existing clients)."""
        return {"error": self.code, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}


class InternalError(CattyError):
    """catty stumbled: {what}"""

    code = "internal"
    hint = "This is a mistake in catty. Run it again with CATTY_DEBUG=1 and report what ~/.catty/debug.log says."


class FilesFailed(CattyError):
    """{what}: {reason}"""

    code = "files-failed"
    hint = "Look at the space on that disk (`df`), and whether you may write there."


class RemoteError(CattyError):
    """{message}"""

    # An error whose code this client does not know (a newer server); keeps what the server said.
    def __init__(self, *, code: str, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code  # type: ignore[misc]  # an instance speaks for one code
        self.exit_code = exit_code  # type: ignore[misc]


class UsageError(CattyError):
    """{message}"""

    code, exit_code, http_status = "usage", 2, 400
    hint = "`catty --help` shows the commands."


class NotFound(CattyError):
    """{message}"""

    code, exit_code, http_status = "not-found", 4, 404


class Conflict(CattyError):
    """{message}"""

    code, exit_code, http_status = "conflict", 5, 409


class MachineError(CattyError):
    """{message}"""

    code, exit_code, http_status = "machine-error", 6, 502
    hint = "`catty doctor` examines this machine; `catty server logs` has details."


class ConnectionLost(CattyError):
    """connection to {server} lost: {reason}"""

    code, exit_code, http_status = "connection-lost", 7, 503
    hint = "The session goes on; `catty connect` brings it back."
