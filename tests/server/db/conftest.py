from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from catty.server.db.engine import Database
from catty.server.db.migrate import migrate


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    engine = Database(f"sqlite+aiosqlite:///{tmp_path}/catty.db")
    await migrate(engine)
    yield engine
    await engine.close()
