"""The ignore rules in force in a directory of the user's, gathered as git itself gathers them. Reads files, runs git."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from catty.constants import MIB, UPLOAD_EXCLUDES
from catty.workspace.gitdir import git
from catty.workspace.ignore import Rules, Source

__all__ = ["DirectoryRules", "gather"]

_RULE_FILE_MAX: Final = 1 * MIB
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class DirectoryRules:
    """`rules` speak about paths relative to the directory. `prefix`: where in its repository it lies (b"" = the top, or no
    repository, or a git that does not answer)."""

    rules: Rules
    prefix: bytes


def gather(directory: bytes) -> DirectoryRules:
    """Built-in list, global ignore file, `info/exclude`, nested `.gitignore`s (those above `directory` in its repository too)."""
    found = git(directory, "rev-parse", "--show-prefix")
    prefix = found.removesuffix(b"\n") if found else b""
    top = os.path.normpath(os.path.join(directory, b"../" * prefix.count(b"/")))
    sources = [Source(b"", "\n".join(UPLOAD_EXCLUDES).encode())]
    exclude = git(directory, "rev-parse", "--git-path", "info/exclude") if found is not None else None
    for path in (_global_file(directory), exclude and os.path.join(directory, exclude.removesuffix(b"\n"))):
        if path and (text := _read(path, follow=True)):
            sources.append(Source(b"", text))

    def load(inner: bytes) -> bytes | None:
        """`inner` is relative to the repository's top. Repositories inside of this one track files of their own."""
        below = inner.startswith(prefix) and len(inner) > len(prefix)
        if below and os.path.lexists(os.path.join(top, inner, b".git")):
            rules.track(_tracked(os.path.join(top, inner), inner[len(prefix) :] + b"/"))
        return _read(os.path.join(top, inner, b".gitignore"), follow=False)

    ignore_case = git(directory, "config", "--type=bool", "core.ignorecase") == b"true\n"
    rules = Rules(sources, load=load, prefix=prefix, ignore_case=ignore_case)
    rules.track(_tracked(directory, b""))
    return DirectoryRules(rules, prefix)


def _tracked(directory: bytes, prefix: bytes) -> list[bytes]:
    names = git(directory, "ls-files", "-z") or b""
    return [prefix + name for name in names.split(b"\0") if name]


def _global_file(directory: bytes) -> bytes:
    configured = git(directory, "config", "--type=path", "core.excludesFile")
    if configured is not None:
        return os.path.join(directory, configured.removesuffix(b"\n"))
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return os.path.join(os.fsencode(base), b"git/ignore")


def _read(path: bytes, *, follow: bool) -> bytes | None:
    """The text of a rule file; None where there is none. git follows no symlink in the tree, but does outside of it."""
    try:
        descriptor = os.open(path, _READ & ~os.O_NOFOLLOW if follow else _READ)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        return file.read(_RULE_FILE_MAX) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
