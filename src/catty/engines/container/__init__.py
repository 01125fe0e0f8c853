"""Machines as containers of Podman or Docker."""

from __future__ import annotations

from catty.engines.container.engine import ContainerEngine
from catty.engines.container.find import open_engine

__all__ = ["ContainerEngine", "open_engine"]
