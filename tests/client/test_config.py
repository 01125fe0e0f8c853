"""Which server is talked to, and to whom a token goes."""

from __future__ import annotations

import pytest

from catty.client import config, state
from catty.client.config import Home, read_json, server, store_credentials, write_private
from catty.errors import UsageError


def test_the_embedded_server_is_the_default(at: Home) -> None:
    found = server(at, None)
    assert found.embedded
    assert found.socket_path == str(at.root / "server" / "api.sock")
    assert found.token == ""
    write_private(at.token, b"secret\n")
    assert found.token == "secret"


def test_order_of_addresses(at: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store_credentials(at, "https://login.example", "t1")
    assert server(at, None).url == "https://login.example"
    at.config.write_text('api = "https://config.example"')
    assert server(at, None).url == "https://config.example"
    assert server(at, "https://option.example:8443/").url == "https://option.example:8443"


def test_a_token_goes_only_to_the_server_that_gave_it(at: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store_credentials(at, "https://a.example", "t1")
    assert server(at, "https://a.example").token == "t1"
    assert server(at, "a.example").token == "t1"
    assert server(at, "https://b.example").token == ""
    assert server(at, "http://127.0.0.1:4815").token == ""
    monkeypatch.setenv("CATTY_TOKEN", "t2")
    assert server(at, "https://b.example").token == "t2"


@pytest.mark.parametrize(
    "url", ["http://example.org", "ftp://x", "https://", "https://x/path", "https://x/?q=1", "http://10.0.0.1:80"]
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        config.normal_url(url)


def test_credentials_are_private_and_forgotten(at: Home) -> None:
    store_credentials(at, "https://a.example", "t1")
    assert at.credentials.stat().st_mode & 0o777 == 0o600
    assert set(read_json(at.credentials)) >= {"access_token", "refresh_token", "user_id", "email", "expires_at"}
    assert config.forget_credentials(at) == "https://a.example"
    assert config.forget_credentials(at) == ""
    assert server(at, None).embedded


@pytest.mark.parametrize("name", ["config", "credentials"])
def test_damaged_files_are_told_by_name(at: Home, name: str) -> None:
    path = getattr(at, name)
    path.write_text("{ nonsense")
    with pytest.raises(UsageError, match=path.name):
        server(at, None)


def test_a_failed_write_leaves_the_old_content(at: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(at.credentials, b"{}")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(config.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(at.credentials, b"new")
    assert at.credentials.read_bytes() == b"{}"
    assert [path.name for path in at.root.iterdir()] == ["credentials.json"]


def test_state_of_a_session(at: Home) -> None:
    kept = state.SessionState(id="u-1", label="a-b-1000", server="unix:x", directory="/somewhere", git=False)
    assert state.load(at, "u-1") is None
    state.store(at, kept)
    assert state.load(at, "u-1") == kept
    assert state.directory_of(at, "u-1").stat().st_mode & 0o777 == 0o700
    state.forget(at, "u-1")
    state.forget(at, "u-1")
    assert state.load(at, "u-1") is None
