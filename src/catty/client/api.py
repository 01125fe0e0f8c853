"""The server's REST interface as functions (docs/design.md, "REST"). Synchronous; each function may be called from any thread.

Errors are the server's own (`errors.from_json`), ServerUnreachable where none answers, CertificateUntrusted, NotLoggedIn without a
token that it knows. Calls that may be repeated are: while the embedded server restarts, a command waits for it instead of failing.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from catty import __version__
from catty.client.config import Server
from catty.client.debug import debug
from catty.constants import SUN_PATH_MAX
from catty.errors import CattyError, CertificateUntrusted, NotLoggedIn, RemoteError, ServerUnreachable, from_json

__all__ = ["Api", "unix_socket"]

TIMEOUT_S: Final = 60.0  # of one answer; long polls and stops say their own
RETRY_EMBEDDED_S: Final = 10.0  # a restart takes about one
RETRY_ELSEWHERE_S: Final = 2.0  # a wrong address should be told soon
_RETRY_FIRST_S: Final = 0.05
_RETRY_MAX_S: Final = 0.5
_DIGEST_BYTES: Final = 32

_Failure = (OSError, http.client.HTTPException)


class Api:
    """One server. `revive`, if given, is called when nothing answers, to start the embedded server; then the call is repeated."""

    def __init__(self, server: Server, revive: Callable[[], None] | None = None) -> None:
        self.server = server
        self._revive = revive
        self._retry_for = RETRY_EMBEDDED_S if server.embedded else RETRY_ELSEWHERE_S
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------ sessions

    def create_session(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Make a session; `spec` as in docs/design.md. With a `request_id` in it, asking twice makes one."""
        return self._object("POST", "/v1/sessions", body=spec, repeat="request_id" in spec)

    def sessions(self, *, all: bool = False) -> list[dict[str, Any]]:  # noqa: A002  # the command's word
        """The sessions, newest first; with `all` those long stopped too."""
        value = self._json("GET", "/v1/sessions", {"all": "1"} if all else None)
        if not isinstance(value, list):
            raise _not_ours(self.server)
        return value

    def session(self, label: str, *, wait: int | None = None, timeout: float = 25.0) -> dict[str, Any]:
        """One session; with `wait`, once its `version` differs from that or `timeout` seconds (≤ 30) have passed."""
        query = None if wait is None else {"wait": str(wait), "timeout": f"{timeout:g}"}
        return self._object("GET", _path(label), query)

    def stop(self, label: str, *, delete: bool = False) -> dict[str, Any]:
        """Stop a session, its workspace saved; returns when that is done. With `delete` the saved workspace goes too."""
        return self._object("POST", _path(label, "stop"), {"delete": "1"} if delete else None, timeout=600.0)

    def give_secrets(self, label: str, secrets: dict[str, str]) -> None:
        """Hand secrets to a machine that waits for them."""
        self._json("POST", _path(label, "secrets"), body={"secrets": secrets})

    def save(self, label: str) -> int:
        """Save a running session's workspace now; returns the snapshot's number."""
        return int(self._object("POST", _path(label, "save"), timeout=600.0)["number"])

    def logs(self, label: str) -> bytes:
        """The last that the terminal printed."""
        return self._bytes("GET", _path(label, "logs"))

    def version(self) -> dict[str, Any]:
        """The server's `version` and `protocol`."""
        return self._object("GET", "/v1/version")

    # ------------------------------------------------------------------------------------------ workspace

    def snapshots(self, label: str) -> list[dict[str, Any]]:
        """The snapshots of a session: number, created_at, files, bytes, complete."""
        value = self._json("GET", _path(label, "snapshots"))
        return value if isinstance(value, list) else []

    def manifest(self, label: str, snapshot: int | str = "latest") -> bytes:
        """A snapshot's manifest."""
        return self._bytes("GET", _path(label, "snapshots", str(snapshot)))

    def put_workspace(self, label: str, manifest: bytes) -> int:
        """Commit the upload of a new session, once (the same again is the same); returns the snapshot's number."""
        answer = self._object("POST", _path(label, "workspace"), body=manifest, timeout=600.0)
        return int(answer["number"])

    def missing_blobs(self, digests: list[bytes]) -> list[bytes]:
        """Those of `digests` that the owner's store lacks."""
        answer = self._bytes("POST", "/v1/blobs/missing", body=b"".join(digests))
        return [answer[at : at + _DIGEST_BYTES] for at in range(0, len(answer), _DIGEST_BYTES)]

    def put_pack(self, pack: bytes) -> None:
        """Store the blobs of a pack."""
        self._bytes("POST", "/v1/packs", body=pack, timeout=600.0)

    def fetch_blobs(self, digests: list[bytes]) -> Iterator[bytes]:
        """Packs that hold these blobs, one after the other as they arrive. Raises ServerUnreachable if they end too early."""
        response, connection = self._open("POST", "/v1/blobs/fetch", None, b"".join(digests), 600.0, repeat=True)
        try:
            while head := response.read(4):
                size = int.from_bytes(head, "big")
                pack = response.read(size)
                if len(head) < 4 or len(pack) < size:
                    raise ServerUnreachable(server=self.server.name, reason="the answer ended too early")
                yield pack
        except _Failure as error:
            raise ServerUnreachable(server=self.server.name, reason=_reason(error)) from None
        finally:
            self._give_back(response, connection)

    # ------------------------------------------------------------------------------------------ transport

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _object(self, method: str, path: str, query: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        value = self._json(method, path, query, **more)
        if not isinstance(value, dict):
            raise _not_ours(self.server)
        return value

    def _json(self, method: str, path: str, query: dict[str, str] | None = None, **more: Any) -> Any:
        data = self._bytes(method, path, query, **more)
        try:
            return json.loads(data or b"null")
        except ValueError:
            raise _not_ours(self.server) from None

    def _bytes(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        *,
        body: bytes | dict[str, Any] | None = None,
        timeout: float = TIMEOUT_S,
        repeat: bool = True,
    ) -> bytes:
        deadline = time.monotonic() + self._retry_for
        while True:
            response, connection = self._open(method, path, query, body, timeout, repeat=repeat)
            try:
                return response.read()
            except _Failure as error:
                if not repeat or time.monotonic() > deadline:
                    raise ServerUnreachable(server=self.server.name, reason=_reason(error)) from None
            finally:
                self._give_back(response, connection)

    def _open(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: bytes | dict[str, Any] | None,
        timeout: float,
        *,
        repeat: bool,
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        """Send a request until it is answered; the answer is a success (2xx), everything else is raised."""
        target = path + (f"?{urlencode(query)}" if query else "")
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = "application/json" if isinstance(body, dict) else "application/octet-stream"
        deadline, pause = time.monotonic() + self._retry_for, _RETRY_FIRST_S
        while True:
            begun = time.monotonic()
            connection = self._take(timeout, fresh=not repeat)
            try:
                connection.request(method, target, data, self._headers(kind if data is not None else ""))
                response = connection.getresponse()
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise CertificateUntrusted(server=self.server.name, reason=error.verify_message) from None
            except _Failure as error:
                connection.close()
                debug(f"{method} {path}: {_reason(error)}")
                never_sent = isinstance(error, ConnectionRefusedError | FileNotFoundError)
                if not (repeat or never_sent) or time.monotonic() > deadline or isinstance(error, TimeoutError):
                    raise ServerUnreachable(server=self.server.name, reason=_reason(error)) from None
                if never_sent and self._revive is not None:
                    self._revive()
                time.sleep(pause)
                pause = min(pause * 2, _RETRY_MAX_S)
                continue
            debug(f"{method} {path}: {response.status} in {(time.monotonic() - begun) * 1000:.0f} ms")
            if response.status >= 300:
                try:
                    raise self._error(response)
                finally:
                    self._give_back(response, connection)
            return response, connection

    def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"User-Agent": f"catty/{__version__}", "Accept": "application/json, application/octet-stream"}
        if content_type:
            headers["Content-Type"] = content_type
        token = self.server.token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        elif not self.server.embedded:
            raise NotLoggedIn(server=self.server.name)
        return headers

    def _error(self, response: http.client.HTTPResponse) -> CattyError:
        try:
            body = json.loads(response.read())
        except (ValueError, *_Failure):
            body = None
        if response.status == http.client.UNAUTHORIZED:  # the server does not know by which name we know it
            return NotLoggedIn(server=self.server.name)
        if isinstance(body, dict) and "error" in body:
            return from_json(body)
        return RemoteError(
            code="error",
            message=f"{self.server.name} answered {response.status} {response.reason}",
            hint="Is it a Catty server? `catty version` shows both sides.",
            exit_code=1,
        )

    def _take(self, timeout: float, *, fresh: bool) -> http.client.HTTPConnection:
        with self._lock:
            connection = None if fresh or not self._idle else self._idle.pop()
        if connection is None:
            return _connection(self.server, timeout)
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection

    def _give_back(self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection) -> None:
        if response.isclosed() and not response.will_close and connection.sock is not None:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = unix_socket(self._path, self.timeout)


def unix_socket(path: str, timeout: float | None) -> socket.socket:
    """A socket connected to `path`, also one too long for the kernel's address (about 100 bytes)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        if len(os.fsencode(path)) <= SUN_PATH_MAX or not hasattr(os, "O_PATH"):
            sock.connect(path)
        else:
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
            try:
                sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
            finally:
                os.close(directory)
    except BaseException:
        sock.close()
        raise
    return sock


def _connection(server: Server, timeout: float) -> http.client.HTTPConnection:
    if server.embedded:
        return _UnixConnection(server.socket_path, timeout)
    parts = urlsplit(server.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout)


def _path(label: str, *more: str) -> str:
    return "/".join(("/v1/sessions", quote(label, safe=""), *more))


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _not_ours(server: Server) -> CattyError:
    return RemoteError(
        code="error",
        message=f"{server.name} does not speak Catty's language",
        hint="`catty version` shows both sides; check the address.",
        exit_code=1,
    )
