"""A server elsewhere: `catty server --listen --tls-cert` in one home, `catty login` over TLS in another that knows nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.catty import Catty, machine_tree, tree
from homes import a_home
from server.certificate import make_certificate

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


@dataclass
class Elsewhere:
    """A server with TLS. `owner`: the command line beside it; `laptop`: one in a fresh home, that trusts its certificate."""

    port: int
    owner: Catty
    laptop: Catty
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def login(self, token: bytes, url: str = "") -> subprocess.CompletedProcess[bytes]:
        return self.laptop.call("login", url or self.url, "--token", stdin=token)


@pytest.fixture
def elsewhere(catty: Catty, catty_command: str, tmp_path: Path) -> Iterator[Elsewhere]:
    desk = tmp_path / "desk"
    desk.mkdir()
    certificate, key = make_certificate(tmp_path)
    words = ["--listen", "127.0.0.1:0", "--tls-cert", str(certificate), "--tls-key", str(key)]
    with a_home(catty_command) as fresh:
        process = subprocess.Popen(
            [catty_command, "server", *words], env=catty.env, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        try:
            assert process.stderr is not None
            port = next(json.loads(line)["tcp"][1] for line in process.stderr if '"serving"' in line)
            laptop = Catty(catty_command, fresh, desk, SSL_CERT_FILE=str(certificate))
            yield Elsewhere(port, catty, laptop, process)
        finally:
            process.terminate()
            process.communicate(timeout=30)


def assert_error(ran: subprocess.CompletedProcess[bytes], exit_code: int, code: str) -> None:
    """One line with the code in brackets, one that says what to do, and nothing else."""
    error = ran.stderr.decode()
    assert (ran.returncode, f"[{code}]" in error) == (exit_code, True), error
    first, second = error.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  → ")


def test_the_same_sessions_from_a_fresh_home(elsewhere: Elsewhere, tmp_path: Path) -> None:
    owner, laptop = elsewhere.owner, elsewhere.laptop
    label = owner.new("--agent", "shell")
    token = owner.run("server", "token").strip()

    # The hidden prompt: what is typed does not show.
    with laptop.terminal("login", elsewhere.url, "--token") as term:
        term.wait_for("Token:")
        term.send(token + b"\r")
        term.wait_for(f"logged in to {elsewhere.url}")
        assert term.wait_exit() == 0
        assert token not in term.raw

    assert [session["label"] for session in json.loads(laptop.run("list", "--json"))] == [label]
    assert not (laptop.home / "server").exists()  # no server of its own was started

    with laptop.terminal("connect", label) as term:
        term.wait_for("/workspace$")
        term.send("echo typed-from-$((40 + 2)) | tee elsewhere.txt\r")
        term.wait_for("typed-from-42")
        term.send("\r~.")
        assert term.wait_exit() == 130
    with owner.terminal("connect", label, "--view") as term:  # beside the server the same screen
        term.wait_for("typed-from-42")
        term.send(b"\x03")
        assert term.wait_exit() == 130
    assert not (laptop.project / "elsewhere.txt").exists()  # sync-back is for the directory that it was created from

    assert laptop.exec(label, "cat; exit 0", b"through TLS") == b"through TLS"
    assert laptop.call("exec", label, "--", "sh", "-c", "exit 17").returncode == 17
    laptop.run("download", label)
    assert tree(laptop.project / label) == machine_tree(owner, label, tmp_path / "machine")
    assert (laptop.project / label / "elsewhere.txt").read_text() == "typed-from-42\n"

    # A session of the laptop's own: its files travel over TLS.
    (laptop.project / "mine.txt").write_text("from the laptop")
    own = laptop.new("--agent", "shell")
    assert owner.exec(own, "cat mine.txt") == b"from the laptop"

    assert laptop.run("stop", label) == f"{label} stopped\n".encode()
    assert owner.session(label)["reason"] == "user"

    assert laptop.run("logout") == f"logged out of {elsewhere.url}\n".encode()
    assert not (laptop.home / "credentials.json").exists()
    assert_error(laptop.call("--api", elsewhere.url, "list"), 3, "not-logged-in")
    assert_error(laptop.call("--api", elsewhere.url, "exec", own, "--", "true"), 3, "not-logged-in")
    assert_error(laptop.call("logout"), 3, "not-logged-in")
    assert owner.session(own)["state"] == "running"


def test_what_is_refused(elsewhere: Elsewhere, tmp_path: Path) -> None:
    owner, laptop = elsewhere.owner, elsewhere.laptop
    token = owner.run("server", "token")
    credentials = laptop.home / "credentials.json"

    assert_error(elsewhere.login(b"catty_wrong\n"), 3, "not-logged-in")
    assert_error(elsewhere.login(b"\n"), 2, "usage")
    assert_error(elsewhere.login(token, f"http://catty.example:{elsewhere.port}"), 2, "usage")
    assert_error(
        elsewhere.login(token, f"https://localhost:{elsewhere.port}"), 7, "certificate-untrusted"
    )  # not its name
    trusting = laptop.env.pop("SSL_CERT_FILE")
    assert_error(elsewhere.login(token), 7, "certificate-untrusted")  # nobody vouches for it
    laptop.env["SSL_CERT_FILE"] = trusting
    assert not credentials.exists()
    assert not (laptop.home / "server").exists()

    assert elsewhere.login(token).returncode == 0
    kept = credentials.read_bytes()
    assert_error(elsewhere.login(b"catty_wrong\n"), 3, "not-logged-in")
    assert credentials.read_bytes() == kept  # the login that works is not lost to one that does not
    assert laptop.run("list", "--json") == b"[]\n"
    del laptop.env["SSL_CERT_FILE"]
    assert_error(laptop.call("list"), 7, "certificate-untrusted")
    assert_error(laptop.call("exec", "brave-tiger-1234", "--", "true"), 7, "certificate-untrusted")
    laptop.env["SSL_CERT_FILE"] = trusting

    # A token that was taken back lets nobody in any more, under the name of the server that took it back.
    owner.run("server", "token", "--rotate")
    refused = laptop.call("list")
    assert_error(refused, 3, "not-logged-in")
    assert elsewhere.url in refused.stderr.decode()

    elsewhere.process.terminate()
    elsewhere.process.wait(timeout=30)
    assert_error(laptop.call("list"), 7, "server-unreachable")
    assert_error(laptop.call("exec", "brave-tiger-1234", "--", "true"), 7, "server-unreachable")
    assert_error(elsewhere.login(token), 7, "server-unreachable")
    with laptop.terminal("connect", "brave-tiger-1234") as term:
        term.wait_for("[server-unreachable]")
        assert term.wait_exit() == 7
