"""Secrets come back as they were set, and lie on disk so that nobody reads them there."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catty.client.config import Home
from catty.client.secrets import Secrets, check_github, check_name
from catty.errors import GitHubUnreachable, InvalidName, ReservedName, SecretNotFound, SecretsLocked


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.dictionaries(st.from_regex(r"[A-Z]{3,9}_X", fullmatch=True), st.text(), min_size=1, max_size=5))
def test_what_was_set_comes_back(at: Home, values: dict[str, str]) -> None:
    at.secrets.unlink(missing_ok=True)
    Secrets(at).set(values)
    assert Secrets(at).all() == values


def test_the_files_are_private_and_hold_no_plain_text(at: Home) -> None:
    Secrets(at).set({"API_KEY": "canary-5150"})
    for path in (at.secrets, at.secrets_key):
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"canary" not in path.read_bytes()
        assert b"API_KEY" not in path.read_bytes()
    assert at.root.stat().st_mode & 0o777 == 0o700


def test_remove(at: Home) -> None:
    secrets = Secrets(at)
    secrets.set({"A_B": "1", "GITHUB_TOKEN": "t", "GH_TOKEN": "t"})
    secrets.remove("github")
    assert secrets.all() == {"A_B": "1"}
    with pytest.raises(SecretNotFound, match="'github'"):
        secrets.remove("github")


@pytest.mark.parametrize("name", ["PATH", "HOME", "LD_PRELOAD", "CATTY_X"])
def test_reserved_names(at: Home, name: str) -> None:
    with pytest.raises(ReservedName):
        Secrets(at).set({name: "x"})
    assert not at.secrets.exists()


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "Ä", "A\n"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize("damage", ["key", "data", "no key", "json"])
def test_damage_is_told_and_nothing_is_overwritten(at: Home, damage: str) -> None:
    Secrets(at).set({"A_B": "1"})
    if damage == "key":
        at.secrets_key.write_bytes(bytes(32))
    elif damage == "no key":
        at.secrets_key.unlink()
    elif damage == "data":
        document = json.loads(at.secrets.read_bytes())
        document["data"] = document["data"][:-8] + "AAAAAAA="
        at.secrets.write_text(json.dumps(document))
    else:
        at.secrets.write_text(json.dumps({"store": "file"}))
    before = at.secrets.read_bytes()
    with pytest.raises(SecretsLocked):
        Secrets(at).set({"C_D": "2"})
    assert at.secrets.read_bytes() == before


def test_two_writers_lose_nothing(at: Home) -> None:
    threads = [threading.Thread(target=lambda n=n: Secrets(at).set({f"NAME_{n}": str(n)})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Secrets(at).all()) == 8


MEMORY_KEYRING = """
import json, os, pathlib, keyring.backend
class Keyring(keyring.backend.KeyringBackend):
    priority = 1
    path = os.environ["TEST_KEYRING"]
    def load(self):
        return json.loads(pathlib.Path(self.path).read_text()) if os.path.exists(self.path) else {}
    def get_password(self, service, name):
        if os.path.exists(self.path + ".locked"):
            raise keyring.errors.KeyringLocked("locked")
        return self.load().get(service + name)
    def set_password(self, service, name, value):
        pathlib.Path(self.path).write_text(json.dumps(self.load() | {service + name: value}))
"""


def test_a_working_keyring_is_used_and_a_locked_one_is_an_error(
    at: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keyring

    (tmp_path / "memory_keyring.py").write_text(MEMORY_KEYRING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TEST_KEYRING", str(tmp_path / "ring.json"))
    from memory_keyring import Keyring  # type: ignore[import-not-found]

    before = keyring.get_keyring()
    keyring.set_keyring(Keyring())
    try:
        Secrets(at).set({"A_B": "canary"})
        assert json.loads(at.secrets.read_bytes()) == {"version": 1, "store": "keyring"}
        assert Secrets(at).all() == {"A_B": "canary"}
        (tmp_path / "ring.json.locked").touch()
        with pytest.raises(SecretsLocked, match="locked"):
            Secrets(at).all()
    finally:
        keyring.set_keyring(before)


def test_github_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catty.client.secrets._GITHUB_API", "127.0.0.1:9")
    with pytest.raises(GitHubUnreachable, match="refused"):
        check_github("ghp_x")
