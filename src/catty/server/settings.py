"""Settings of the server. The help text beside each one is all the documentation there is of it (docs/server.md is made from it).

Every setting can be given as an option of `catty server` or as an environment variable `CATTY_SERVER_<NAME>`; the option wins.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

from catty.constants import TCP_PORT
from catty.errors import UsageError

__all__ = ["ENVIRONMENT_PREFIX", "FLAGS", "Settings", "documented", "from_arguments"]

ENVIRONMENT_PREFIX: Final = "CATTY_SERVER_"
SOCKET_NAME: Final = "api.sock"


@dataclass(frozen=True, slots=True)
class Settings:
    """Raises UsageError where they do not fit together."""

    data: Annotated[Path, "directory for database, snapshots, logs, socket, token and key (0700)"]
    socket: Annotated[Path | None, "Unix socket to listen on; default: `api.sock` in the data directory"] = None
    listen: Annotated[str, "TCP address to listen on, HOST:PORT; empty: none"] = f"127.0.0.1:{TCP_PORT}"
    tls_cert: Annotated[Path | None, "PEM file with the certificate chain; needed on any address but loopback"] = None
    tls_key: Annotated[Path | None, "PEM file with the certificate's private key"] = None
    insecure: Annotated[bool, "listen on any address without TLS, behind a proxy that adds it"] = False
    hosts: Annotated[str, "further host names of this server, comma-separated (`Host` is checked)"] = ""
    database: Annotated[str, "SQLAlchemy URL of the database; default: SQLite in the data directory"] = ""
    image: Annotated[str, "session image to use; default: the one of this version of catty"] = ""
    ca_bundle: Annotated[Path | None, "PEM file with CA certificates for machines; default: the host's own"] = None
    no_spare: Annotated[bool, "do not keep a blank machine ready for half an hour after a session was made"] = False
    embedded: Annotated[bool, "for one user's command line: log to a file, go on without TCP if its port is taken"] = (
        False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.expanduser().absolute())
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key belong together")
        host, _ = self.address or ("127.0.0.1", 0)
        if not is_loopback(host) and self.tls_cert is None and not self.insecure:
            raise UsageError(
                f"refusing to listen on {host} without TLS: tokens and secrets would travel in the clear",
                hint="Give --tls-cert and --tls-key, or --insecure behind a proxy that adds TLS.",
            )

    @property
    def address(self) -> tuple[str, int] | None:
        """(host, port) of `listen`; None: no TCP. Port 0 takes a free one."""
        if not self.listen:
            return None
        host, colon, port = self.listen.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 0xFFFF:
            raise UsageError(f"--listen takes HOST:PORT, not '{self.listen}'")
        return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  # what an empty host means everywhere

    @property
    def socket_path(self) -> Path:
        """The Unix socket."""
        return self.socket or self.data / SOCKET_NAME

    @property
    def database_url(self) -> str:
        """The database, as SQLAlchemy names it."""
        return self.database or f"sqlite+aiosqlite:///{self.data / 'catty.db'}"


def is_loopback(host: str) -> bool:
    """Whether `host` names this host's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, even one that begins with 127, may be anybody's
        return False


FLAGS: Final = frozenset(f.name for f in dataclasses.fields(Settings) if isinstance(f.default, bool))


def documented() -> dict[str, str]:
    """Each setting's help text."""
    hints = get_type_hints(Settings, include_extras=True)
    return {f.name: str(hints[f.name].__metadata__[0]) for f in dataclasses.fields(Settings)}


def from_arguments(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from a command line and an environment. Raises UsageError; `--help` ends the process."""
    parser = argparse.ArgumentParser(prog="catty server", description="Run a Catty server in the foreground.")
    types = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for name, help_ in documented().items():
        convert = Path if types[name] in (Path, Path | None) else _boolean if types[name] is bool else str
        if given := environment.get(ENVIRONMENT_PREFIX + name.upper()):
            values[name] = convert(given)
        how: dict[str, Any] = {"action": "store_true"} if types[name] is bool else {"type": convert}
        parser.add_argument("--" + name.replace("_", "-"), dest=name, default=None, help=help_, **how)
    values |= {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    if "data" not in values:
        raise UsageError("--data is missing")
    return Settings(**values)


def _boolean(text: str) -> bool:
    return text.lower() not in ("0", "false", "no")
