"""What fails behind a good request: engine, machine, store, connection, set-up."""

from __future__ import annotations

from catty.errors.base import CattyError, ConnectionLost, MachineError


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


class StopDelayed(MachineError):
    """session '{label}' could not be ended yet: {reason}"""

    code, http_status = "stop-delayed", 503
    hint = "Nothing is lost, and it is tried again until it works; `catty doctor` examines this machine."


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


class SessionEnded(ConnectionLost):
    """the session has ended: {reason}"""

    code, http_status = "session-ended", 410
    hint = "`catty download {label}` gets its files."


class ServerUnreachable(ConnectionLost):
    """no Catty server answers at {server}: {reason}"""

    code = "server-unreachable"
    hint = "Check the address, or `catty server status` for the embedded one."


class CertificateUntrusted(ConnectionLost):
    """the certificate of {server} is not trusted: {reason}"""

    code = "certificate-untrusted"
    hint = "Check the address. If the server's certificate is signed by a CA of your own, name its file: SSL_CERT_FILE=ca.pem."


class GitHubUnreachable(ConnectionLost):
    """GitHub cannot be asked about the token: {reason}"""

    code = "github-unreachable"
    hint = "Check the network, or store it unverified: `catty secrets set GITHUB_TOKEN -`."


class ServerStartFailed(ConnectionLost):
    """the embedded server did not start: {reason}"""

    code = "server-start-failed"
    hint = "`catty server logs` says why."


class EnvironmentFailed(CattyError):
    """Catty's own Python environment could not be made: {reason}"""

    code = "environment-failed"
    hint = "It needs python3 with venv (Debian: `apt-get install python3-venv`) and a package index that pip can reach."
