"""What lies in `~/.catty` (CATTY_HOME moves it), and which server the commands talk to.

    config.toml       the user's: `api = "https://…"` and other defaults      credentials.json  written by `catty login`
    secrets.json      client/secrets.py          sessions/  client/state.py   server/           data of the embedded server
    debug.log         with CATTY_DEBUG=1         trash/, cache/               sync-back, upload

Directories are 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from catty.errors import UsageError

__all__ = [
    "Home",
    "Server",
    "forget_credentials",
    "home",
    "own_places",
    "read_json",
    "server",
    "store_credentials",
    "write_private",
]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Home:
    """The directory and the names in it."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def credentials(self) -> Path:
        return self.root / "credentials.json"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets.json"

    @property
    def secrets_key(self) -> Path:
        return self.root / "secrets.key"

    @property
    def sessions(self) -> Path:
        return self.root / "sessions"

    @property
    def server(self) -> Path:
        return self.root / "server"

    @property
    def socket(self) -> Path:
        return self.server / "api.sock"

    @property
    def token(self) -> Path:
        return self.server / "token"

    @property
    def debug_log(self) -> Path:
        return self.root / "debug.log"

    def settings(self) -> dict[str, Any]:
        """What config.toml says; UsageError if it is no TOML."""
        try:
            data = self.config.read_bytes()
        except FileNotFoundError:
            return {}
        import tomllib

        try:
            return tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.config} is not TOML: {error}", hint="Mend the file or remove it.") from None


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is and how to be let in. `url` is `https://…`, `http://…` (loopback only) or `unix:PATH` (the embedded one)."""

    url: str
    secret: str = ""
    token_file: Path | None = None

    @property
    def embedded(self) -> bool:
        return self.url.startswith("unix:")

    @property
    def socket_path(self) -> str:
        """The Unix socket's path; "" for a server elsewhere."""
        return self.url.removeprefix("unix:") if self.embedded else ""

    @property
    def token(self) -> str:
        """The bearer token; "" if there is none. Read each time: the embedded server makes its file when it first starts."""
        if self.token_file is None:
            return self.secret
        try:
            return self.token_file.read_text().strip()
        except FileNotFoundError:
            return ""

    @property
    def name(self) -> str:
        """How messages call it."""
        return "the embedded server" if self.embedded else self.url


def _root() -> Path:
    return Path(os.environ.get("CATTY_HOME") or Path.home() / ".catty").absolute()


def home() -> Home:
    """The user's `~/.catty`, made if it is not there."""
    root = _root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Home(root)


def own_places(directory: bytes) -> frozenset[bytes]:
    """Where in `directory` (absolute) `~/.catty` lies, with the user's secrets and keys: paths relative to it, b"." for itself."""
    root, top = os.fsencode(_root()), os.path.realpath(directory)
    places = os.path.realpath(root), os.path.join(os.path.realpath(os.path.dirname(root)), os.path.basename(root))
    relative = {os.path.relpath(place, top) for place in places}
    return frozenset(place for place in relative if place.split(b"/")[0] != b"..")


def server(at: Home, api: str | None) -> Server:
    """The server to talk to: `api` (--api, CATTY_API_ADDR), else config.toml's `api`, else the one logged in to, else the embedded.

    A token is sent only to the server that gave it.
    """
    credentials = read_json(at.credentials)
    url = normal_url(api or at.settings().get("api") or credentials.get("server") or "")
    if not url:
        return Server(f"unix:{at.socket}", token_file=at.token)
    secret = os.environ.get("CATTY_TOKEN", "")
    if not secret and credentials.get("server") == url:
        secret = str(credentials.get("access_token", ""))
    return Server(url, secret)


def normal_url(url: str) -> str:
    """`url` without path and final slash; "" stays. Raises UsageError for what is no server's address or would betray the token."""
    if not url:
        return ""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UsageError(f"'{url}' is not the address of a server", hint="Write https://HOST or https://HOST:PORT.")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise UsageError(
            f"'{url}' would send your token and files unencrypted",
            hint="Use https:// for a server that is not on this machine.",
        )
    return f"{parts.scheme}://{parts.netloc}"


def store_credentials(at: Home, url: str, token: str) -> None:
    """Remember that `token` lets us in at `url`, which becomes the server of all commands."""
    value = {"server": url, "access_token": token, "refresh_token": "", "user_id": "", "email": "", "expires_at": None}
    write_private(at.credentials, json.dumps(value, indent=2).encode())


def forget_credentials(at: Home) -> str:
    """Log out; returns the server's address, "" if there was none."""
    url = str(read_json(at.credentials).get("server", ""))
    at.credentials.unlink(missing_ok=True)
    return url


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of ours; empty if there is no file, UsageError if it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged", hint="Move it away; catty writes a new one.")
    return value


def write_private(path: Path, data: bytes) -> None:
    """Replace a file of ours at once (0600, its directory 0700): a reader sees the old content or the new, also after a crash."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
