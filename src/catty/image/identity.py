"""What the session image is made from, and the name that follows from it.

An image's tag is a hash of every file that goes into it, so an image that exists under the name of `current_image` never needs
to be built again, and a change of any input gives a new name. Slow layers that did not change come from the engine's cache.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

__all__ = ["BASE_REPOSITORY", "REPOSITORY", "base_image", "current_image", "inputs", "write_context"]

REPOSITORY: Final = "localhost/catty-machine"
BASE_REPOSITORY: Final = "localhost/catty-base"

_PACKAGE: Final = Path(__file__).parent.parent
_IMAGE: Final = Path(__file__).parent
_RECIPE: Final = ("Containerfile", "make-base", "isolate", "catty-init", "sudoers", "agents", "locks")
_RUNTIME: Final = ("__init__.py", "errors", "constants.py", "labels.py", "wire", "workspace", "runtime")


def current_image() -> str:
    """The image that this version of Catty runs machines from, built or not. Reads some forty small files (3 ms)."""
    return f"{REPOSITORY}:{_hash(inputs())}"


def base_image() -> str:
    """The base image that `make-base` gives, built or not."""
    return f"{BASE_REPOSITORY}:{_hash({'make-base': _IMAGE / 'make-base'})}"


def inputs() -> dict[str, Path]:
    """Everything that the build depends on: path in the build context → file."""
    found = {}
    for root, names, prefix in ((_IMAGE, _RECIPE, ""), (_PACKAGE, _RUNTIME, "catty/")):
        for name in names:
            for path in _files(root / name):
                found[prefix + path.relative_to(root).as_posix()] = path
    return found


def write_context(directory: Path) -> str:
    """Copy the inputs to `directory`, an empty one, and return the name of the image that exactly these copies make.

    Times and modes are fixed, as engines look at them to decide what changed.
    """
    copies = {}
    for name, path in inputs().items():
        copy = directory / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o644)
        copies[name] = copy
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (0, 0))
    return f"{REPOSITORY}:{_hash(copies)}"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def _hash(files: dict[str, Path]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:12]
