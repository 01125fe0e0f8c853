"""Commands that need no machine, with a real embedded server; and the same server from elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from catty import __version__
from catty.client.api import Api
from catty.client.config import Home, Server
from catty.errors import NotLoggedIn, ServerStartFailed, ServerUnreachable, SessionNotFound
from catty.setup.embedded import Embedded, clean_environment

from .conftest import Run


@pytest.fixture
def api(at: Home) -> Iterator[Api]:
    with contextlib.closing(Api(Server(f"unix:{at.socket}", token_file=at.token))) as client:
        yield client


def test_the_first_command_starts_the_server(run: Run, embedded: Embedded) -> None:
    assert embedded.pid() is None
    ran = run("list")
    assert (ran.code, ran.out) == (0, "no sessions; `catty new` starts one\n")
    pid = embedded.pid()
    assert pid is not None
    assert os.getsid(pid) == pid
    assert json.loads(run("list", "--json", "--all").out) == []
    assert embedded.pid() == pid


def test_start_stop_restart_status(run: Run, embedded: Embedded) -> None:
    assert run("server", "status").code == 1
    assert run("server", "start").code == 0
    first = embedded.pid()
    assert json.loads(run("server", "status", "--json").out) | {"version": __version__, "pid": first} == json.loads(
        run("server", "status", "--json").out
    )
    assert run("server", "restart").code == 0
    assert embedded.pid() not in (None, first)
    assert '"message": "serving"' in run("server", "logs").out
    assert run("server", "stop").out == "the embedded server is stopped\n"
    assert run("server", "stop").out == "the embedded server did not run\n"


def test_two_starters_make_one_server(at: Home, embedded: Embedded) -> None:
    threads = [threading.Thread(target=Embedded(at).start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    embedded.stop()  # so that all it has to say is in its log
    assert embedded.server_log.read_text().count('"serving"') == 1


def test_a_killed_server_is_replaced_under_a_command(run: Run, embedded: Embedded) -> None:
    embedded.start()
    pid = embedded.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert run("list").code == 0
    assert embedded.pid() not in (None, pid)


def test_a_server_that_cannot_start_says_why(at: Home, embedded: Embedded) -> None:
    at.server.mkdir()
    (at.server / "catty.db").mkdir()
    with pytest.raises(ServerStartFailed):
        embedded.start()


def test_another_version_is_replaced(at: Home, embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.start()
    pid = embedded.pid()
    embedded.ensure()
    assert embedded.pid() == pid
    monkeypatch.setattr("catty.setup.embedded.__version__", "0.0.0")
    embedded.ensure()
    assert embedded.pid() not in (None, pid)


def test_the_server_gets_no_secrets_of_its_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    assert "canary" not in clean_environment().values()
    assert clean_environment()["HTTPS_PROXY"] == "http://proxy"


def test_without_a_token_nobody_gets_in(at: Home, embedded: Embedded, api: Api) -> None:
    embedded.start()
    with pytest.raises(NotLoggedIn), contextlib.closing(Api(Server(f"unix:{at.socket}", "wrong"))) as intruder:
        intruder.sessions()
    with pytest.raises(SessionNotFound):
        api.session("nobody")
    with pytest.raises(ServerUnreachable):
        Api(Server("http://127.0.0.1:9", "x")).sessions()


def test_concurrent_calls_share_one_client(embedded: Embedded, api: Api) -> None:
    embedded.start()
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(api.sessions())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[]] * 8


def test_logs_and_stop_of_nobody(run: Run, embedded: Embedded) -> None:
    for words in (("logs", "x"), ("stop", "x"), ("download", "x"), ("sync", "x")):
        ran = run(*words)
        assert ran.code == 4, words
        assert "[session-not-found]" in ran.err
    assert run("stop", "--all").code == 0


def test_labels_are_completed(run: Run, embedded: Embedded, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CATTY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "catty stop my-")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run().out.strip() == ""
    assert embedded.pid() is None, "completion starts no server"
    embedded.start()
    api.create_session({"agent": "shell", "name": "my-one", "workspace": "upload"})
    assert run().out == "plain,my-one\n"
    api.stop("my-one", delete=True)


def test_secrets(run: Run) -> None:
    assert run("secrets", "set", "API_KEY", "-", stdin="canary\n").code == 0
    ran = run("secrets", "set", "OTHER_KEY", "on the line")
    assert ran.code == 0
    assert "history" in ran.err
    assert run("secrets", "add", "THIRD", stdin="x\n").out == "kept THIRD\n"
    assert run("secrets", "list").out == "API_KEY\nOTHER_KEY\nTHIRD\n"
    assert json.loads(run("secrets", "list", "--json").out) == [
        {"name": "API_KEY"},
        {"name": "OTHER_KEY"},
        {"name": "THIRD"},
    ]
    assert run("secrets", "remove", "API_KEY").code == 0
    assert "API_KEY" not in run("secrets", "list").out


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_login_over_tls_from_a_fresh_home(run: Run, at: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    script = "import sys; from catty.cli.main import main; sys.exit(main())"
    data = tmp_path / "data"
    words = ["server", "--listen", "localhost:0", "--tls-cert", str(cert), "--tls-key", str(key), "--data", str(data)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        port = next(json.loads(line)["tcp"][1] for line in process.stdout if '"serving"' in line)
        url = f"https://localhost:{port}"
        assert run("login", url, "--token", stdin="wrong\n").code == 7  # nobody vouches for the certificate
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert run("login", url, "--token", stdin="wrong\n").code == 3
        token = run("server", "token", "--data", str(data)).out
        assert run("login", url, "--token", stdin=token).out == f"logged in to {url}\n"
        assert json.loads(run("list", "--json").out) == []
        assert run("version").out.endswith(f"{url}\n")
        assert not at.server.exists()
        assert token.strip() not in run("list").err
        assert run("logout").code == 0
    finally:
        process.terminate()
        process.communicate()
