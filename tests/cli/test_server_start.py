"""What keeps the embedded server from starting is said in words; what should not, does not."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from catty.cli.main import main
from catty.client.config import Home
from catty.setup.embedded import Embedded

from .conftest import Run


def newer_database(data: Path) -> None:
    with sqlite3.connect(data / "catty.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    database.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: (data / "catty.db").write_text("no database " * 99), "its database: file is not a database"),
        (newer_database, "its database was made by a newer version of catty [server-start-failed]\n  → Run that"),
        (lambda data: (data / "server.key").write_text("zz"), "server.key is damaged"),
        (lambda data: (data / "token").touch(), "token is damaged"),
        (lambda data: (data / "catty.db").mkdir(), "its database: unable to open database file"),
        (lambda data: (data / "id").mkdir(), "/id: is a directory"),
    ],
)
def test_what_is_wrong_is_said(run: Run, at: Home, damage: object, words: str) -> None:
    at.server.mkdir()
    damage(at.server)  # type: ignore[operator]
    ran = run("list")
    assert ran.code == 7
    assert ran.err.startswith("error: the embedded server did not start: ")
    assert words in ran.err
    assert len(ran.err.splitlines()) == 2


def test_a_full_disk(run: Run, at: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot write cannot even say so."""
    at.server.mkdir()
    (at.server / "server.key").write_text("zz")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, used=1, free=0))
    assert f"no space left for {at.server} [server-start-failed]" in run("list").err


def test_a_directory_that_is_closed_is_no_mistake_of_ours(run: Run, at: Home) -> None:
    (at.server / "start.lock").mkdir(parents=True)
    ran = run("list")
    assert (ran.code, "start.lock: is a directory [files-failed]" in ran.err) == (1, True)


def test_a_home_with_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Home(tmp_path / ("x" * 100))
    monkeypatch.setenv("CATTY_HOME", str(at.root))
    monkeypatch.setenv("CATTY_SERVER_LISTEN", "")
    try:
        assert main(["list"]) == 0
        assert at.socket.is_socket()
    finally:
        Embedded(at).stop()
