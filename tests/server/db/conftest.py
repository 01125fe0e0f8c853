from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from catty.server.db.engine import open_engine
from catty.server.db.migrate import migrate


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/catty.db")
    await migrate(engine)
    yield engine
    await engine.dispose()
