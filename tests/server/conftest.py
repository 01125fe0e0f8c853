from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from catty.server.main import Server
from server.process_engine import ProcessEngine
from server.support import Rest, a_server


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for the names of Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="catty"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def engine(short: Path) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(short / "machines")
    yield engine
    engine.destroy_all()


@pytest.fixture
async def served(short: Path, engine: ProcessEngine) -> AsyncIterator[tuple[Server, Rest]]:
    async with a_server(short / "data", lambda *_: engine) as made:
        yield made


@pytest.fixture
def rest(served: tuple[Server, Rest]) -> Rest:
    return served[1]


@pytest.fixture
def server(served: tuple[Server, Rest]) -> Server:
    return served[0]
