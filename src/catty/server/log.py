"""Structured logs: one JSON object per line. Callers pass facts, never tokens, secrets, query strings or what machines hold.

`log.info("session stopped", extra={"session": id})` becomes `{"time": …, "level": "info", "message": "session stopped", "session": id}`.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Final

__all__ = ["set_up"]

_FILE_BYTES: Final = 5 << 20
_FILES: Final = 3
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _PrivateFile(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600))


def set_up(file: Path | None) -> None:
    """Log to `file`, rotated, or to standard error."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = _PrivateFile(file, maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8")
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # These log addresses with query strings, or a line per migration.
    for name in ("aiohttp.access", "aiohttp.server", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A line per broken frame: a machine could push all else out of the log. (A level holds for the loggers below it too.)
    logging.getLogger("picows").setLevel(logging.CRITICAL)
