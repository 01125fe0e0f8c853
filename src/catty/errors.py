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

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

__all__ = [
    "CattyError",
    "Conflict",
    "ConnectionLost",
    "MachineError",
    "NotFound",
    "NotLoggedIn",
    "RemoteError",
    "UsageError",
    "all_errors",
    "from_json",
]


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


class RemoteError(CattyError):
    """{message}"""

    # An error whose code this client does not know (a newer server); keeps what the server said.
    def __init__(self, *, code: str, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code  # type: ignore[misc]  # an instance speaks for one code
        self.exit_code = exit_code  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------- usage


class UsageError(CattyError):
    """{message}"""

    code, exit_code, http_status = "usage", 2, 400
    hint = "`catty --help` shows the commands."


class InvalidLabel(UsageError):
    """'{label}' cannot be a session's name"""

    code = "invalid-label"
    hint = "Use lower-case letters, digits and inner hyphens, at most 63 characters."


class InvalidDuration(UsageError):
    """'{text}' is not a time between {low} and {high}"""

    code = "invalid-duration"
    hint = "Write 90s, 5m, 2h or 7d."


class UnknownAgent(UsageError):
    """no agent '{agent}'"""

    code = "unknown-agent"
    hint = "Agents: claude, codex, shell."


class ReservedName(UsageError):
    """'{name}' cannot be set: the machine needs its own value"""

    code = "reserved-name"
    hint = "Reserved: PATH HOME USER SHELL PWD LD_* CATTY_*. Choose another name."


class InvalidName(UsageError):
    """'{name}' is not the name of an environment variable"""

    code = "invalid-name"
    hint = "Use letters, digits and underscores, not starting with a digit."


class AmbiguousLabel(UsageError):
    """'{label}' fits several sessions: {matches}"""

    code = "ambiguous-label"
    hint = "Type more of the label."


class NotATerminal(UsageError):
    """{what} needs a terminal"""

    code = "not-a-terminal"
    hint = "Run it in a terminal, or use `catty new -d`, `catty exec` or `catty logs`."


class DumbTerminal(UsageError):
    """this terminal (TERM={term}) cannot show an agent's screen"""

    code = "dumb-terminal"
    hint = "Use a terminal with cursor control, e.g. TERM=xterm-256color, or `catty exec LABEL -- CMD`."


class BadRequest(UsageError):
    """{message}"""

    code = "bad-request"
    hint = "The request does not fit the protocol; update catty on both sides."


class InvalidLimit(UsageError):
    """{name} must be between {low} and {high}, not {value}"""

    code = "invalid-limit"


class RequestTooLarge(UsageError):
    """the request is larger than {limit}"""

    code, http_status = "request-too-large", 413
    hint = "The limits stand in docs/server.md."


class RequestTooSlow(UsageError):
    """the request did not arrive in time"""

    code, http_status = "request-too-slow", 408
    hint = "Check the connection to the server, then try again."


class ProtocolTooOld(UsageError):
    """this client does not speak {protocol}"""

    code, http_status = "protocol-too-old", 426
    hint = "Update catty on the client's side."


# ---------------------------------------------------------------------------------------------- access


class NotLoggedIn(CattyError):
    """not logged in to {server}"""

    code, exit_code, http_status = "not-logged-in", 3, 401
    hint = "`catty login URL --token` logs in."


class GitHubRefused(CattyError):
    """GitHub does not accept the token (it answered {status})"""

    code, exit_code = "github-refused", 3
    hint = "Make a new one at github.com/settings/tokens, then `catty secrets add github`."


class SecretsLocked(CattyError):
    """the stored secrets cannot be read: {reason}"""

    code = "secrets-locked"
    hint = "Unlock the keyring, or remove ~/.catty/secrets.json and add them again; `catty new --no-secrets` goes without."


class ForbiddenOrigin(CattyError):
    """request from a foreign page or to a foreign host name refused"""

    code, exit_code, http_status = "forbidden-origin", 3, 403
    hint = "Open the server under the address it was started with."


# ---------------------------------------------------------------------------------------------- not found


class NotFound(CattyError):
    """{message}"""

    code, exit_code, http_status = "not-found", 4, 404


class SessionNotFound(NotFound):
    """no session '{label}'"""

    code = "session-not-found"
    hint = "`catty list` shows all."


class SnapshotNotFound(NotFound):
    """session '{label}' has no {what}"""

    code = "snapshot-not-found"
    hint = "`catty list` shows when each session was last saved."


class PathNotFound(NotFound):
    """no '{path}' in the workspace of '{label}'"""

    code = "path-not-found"
    hint = "`catty exec LABEL -- ls` shows what is there."


class SecretNotFound(NotFound):
    """no secret '{name}'"""

    code = "secret-not-found"
    hint = "`catty secrets list` shows all."


# ---------------------------------------------------------------------------------------------- conflicts


class Conflict(CattyError):
    """{message}"""

    code, exit_code, http_status = "conflict", 5, 409


class LabelTaken(Conflict):
    """a session named '{label}' exists"""

    code = "label-taken"
    hint = "Choose another --name, or `catty stop {label} --delete` first."


class SessionNotRunning(Conflict):
    """session '{label}' is {state}"""

    code = "session-not-running"
    hint = "`catty download {label}` gets its files."


class WorkspaceExists(Conflict):
    """session '{label}' has its workspace already"""

    code = "workspace-exists"
    hint = "A workspace is uploaded once, while a session made with an upload is being provisioned."


class DestinationExists(Conflict):
    """'{path}' exists"""

    code = "destination-exists"
    hint = "Use --force to overwrite, or name another destination."


class UploadTooLarge(Conflict):
    """the workspace is {size} after exclusion, more than {limit}"""

    code, http_status = "upload-too-large", 413
    hint = "Add to .gitignore, raise --max-upload, or use --no-upload. Largest: {largest}."


class GitNotSelfContained(Conflict):
    """the git directory of '{path}' cannot be sent whole: {reason}"""

    code = "git-not-self-contained"
    hint = "`git repack -a -d` ends borrowing; --no-git sends the files without it."


class BlobsMissing(Conflict):
    """the snapshot names {count} blobs that the server does not have"""

    code = "blobs-missing"
    hint = "Send them and try again; `catty` does this by itself."


class HeadTaken(Conflict):
    """snapshot {number} of this session was written by somebody else"""

    code = "head-taken"
    hint = "Load the newest snapshot and try again; `catty` does this by itself."


class SyncLocked(Conflict):
    """another client (process {pid}) syncs into '{path}'"""

    code = "sync-locked"
    hint = "This one goes on without sync-back; use --sync-dir for another directory."


class CannotWrite(CattyError):
    """cannot write '{path}': {reason}"""

    code = "cannot-write"
    hint = "Look at permissions and free space there; nothing of yours was changed."


class HostileArchive(Conflict):
    """refused: {what}"""

    code, http_status = "hostile-content", 422
    hint = "The sender made paths or sizes that no honest sender makes."


# ---------------------------------------------------------------------------------------------- engine, machine


class MachineError(CattyError):
    """{message}"""

    code, exit_code, http_status = "machine-error", 6, 502
    hint = "`catty doctor` examines this machine; `catty server logs` has details."


class EngineNotFound(MachineError):
    """no container engine found"""

    code = "engine-not-found"
    hint = "`catty doctor` says what was tried; `catty new` offers to install Podman."


class EngineDown(MachineError):
    """the container engine does not answer: {reason}"""

    code, http_status = "engine-down", 503
    hint = "Start it (Podman: nothing to start; Docker: its service), then `catty doctor`."


class EngineSlow(MachineError):
    """the container engine took more than {seconds:g} s to {action}"""

    code, http_status = "engine-slow", 504
    hint = "Look at the load of the machine, then try again."


class EngineFailed(MachineError):
    """the container engine could not {action}: {reason}"""

    code = "engine-failed"
    hint = "`catty doctor` examines this machine."


class ImageMissing(MachineError):
    """the session image '{image}' is not there"""

    code = "image-missing"
    hint = "`catty setup` builds it (about 5 minutes, once)."


class ImageBuildFailed(MachineError):
    """building the session image failed at: {step}"""

    code = "image-build-failed"
    hint = "The last lines above say why; the whole log is {log}."


class DiskFull(MachineError):
    """the disk of the server is {percent:.0f} % full ({path})"""

    code, http_status = "disk-full", 507
    hint = "Free some space: `catty stop --delete` for sessions no longer needed, or the engine's own prune."


class MachineNotFound(MachineError):
    """machine '{machine}' does not exist"""

    code = "machine-not-found"


class EndpointRefused(MachineError):
    """the machine's endpoint is not what its runtime made: {reason}"""

    code = "endpoint-refused"
    hint = "Something inside the machine replaced it. Stop the session; its files are saved first."


class ClaimRefused(MachineError):
    """the machine refused its claim: {reason}"""

    code = "claim-refused"


class MachineUnreachable(MachineError):
    """the machine's runtime does not answer: {reason}"""

    code, http_status = "machine-unreachable", 503
    hint = "It may be busy or dying; try again, or `catty stop` (its files are saved first)."


class MachineDied(MachineError):
    """the machine ended by itself: {reason}"""

    code = "machine-died"
    hint = "Its files were saved; `catty download {label}` gets them."


class SecretsLost(MachineError):
    """the server restarted before the machine had its secrets"""

    code = "secrets-lost"
    hint = "Run `catty new` again; secrets are never written down, so they were lost with the server's memory."


class UploadMissing(MachineError):
    """the upload of the workspace did not come within {seconds:g} s"""

    code = "upload-missing"
    hint = "Run `catty new` again from the directory."


class SaveFailed(MachineError):
    """the workspace could not be saved: {reason}"""

    code = "save-failed"
    hint = "The last complete snapshot is unharmed; the next save tries again."


class RestoreFailed(MachineError):
    """the workspace could not be put into the machine: {reason}"""

    code = "restore-failed"
    hint = "The snapshot is unharmed; try again."


class StoreFailed(MachineError):
    """the snapshot store failed: {reason}"""

    code = "store-failed"
    hint = "Look at the disk or bucket that holds the server's snapshots; what was saved before is unharmed."


# ---------------------------------------------------------------------------------------------- connection


class ConnectionLost(CattyError):
    """connection to {server} lost: {reason}"""

    code, exit_code, http_status = "connection-lost", 7, 503
    hint = "The session goes on; `catty connect` brings it back."


class SessionEnded(ConnectionLost):
    """the session has ended: {reason}"""

    code, http_status = "session-ended", 410
    hint = "`catty download {label}` gets its files."


class ServerUnreachable(ConnectionLost):
    """no Catty server answers at {server}: {reason}"""

    code = "server-unreachable"
    hint = "Check the address, or `catty server status` for the embedded one."


class GitHubUnreachable(ConnectionLost):
    """GitHub cannot be asked about the token: {reason}"""

    code = "github-unreachable"
    hint = "Check the network, or store it unverified: `catty secrets set GITHUB_TOKEN -`."


class ServerStartFailed(ConnectionLost):
    """the embedded server did not start: {reason}"""

    code = "server-start-failed"
    hint = "`catty server logs` says why."


# ---------------------------------------------------------------------------------------------- set-up


class EnvironmentFailed(CattyError):
    """Catty's own Python environment could not be made: {reason}"""

    code = "environment-failed"
    hint = "It needs python3 with venv (Debian: `apt-get install python3-venv`) and a package index that pip can reach."


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
