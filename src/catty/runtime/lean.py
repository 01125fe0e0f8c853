"""Imports asyncio and picows without what a machine never needs: 9 MB and 50 ms less per process.

A machine's endpoint is a Unix socket, so asyncio goes without `ssl`; and of picows only the compiled module is taken, not the package's
front, which imports clients, proxies and TLS. Import this module before asyncio and picows, in the runtime's own processes only.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from types import ModuleType

__all__ = ["settle"]


def _without_ssl() -> None:
    if "asyncio" in sys.modules:
        return
    missing = object()
    before = sys.modules.get("ssl", missing)
    sys.modules["ssl"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        import asyncio  # noqa: F401
    finally:
        if before is missing:
            del sys.modules["ssl"]
        else:
            sys.modules["ssl"] = before  # type: ignore[assignment]


def _without_front(package: str) -> None:
    if package in sys.modules:
        return
    spec = PathFinder.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {package}", name=package)
    module = ModuleType(package)
    module.__spec__ = spec
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = module


def settle() -> None:
    """Everything is imported: tell the collector to leave it alone, which keeps its pages clean."""
    import gc

    gc.collect()
    gc.freeze()


_without_ssl()
_without_front("picows")
