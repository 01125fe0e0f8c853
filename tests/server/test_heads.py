"""HTTP heads: what is ambiguous is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty.errors import BadRequest
from catty.server.heads import parse_request, parse_response, render

GOOD = {"Host": "localhost:4815", "Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"}


def test_request() -> None:
    head = parse_request(render("GET /v1/sessions/a%2Db/connect?view=1&view=0 HTTP/1.1", GOOD))
    assert (head.method, head.path, head.query) == ("GET", "/v1/sessions/a-b/connect", {"view": "0"})
    assert head.headers["host"] == "localhost:4815"
    assert head.upgrades


def test_lists_may_stand_on_several_lines() -> None:
    head = parse_request(
        b"GET / HTTP/1.1\r\nConnection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert head.upgrades


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nAuthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
        b"GET / HTTP/1.1\r\nOrigin: a\r\nOrigin: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"GET /?" + b"&".join(b"a=1" for _ in range(30)) + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_refused(head: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(head)


@given(st.binary())
def test_anything_is_a_head_or_a_bad_request(head: bytes) -> None:
    for parse in (parse_request, parse_response):
        with contextlib.suppress(BadRequest):
            parse(head)


def test_response() -> None:
    assert parse_response(render("HTTP/1.1 101 Switching Protocols", {"A": "b"})) == (101, {"a": "b"})
    assert parse_response(b"HTTP/1.1 101\r\n\r\n") == (101, {})
    with pytest.raises(BadRequest):
        parse_response(b"HTTP/2 101\r\n\r\n")
