"""HTTP/1.1 heads, strictly: what the gateway reads of an upgrade before bytes are copied. No I/O.

What is ambiguous is refused (folded lines, odd white space, a header twice that may stand once): two programs that read one head
differently are a hole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from catty.errors import BadRequest

__all__ = ["END", "HEAD_MAX_BYTES", "RequestHead", "parse_request", "parse_response", "render"]

END: Final = b"\r\n\r\n"
HEAD_MAX_BYTES: Final = 16 << 10

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST: Final = re.compile(rf"({_WORD}) (/[!-~]*) HTTP/1\.1")
_RESPONSE: Final = re.compile(r"HTTP/1\.1 (\d{3})(?: [\t -~]*)?")
_FIELD: Final = re.compile(rf"({_WORD}):[ \t]*([!-~](?:[\t -~]*[!-~])?)?[ \t]*")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's first lines; header names are in lower case, lists of several lines joined by `, `."""

    method: str
    path: str  # percent-decoded
    query: dict[str, str]  # the last value of each name
    headers: dict[str, str]

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a WebSocket."""
        connection = {part.strip().lower() for part in self.headers.get("connection", "").split(",")}
        return self.headers.get("upgrade", "").lower() == "websocket" and "upgrade" in connection


def parse_request(head: bytes) -> RequestHead:
    """The request whose head, up to and including the empty line, is `head`. Raises BadRequest."""
    first, headers = _parse(head)
    match = _REQUEST.fullmatch(first)
    if match is None:
        raise BadRequest("not an HTTP/1.1 request")
    url = urlsplit(match[2])
    try:
        query = {name: values[-1] for name, values in parse_qs(url.query, max_num_fields=20).items()}
    except ValueError:
        raise BadRequest("too many parameters") from None
    return RequestHead(match[1], unquote(url.path), query, headers)


def parse_response(head: bytes) -> tuple[int, dict[str, str]]:
    """(status, headers) of a response. Raises BadRequest."""
    first, headers = _parse(head)
    match = _RESPONSE.fullmatch(first)
    if match is None:
        raise BadRequest("not an HTTP/1.1 response")
    return int(match[1]), headers


def render(first: str, headers: dict[str, str]) -> bytes:
    """A head. Names and values are the caller's own, or came out of this module."""
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("ascii")


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    try:
        lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    except UnicodeDecodeError:
        raise BadRequest("header is not ASCII") from None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise BadRequest("malformed header")
        name, value = match[1].lower(), match[2] or ""
        if name in headers:
            if name not in _LISTS:
                raise BadRequest(f"header '{name}' twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return lines[0], headers


_LISTS: Final = frozenset(
    (
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "cookie",
        "forwarded",
        "pragma",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "via",
        "x-forwarded-for",
    )
)
