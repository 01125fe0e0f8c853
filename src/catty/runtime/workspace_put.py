"""A file that the user pasted goes to /workspace/.catty-uploads/."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Final

from catty.constants import UPLOADS_DIR
from catty.errors import BadRequest, MachineError
from catty.runtime.workspace_trees import Trees
from catty.workspace.model import WORKSPACE

__all__ = ["clean_name", "put_file"]

_UNWANTED: Final = re.compile(r"[^\w.+@-]+")  # what a shell or an agent's prompt might take apart
_NAME_MAX: Final = 100
_TRIES: Final = 1000


def clean_name(name: str) -> str:
    """A file name without directories, blanks and signs; never hidden, never empty."""
    last = re.split(r"[/\\]", name)[-1]
    stem, extension = os.path.splitext(_UNWANTED.sub("-", last).strip("-"))
    extension = extension[:16]
    return (stem.lstrip(".-")[: _NAME_MAX - len(extension)] or "file") + extension


def put_file(trees: Trees, name: str, data: bytes) -> str:
    """Write `data` under a new name made from `name`; answers its path in the machine. Raises MachineError."""
    name = clean_name(name)
    if not name.isprintable():
        raise BadRequest("a file name that cannot be printed")
    root = trees.open(WORKSPACE)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(UPLOADS_DIR, 0o755, dir_fd=root)
            trees.own(os.fsencode(UPLOADS_DIR), root)
        directory = os.open(UPLOADS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        try:
            written = _write_new(trees, directory, name, data)
        finally:
            os.close(directory)
    except OSError as error:
        raise MachineError(f"the machine cannot write {UPLOADS_DIR}: {error.strerror}") from error
    finally:
        os.close(root)
    return f"{trees.workspace}/{UPLOADS_DIR}/{written}"


def _write_new(trees: Trees, directory: int, name: str, data: bytes) -> str:
    stem, extension = os.path.splitext(name)
    for number in range(_TRIES):
        candidate = f"{stem}-{number}{extension}" if number else name
        try:
            descriptor = os.open(
                candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory
            )
        except FileExistsError:
            continue
        with open(descriptor, "wb") as file:
            trees.own(descriptor)
            file.write(data)
        return candidate
    raise MachineError(f"{UPLOADS_DIR} is full of files named {name}")
