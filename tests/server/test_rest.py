"""REST: who may do what, on every route; bodies that are too much; the front door on TCP."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import sqlite3
import time
import uuid
from typing import Any

import aiohttp
import pytest
from aiohttp.compression_utils import ZLibDecompressor
from sqlalchemy.exc import OperationalError

from catty.constants import PACK_MAX_BYTES
from catty.server.access import Door
from catty.server.api import Api, make_application
from catty.server.db.access import AccessStore, new_token
from catty.server.db.sessions import SessionStore
from catty.server.files import DataDirectory
from catty.server.main import Server, rotate_token
from catty.workspace.model import digest
from catty.workspace.packs import PackWriter
from server.process_engine import ProcessEngine
from server.support import Rest

ROUTES = [
    ("POST", "/v1/sessions"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/sessions/{id}"),
    ("POST", "/v1/sessions/{id}/stop"),
    ("POST", "/v1/sessions/{id}/stop?delete=1"),
    ("POST", "/v1/sessions/{id}/secrets"),
    ("POST", "/v1/sessions/{id}/save"),
    ("GET", "/v1/sessions/{id}/snapshots"),
    ("GET", "/v1/sessions/{id}/snapshots/latest"),
    ("POST", "/v1/sessions/{id}/workspace"),
    ("GET", "/v1/sessions/{id}/logs"),
    ("POST", "/v1/blobs/missing"),
    ("POST", "/v1/packs"),
    ("POST", "/v1/blobs/fetch"),
    ("GET", "/v1/version"),
]


async def test_the_list_above_is_complete(server: Server) -> None:
    api = Api(server.settings.data, server.context, server.keeper, server.access, Door(""), Door("localhost"))
    known = {(method, path.partition("?")[0]) for method, path in ROUTES} | {("GET", "/healthz"), ("GET", "/readyz")}
    served = {
        (route.method, route.resource.canonical.replace("{number}", "latest"))
        for route in make_application(api).router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert served == known


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_nobody_gets_in_without_a_good_token(rest: Rest, server: Server, method: str, path: str) -> None:
    expired = new_token()
    await server.access.add_token(await server.access.user("local"), expired, lifetime=-1)
    for header in ("", "Bearer", "Bearer wrong", f"Basic {rest.token}", f"Bearer {expired}", f"Bearer {rest.token}x"):
        refused = await rest(method, path.format(id="any"), expect=401, Authorization=header)
        assert refused["error"] == "not-logged-in"


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if "{id}" in route[1]])
async def test_another_users_session_does_not_exist(rest: Rest, server: Server, method: str, path: str) -> None:
    session = await rest("POST", "/v1/sessions", {"agent": "shell", "workspace": "upload"}, expect=201)
    token = new_token()
    await server.access.add_token(await server.access.user("mallory"), token)
    mallory = Rest(rest.http, token)
    for reference in (session["id"], session["label"], session["label"][:6]):
        refused = await mallory(method, path.format(id=reference), expect=404)
        assert refused["error"] == "session-not-found"
    assert await mallory("GET", "/v1/sessions?all=1") == []
    assert (await rest("GET", f"/v1/sessions/{session['id']}"))["state"] == "provisioning"


async def test_blobs_are_shared_within_one_owner_only(rest: Rest, server: Server) -> None:
    writer = PackWriter()
    writer.add(digest(b"mine"), b"mine")
    await rest("POST", "/v1/packs", writer.finish(), expect=201)
    assert await rest("POST", "/v1/blobs/missing", digest(b"mine")) == b""
    token = new_token()
    await server.access.add_token(await server.access.user("mallory"), token)
    mallory = Rest(rest.http, token)
    assert await mallory("POST", "/v1/blobs/missing", digest(b"mine")) == digest(b"mine")
    await mallory("POST", "/v1/blobs/fetch", digest(b"mine"), expect=409)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/sessions", b"{", 400, "bad-request"),
        ("POST", "/v1/sessions", b"[" * 100_000, 400, "bad-request"),
        ("POST", "/v1/sessions", {"agent": "emacs"}, 400, "unknown-agent"),
        ("POST", "/v1/sessions", {"cmd": ["claude-wrapper"]}, 426, "protocol-too-old"),
        ("POST", "/v1/sessions", b"x" * (3 << 20), 413, "request-too-large"),
        ("POST", "/v1/packs", b"x" * (PACK_MAX_BYTES + 1), 413, "request-too-large"),
        ("POST", "/v1/packs", b"garbage", 400, "bad-request"),
        ("POST", "/v1/blobs/missing", b"123", 400, "bad-request"),
        ("POST", "/v1/blobs/fetch", b"x" * 32, 409, "blobs-missing"),
        ("GET", "/v1/sessions/" + "x" * 300, None, 404, "session-not-found"),
        ("GET", "/v1/sessions/%00%0a", None, 404, "session-not-found"),
        ("GET", "/nowhere", None, 404, "not-found"),
        ("DELETE", "/v1/sessions", None, 405, "not-found"),
    ],
)
async def test_bad_requests(rest: Rest, method: str, path: str, body: Any, status: int, code: str) -> None:
    answer = await rest(method, path, body, expect=status)
    assert answer["error"] == code
    assert set(answer) >= {"error", "message", "hint", "exit_code"}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("workspace", b"garbage", "bad-request"),
        ("snapshots/x", None, "bad-request"),
        ("snapshots/7", None, "snapshot-not-found"),
        ("snapshots/latest", None, "snapshot-not-found"),
        ("save", {}, "session-not-running"),
        ("secrets", {"secrets": {}}, "session-not-running"),
        ("secrets", {"secrets": {"PATH": "x"}}, "reserved-name"),
        ("?wait=x", None, "bad-request"),
        ("?wait=1&timeout=nan", None, "bad-request"),
    ],
)
async def test_bad_requests_about_a_session(rest: Rest, path: str, body: Any, code: str) -> None:
    session = await rest("POST", "/v1/sessions", {"agent": "shell", "workspace": "upload"}, expect=201)
    separator = "" if path.startswith("?") else "/"
    url = f"http://catty/v1/sessions/{session['id']}{separator}{path}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    headers = {"Authorization": f"Bearer {rest.token}"}
    method = "GET" if body is None else "POST"
    async with rest.http.request(method, url, data=data, headers=headers) as answer:
        assert answer.status >= 400
        assert (await answer.json())["error"] == code


async def test_labels(rest: Rest) -> None:
    await rest("POST", "/v1/sessions", {"agent": "shell", "name": "alpha-one"}, expect=201)
    await rest("POST", "/v1/sessions", {"agent": "shell", "name": "alpha-two"}, expect=201)
    assert (await rest("GET", "/v1/sessions/alpha-t"))["label"] == "alpha-two"
    assert (await rest("GET", "/v1/sessions/alpha", expect=400))["error"] == "ambiguous-label"
    missing = await rest("GET", "/v1/sessions/alpha-tow", expect=404)
    assert missing["hint"].startswith("did you mean alpha-two?")
    taken = await rest("POST", "/v1/sessions", {"agent": "shell", "name": "alpha-one"}, expect=409)
    assert taken["error"] == "label-taken"


async def test_a_request_that_is_repeated_makes_one_session(rest: Rest, engine: ProcessEngine) -> None:
    body = {"agent": "shell", "request_id": uuid.uuid4().hex}
    made = await asyncio.gather(*(rest("POST", "/v1/sessions", body, expect=201) for _ in range(4)))
    assert len({session["id"] for session in made}) == 1
    await rest.until(made[0]["id"], lambda now: now["state"] == "running")
    assert engine.calls.count("create") == 1


async def test_a_session_has_what_clients_read(rest: Rest) -> None:
    session = await rest.running(name="mine", ttl_sec=600, cpus=1, memory_mb=512)
    assert session == session | {
        "session_id": session["id"],
        "label": "mine",
        "state": "running",
        "status": "running",
        "reason": None,
        "agent": "shell",
        "ttl_sec": 600,
        "cpus": 1,
        "memory_mb": 512,
        "stopped_at": None,
    }
    for name in ("created_at", "last_activity_at"):
        assert session[name].endswith("Z")
        assert session[name][10] == "T"


async def test_a_long_poll_ends_with_nothing_new(rest: Rest) -> None:
    session = await rest.running()
    started = time.monotonic()
    found = await rest("GET", f"/v1/sessions/{session['id']}?wait={session['version']}&timeout=0.2")
    assert found["version"] == session["version"]
    assert time.monotonic() - started >= 0.2


async def test_a_full_disk_refuses_new_sessions(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"used": 95, "free": 5, "total": 100})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused = await rest("POST", "/v1/sessions", {"agent": "shell"}, expect=507)
    assert refused["error"] == "disk-full"
    assert "95 %" in refused["message"]
    assert await rest("GET", "/v1/sessions") == []


@pytest.mark.parametrize(
    ("said", "code", "status"),
    [("database or disk is full", "disk-full", 507), ("disk I/O error", "store-failed", 502)],
)
async def test_a_database_that_fails_says_why(
    rest: Rest, server: Server, said: str, code: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OperationalError("UPDATE", {"hash": "canary"}, sqlite3.OperationalError(said))

    session = await rest("POST", "/v1/sessions", {"agent": "shell", "workspace": "upload"}, expect=201)
    monkeypatch.setattr(SessionStore, "request_stop", fail)
    refused = await rest("POST", f"/v1/sessions/{session['id']}/stop", expect=status)
    assert refused["error"] == code
    assert "canary" not in str(refused)


async def test_list_is_fast(rest: Rest) -> None:
    for number in range(20):
        await rest("POST", "/v1/sessions", {"agent": "shell", "workspace": "upload", "name": f"s{number}"}, expect=201)
    for number in range(20):
        await rest("POST", f"/v1/sessions/s{number}/stop?delete=0")
    times = []
    for _ in range(10):
        started = time.monotonic()
        assert len(await rest("GET", "/v1/sessions")) == 20
        times.append(time.monotonic() - started)
    assert sorted(times)[5] < 0.03


# -------------------------------------------------------------------------------------------- TCP


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/v1/sessions"])
async def test_host_and_origin_on_loopback(server: Server, path: str, headers: dict[str, str], status: int) -> None:
    assert server.tcp is not None
    headers = {"Authorization": f"Bearer {server.token}"} | headers
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{server.tcp[1]}{path}", headers=headers) as answer,
    ):
        assert answer.status == status
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("token", ["good", "bad"])
async def test_a_body_is_not_decompressed(rest: Rest, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb from somebody without a token would keep the server from everybody else."""
    unpacked = []

    def unpack(*_: object, **__: object) -> bytes:
        unpacked.append(True)
        raise ValueError

    monkeypatch.setattr(ZLibDecompressor, "decompress_sync", unpack)
    bomb = gzip.compress(bytes(16 << 20))
    headers = {"Content-Encoding": "gzip"} | ({} if token == "good" else {"Authorization": "Bearer bad"})
    refused = await rest("POST", "/v1/packs", bomb, expect=400, **headers)
    assert "Content-Encoding" in refused["message"]
    assert not unpacked


async def test_one_connection_serves_many_requests_and_a_late_upgrade_is_refused(server: Server) -> None:
    assert server.tcp is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp[1])
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(2):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    writer.write(
        b"GET /v1/sessions/a/connect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
    writer.close()
    await writer.wait_closed()


async def test_the_socket_is_for_its_user_alone(server: Server) -> None:
    assert os.stat(server.settings.socket_path).st_mode & 0o777 == 0o600
    for name in ("token", "server.key", "id"):
        assert os.stat(server.settings.data / name).st_mode & 0o077 == 0
    assert os.stat(server.settings.data).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("where", [(AccessStore, "revoke"), (DataDirectory, "replace_token")])
async def test_changing_the_token_may_be_cut_off_anywhere(
    server: Server, rest: Rest, where: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token in the file is the only one that its owner has: it works at any time."""

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(*where, die)
    with pytest.raises(Killed):
        await rotate_token(server.settings)
    token = (server.settings.data / "token").read_text().strip()
    assert await Rest(rest.http, token)("GET", "/v1/sessions") == []


async def test_a_new_token_replaces_the_old_one_at_once(server: Server, rest: Rest) -> None:
    token = await rotate_token(server.settings)
    await rest("GET", "/v1/sessions", expect=401)
    assert await Rest(rest.http, token)("GET", "/v1/sessions") == []
    assert (server.settings.data / "token").read_text().strip() == token
