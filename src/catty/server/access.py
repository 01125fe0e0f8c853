"""Who may talk to the server: addresses, pages, tokens. No I/O.

`Host` is checked so that a page which lets its own name resolve to this server (DNS rebinding) gets nowhere, `Origin` so that a foreign
page gets nowhere with a name that is right. Programs send no `Origin`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from catty.errors import ForbiddenOrigin, NotLoggedIn

__all__ = ["Door", "bearer", "host_names"]

_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  # compared with, not listened on


@dataclass(frozen=True, slots=True)
class Door:
    """One listener. `listen`: its TCP host, "" for a Unix socket (whose clients are checked by their user id, and have no host).

    `hosts`: further names under which clients reach it. `tls`: whether it speaks TLS, or a proxy before it does.
    """

    listen: str
    hosts: frozenset[str] = frozenset()
    tls: bool = False

    def check(self, host: str | None, origin: str | None) -> None:
        """Raises ForbiddenOrigin unless a request with these headers may pass."""
        if self.listen and not self._known(_hostname(f"//{host}") if host else ""):
            raise ForbiddenOrigin
        if origin is not None:
            # A page's own server is where it came from: the same host and port, and no less protected.
            schemes = ("https",) if self.tls else ("http",)
            if not host or origin.lower() not in {f"{scheme}://{host.lower()}" for scheme in schemes}:
                raise ForbiddenOrigin

    def _known(self, name: str) -> bool:
        if not name:
            return False
        if name in self.hosts or name == self.listen:
            return True
        address = _address(name)
        if self.listen in _WILDCARDS:
            return address is not None  # an address cannot be rebound
        listen = _address(self.listen)
        loopback = self.listen == "localhost" or (listen is not None and listen.is_loopback)
        return loopback and (name == "localhost" or (address is not None and address.is_loopback))


def bearer(authorization: str | None) -> str:
    """The token in an `Authorization` header. Raises NotLoggedIn."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotLoggedIn(server="this server")
    return token.strip()


def host_names(text: str, certificate_names: Iterable[str] = ()) -> frozenset[str]:
    """Names from a comma-separated setting and from a certificate."""
    return frozenset(name.strip().lower() for name in [*text.split(","), *certificate_names] if name.strip())


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
