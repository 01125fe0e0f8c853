"""The ignore rules in force in a directory of the user's, gathered as git itself gathers them. Reads files, runs git."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
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
    """What is left out of a directory (absolute).

    `prefix`: where in its repository it lies (b"" = the top, or no repository, or a git that does not answer). `sources`, `tracked`
    (relative to the directory), `prefix` and `ignore_case` are what another side needs to make the same rules; the `.gitignore`s in the
    directory itself are not among the sources: each side has its own.
    """

    directory: bytes
    sources: tuple[Source, ...]
    tracked: tuple[bytes, ...]
    prefix: bytes
    ignore_case: bool

    def rules(self, gitignore: Callable[[bytes], bytes | None] | None = None) -> Rules:
        """The rules, about paths relative to the directory, as it is or in another state: then `gitignore` gives the text of the
        `.gitignore` in a directory relative to it, or None."""
        text_of = gitignore or self.gitignore

        def load(full: bytes) -> bytes | None:
            if not (full + b"/").startswith(self.prefix):
                return None  # above: among the sources
            relative = (full + b"/").removeprefix(self.prefix).rstrip(b"/")
            inner = os.path.join(self.directory, relative)
            if relative and os.path.lexists(os.path.join(inner, b".git")):
                rules.track(_tracked(inner, relative + b"/"))  # a repository inside of this one tracks files of its own
            return text_of(relative)

        rules = Rules(self.sources, load=load, tracked=self.tracked, prefix=self.prefix, ignore_case=self.ignore_case)
        return rules

    def gitignore(self, relative: bytes) -> bytes | None:
        """The text of the `.gitignore` in a directory relative to this one; None if there is none."""
        return _read(os.path.join(self.directory, relative, b".gitignore"), follow=False)


def gather(directory: bytes) -> DirectoryRules:
    """Built-in list, global ignore file, `info/exclude`, nested `.gitignore`s (those above `directory` in its repository too)."""
    found = git(directory, "rev-parse", "--show-prefix")
    prefix = found.removesuffix(b"\n") if found else b""
    top = os.path.normpath(os.path.join(directory, b"../" * prefix.count(b"/")))
    exclude = git(directory, "rev-parse", "--git-path", "info/exclude") if found is not None else None
    files = [(b"", _global_file(directory))]
    if exclude:
        files.append((b"", os.path.join(directory, exclude.removesuffix(b"\n"))))
    above = prefix.split(b"/")[:-1]
    files += [
        (base, os.path.join(top, base, b".gitignore")) for base in (b"/".join(above[:n]) for n in range(len(above)))
    ]
    sources = [Source(b"", "\n".join(UPLOAD_EXCLUDES).encode())]
    sources += [Source(base, text) for base, path in files if (text := _read(path, follow=base == b""))]
    tracked = tuple(_tracked(directory, b""))
    ignore_case = git(directory, "config", "--type=bool", "core.ignorecase") == b"true\n"

    return DirectoryRules(directory, tuple(sources), tracked, prefix, ignore_case)


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
