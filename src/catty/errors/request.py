"""What is wrong with a request: its words, its rights, what it names, what stands against it."""

from __future__ import annotations

from catty.errors.base import CattyError, Conflict, NotFound, UsageError


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


class HomeDirectory(UsageError):
    """'{path}' holds your home: its keys and settings would go to the machine, and could be changed from there"""

    code = "home-directory"
    hint = "Change to a project's directory, or use --no-upload."


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
    hint = (
        "Unlock the keyring, or remove ~/.catty/secrets.json and add them again; `catty new --no-secrets` goes without."
    )


class ForbiddenOrigin(CattyError):
    """request from a foreign page or to a foreign host name refused"""

    code, exit_code, http_status = "forbidden-origin", 3, 403
    hint = "Open the server under the address it was started with."


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
