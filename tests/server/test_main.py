"""Listening elsewhere, over TLS; what refuses to start; how quickly it starts; what it logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from catty.errors import ServerStartFailed, UsageError
from catty.server.main import main, serve
from catty.server.settings import Settings
from server.certificate import make_certificate
from server.process_engine import ProcessEngine
from server.support import a_server, eventually


async def test_from_elsewhere_over_tls(short: Path, engine: ProcessEngine) -> None:
    certificate, key = make_certificate(short)
    settings = {"listen": "0.0.0.0:0", "tls_cert": certificate, "tls_key": key}
    trust = ssl.create_default_context(cafile=str(certificate))
    async with a_server(short / "data", lambda *_: engine, **settings) as (server, rest):
        session = await rest.running()
        assert server.tcp is not None
        url = f"https://127.0.0.1:{server.tcp[1]}/v1/sessions"
        headers = {"Authorization": f"Bearer {server.token}"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), headers=headers) as http:
            async with http.get(url) as answer:
                assert [found["id"] for found in await answer.json()] == [session["id"]]
            async with http.get(url, headers={"Host": "catty.example"}) as answer:
                assert answer.status == 200
            async with http.get(url, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
            async with http.get(url, headers={"Origin": f"http://127.0.0.1:{server.tcp[1]}"}) as answer:
                assert answer.status == 403
        await asyncio.sleep(0.05)


async def test_behind_a_proxy_that_adds_tls_pages_come_over_https(short: Path, engine: ProcessEngine) -> None:
    async with a_server(short / "data", lambda *_: engine, insecure=True) as (server, _):
        assert server.tcp is not None
        host = f"127.0.0.1:{server.tcp[1]}"
        async with aiohttp.ClientSession(headers={"Host": host}) as http:
            for origin, status in ((f"https://{host}", 200), (f"http://{host}", 403)):
                async with http.get(f"http://{host}/healthz", headers={"Origin": origin}) as answer:
                    assert answer.status == status
        await asyncio.sleep(0.05)


async def test_a_certificate_that_is_none(short: Path) -> None:
    (short / "cert.pem").write_text("no")
    settings = Settings(short / "data", tls_cert=short / "cert.pem", tls_key=short / "cert.pem")
    with pytest.raises(UsageError, match="certificate"):
        async with serve(settings):
            pass


async def test_a_crowd_on_tcp_leaves_room_for_the_owner(
    short: Path, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catty.server.main._descriptors", lambda: 10)
    async with a_server(short / "data", lambda *_: engine) as (server, rest):
        assert server.tcp is not None
        crowd = [await asyncio.open_connection(*server.tcp) for _ in range(5)]
        for reader, writer in crowd[2:]:  # some are idle at once, some after an answer
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        reader, writer = await asyncio.open_connection(*server.tcp)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert await rest("GET", "/v1/sessions") == []
        for _, writer in crowd:
            writer.close()

        async def room() -> bool:
            async with aiohttp.ClientSession() as http:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"http://127.0.0.1:{server.tcp[1]}/healthz") as answer:
                        return answer.status == 200
            return False

        await eventually(room)
        await asyncio.sleep(0.05)


def test_the_server_takes_the_descriptors_that_it_may_have() -> None:
    code = "import resource, catty.server.main as m; m._allow_descriptors(); print(m._descriptors())"
    script = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128)); {code}"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"128\n"


async def test_a_port_that_is_taken(short: Path, engine: ProcessEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerStartFailed, match="cannot listen"):
            async with serve(Settings(short / "data", listen=listen)):
                pass
        async with a_server(short / "data", lambda *_: engine, listen=listen, embedded=True) as (server, rest):
            assert server.tcp is None
            assert await rest("GET", "/v1/sessions") == []


def test_usage_errors_have_their_exit_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--data", str(tmp_path), "--listen", "0.0.0.0:1"]) == 2
    assert "--tls-cert" in capsys.readouterr().err


def test_a_process_that_starts_quickly_logs_json_and_stops_cleanly(short: Path) -> None:
    data = short / "data"
    command = [sys.executable, "-m", "catty.server", "--data", str(data), "--embedded", "--listen", ""]
    for attempt in range(2):
        started = time.monotonic()
        with subprocess.Popen(command) as process:
            while not _listens(data / "api.sock"):
                assert process.poll() is None
                assert time.monotonic() - started < 20
                time.sleep(0.01)
            took = time.monotonic() - started
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        assert took < 5 or attempt == 0  # far above what it takes (0.7 s), for a busy machine
        assert not (data / "api.sock").exists()
    lines = [json.loads(line) for line in (data / "server.log").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["serving", "stopping; sessions go on"] * 2
    assert (data / "server.log").stat().st_mode & 0o077 == 0


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


async def test_the_log_has_no_query_strings_or_tokens(
    short: Path, engine: ProcessEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        async with a_server(short / "data", lambda *_: engine) as (server, rest):
            await rest("GET", "/v1/sessions?all=canary-query")
            await rest("GET", "/v1/sessions?access_token=canary-query", expect=401, Authorization="Bearer canary-token")
    everything = repr([vars(record) for record in caplog.records])
    assert "/v1/sessions" in everything
    assert "canary" not in everything
    assert server.token not in everything
