"""The command line in this process, in a home of its own; an embedded server that ends with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from catty.cli.main import main
from catty.client.config import Home, home
from catty.setup.embedded import Embedded


@dataclass
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("CATTY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.setenv("CATTY_SERVER_LISTEN", "127.0.0.1:0")
    for name in ("CATTY_API_ADDR", "CATTY_TOKEN", "CATTY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return home()


@pytest.fixture
def run(at: Home, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*args: str, stdin: str = "") -> Ran:
        (at.root / "stdin").write_text(stdin)
        with (at.root / "stdin").open() as file:
            monkeypatch.setattr("sys.stdin", file)
            code = main(args)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def embedded(at: Home) -> Iterator[Embedded]:
    server = Embedded(at)
    yield server
    server.stop()
