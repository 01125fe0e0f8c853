"""Host and Origin, on each kind of listener."""

from __future__ import annotations

import pytest

from catty.errors import ForbiddenOrigin, NotLoggedIn
from catty.server.access import Door, bearer, host_names

LOOPBACK = Door("127.0.0.1")
EVERYWHERE = Door("0.0.0.0", host_names("Catty.example, other.example"), tls=True)
UNIX = Door("")


@pytest.mark.parametrize(
    ("door", "host", "origin"),
    [
        (LOOPBACK, "127.0.0.1:4815", None),
        (LOOPBACK, "localhost:4815", None),
        (LOOPBACK, "LOCALHOST", None),
        (LOOPBACK, "[::1]:9000", None),  # a tunnel has a port of its own
        (LOOPBACK, "localhost:4815", "http://localhost:4815"),
        (EVERYWHERE, "catty.example", "https://catty.example"),
        (EVERYWHERE, "192.0.2.7:4815", None),
        (Door("192.0.2.7"), "192.0.2.7:4815", None),
        (UNIX, None, None),
        (UNIX, "catty", None),
    ],
)
def test_passes(door: Door, host: str | None, origin: str | None) -> None:
    door.check(host, origin)


@pytest.mark.parametrize(
    ("door", "host", "origin"),
    [
        (LOOPBACK, None, None),
        (LOOPBACK, "", None),
        (LOOPBACK, "evil.example:4815", None),
        (LOOPBACK, "127.0.0.1.evil.example", None),
        (LOOPBACK, "localhost.evil.example", None),
        (LOOPBACK, "evil@localhost", "http://evil@localhost"[:11]),
        (LOOPBACK, "192.0.2.7", None),
        (LOOPBACK, "[::1", None),
        (LOOPBACK, "localhost:4815", "null"),
        (LOOPBACK, "localhost:4815", ""),
        (LOOPBACK, "localhost:4815", "http://evil.example"),
        (LOOPBACK, "localhost:4815", "http://localhost:3000"),
        (LOOPBACK, "localhost:4815", "https://localhost:4815"),
        (EVERYWHERE, "evil.example", None),
        (EVERYWHERE, "catty.example", "http://catty.example"),
        (UNIX, None, "http://localhost"),
        (UNIX, "x", "null"),
    ],
)
def test_refused(door: Door, host: str | None, origin: str | None) -> None:
    with pytest.raises(ForbiddenOrigin):
        door.check(host, origin)


def test_bearer() -> None:
    assert bearer("Bearer abc") == "abc"
    assert bearer("bearer  abc") == "abc"
    for header in (None, "", "Bearer", "Bearer ", "Basic abc", "abc"):
        with pytest.raises(NotLoggedIn):
            bearer(header)
