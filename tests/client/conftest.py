"""A `~/.catty` of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from catty.client.config import Home, home


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home; no keyring, no server of the user's own."""
    monkeypatch.setenv("CATTY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.delenv("CATTY_API_ADDR", raising=False)
    monkeypatch.delenv("CATTY_TOKEN", raising=False)
    return home()
