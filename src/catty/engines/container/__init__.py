"""Machines as containers of Podman or Docker. Importing this costs nothing: the parts that need aiohttp come with `open_engine`'s call."""

from __future__ import annotations

from catty.engines.container.find import open_engine

__all__ = ["open_engine"]
