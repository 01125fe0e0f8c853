"""What tests of several folders share: the session image, the command line, a `~/.catty` of its own for a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from catty.image import identity
from catty.setup.environment import ensure_environment
from homes import OTHERS_SETTINGS, a_home, home_environment

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def session_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the session image, built by Catty's own engine if it does not exist."""
    from catty.engines.container.find import open_engine

    image = identity.current_image()

    async def ensure() -> None:
        engine = open_engine(tmp_path_factory.mktemp("image"), "tests-image")
        try:
            await engine.ensure_image(image, lambda _text, _done, _total: None)
        finally:
            await engine.close()

    asyncio.run(ensure())
    return image


@pytest.fixture(scope="session")
def catty_command() -> str:
    """The checkout's `catty`, its environment in place."""
    ensure_environment("server")
    return str(ROOT / "catty")


@pytest.fixture
def catty_home(catty_command: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty `~/.catty` (CATTY_HOME) that uses the user's own environments. Sessions and server in it end with the test."""
    with a_home(catty_command) as root:
        for name, value in home_environment(root).items():
            monkeypatch.setenv(name, value)
        for name in OTHERS_SETTINGS:
            monkeypatch.delenv(name, raising=False)
        yield root
