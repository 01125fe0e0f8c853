"""One connection to the `workspace` listener, from its path on; how it got here is runtime/workspace.py's business."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from catty.errors import BadRequest, CattyError, MachineError
from catty.runtime.workspace_restore import serve_restore
from catty.runtime.workspace_save import serve_save
from catty.runtime.workspace_sync import serve_sync
from catty.runtime.workspace_trees import Stopped, Trees
from catty.workspace.exchange import Channel, Exchange

__all__ = ["PATHS", "serve"]

PATHS: Final = ("/restore", "/save", "/sync")
_LOG: Final = logging.getLogger(__name__)


async def serve(path: str, channel: Channel, trees: Trees, conversation: Sequence[str] | None) -> None:
    """Serve the connection to its end; its errors are told to the other side and logged, never raised."""
    try:
        async with Exchange(channel) as exchange:
            try:
                await _serve(path, exchange, trees, conversation)
            except OSError as error:
                if isinstance(error, ConnectionError | TimeoutError):
                    raise
                raise MachineError(f"the machine's files: {error}") from error
    except (ConnectionError, TimeoutError, Stopped) as error:
        _LOG.info("%s ended: %s", path, error)
    except CattyError as error:
        _LOG.warning("%s failed: %s", path, error.message)


async def _serve(path: str, exchange: Exchange, trees: Trees, conversation: Sequence[str] | None) -> None:
    match path:
        case "/restore":
            await serve_restore(trees, exchange, await exchange.expect("restore"))
        case "/save":
            await serve_save(trees, conversation, exchange, await exchange.expect("save"))
        case "/sync":
            await serve_sync(trees, exchange)
        case _:
            raise BadRequest(f"nothing at {path}")
