"""What makes a git directory whole where it is sent without its surroundings. Runs git; changes nothing.

The `.git` of a linked worktree or a submodule is a file that points elsewhere, and objects may be borrowed from another repository.
A `Graft` names a directory whose content goes to another place of the tree that is sent; later ones win over earlier ones.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from catty.errors import GitNotSelfContained

__all__ = ["GitDirectory", "Graft", "borrowed_objects", "git", "is_transient", "pointed_to", "self_contained"]

# What the working trees of a repository share, and of that what each has for itself nevertheless (git's path.c, `common_list`).
_SHARED: Final = frozenset(
    b"annex branches config description hooks info lfs logs objects packed-refs refs remotes rr-cache shallow svn".split()
)
_OWN: Final = tuple(
    b"info/sparse-checkout logs/HEAD logs/refs/bisect logs/refs/rewritten logs/refs/worktree".split()
) + tuple(b"refs/bisect refs/rewritten refs/worktree".split())
_LINKS: Final = frozenset((b"commondir", b"gitdir", b"locked"))  # what ties a linked worktree to its main repository
_GIT_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Graft:
    """The content of the directory `source` (absolute) goes to `place` (relative to the tree), as far as `wanted` says of each
    path relative to `source`."""

    source: bytes
    place: bytes
    wanted: Callable[[bytes], bool]


@dataclass(slots=True)
class GitDirectory:
    """A git directory in parts; `texts` are files whose content had to be changed, by their paths in the tree."""

    grafts: list[Graft] = field(default_factory=list)
    texts: dict[bytes, bytes] = field(default_factory=dict)


def git(directory: bytes, *args: str | bytes) -> bytes | None:
    """What git prints when run in `directory`; None if it fails or is not installed. Runs none of the repository's programs."""
    # Ownership by another user is no matter here: only read-only commands are run, and no monitor, hook or pager.
    command = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *args)
    env = {
        key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith("GIT_CONFIG")
    }
    env["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=env,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def is_transient(path: bytes) -> bool:
    """Whether a path relative to a git directory belongs to this moment or machine only: locks, other worktrees' links."""
    return path.endswith(b".lock") or path in (b"gc.pid", b"worktrees") or path.startswith(b"worktrees/")


def pointed_to(git_file: bytes) -> bytes | None:
    """The absolute git directory that `git_file` (a `.git` that is a file or a symlink) stands for; None if it is broken."""
    directory = os.path.dirname(git_file)
    if os.path.islink(git_file):
        target = os.path.realpath(git_file)
        if os.path.isdir(target):
            return target
        git_file, directory = target, os.path.dirname(target)
    try:
        with open(git_file, "rb") as file:
            text = file.read(1 << 16)
    except OSError:
        return None
    if not text.startswith(b"gitdir: "):
        return None
    target = os.path.realpath(os.path.join(directory, text[len(b"gitdir: ") :].rstrip(b"\r\n")))
    return target if os.path.isfile(os.path.join(target, b"HEAD")) else None


def self_contained(git_dir: bytes, place: bytes) -> GitDirectory:
    """All that `git_dir` (absolute; of a linked worktree, a submodule or a plain repository) needs to stand at `place` by itself.

    Raises GitNotSelfContained. Borrowed objects are another matter: `borrowed_objects`.
    """
    parts = GitDirectory()
    config = git_dir
    try:
        with open(os.path.join(git_dir, b"commondir"), "rb") as file:
            common = os.path.realpath(os.path.join(git_dir, file.read(1 << 16).rstrip(b"\r\n")))
    except FileNotFoundError:
        parts.grafts.append(Graft(git_dir, place, lambda path: not is_transient(path)))
    else:
        if os.path.isdir(os.path.join(common, b"reftable")):
            raise GitNotSelfContained(path=os.fsdecode(git_dir), reason="a linked worktree with reftables")
        parts.grafts.append(Graft(common, place, _is_shared))
        parts.grafts.append(Graft(git_dir, place, lambda path: path not in _LINKS and not is_transient(path)))
        config = common
    parts.texts[place + b"/config"] = _standalone_config(os.path.join(config, b"config"))
    return parts


def _is_shared(path: bytes) -> bool:
    if path.split(b"/", 1)[0] not in _SHARED or is_transient(path):
        return False
    return not any(path == own or path.startswith(own + b"/") for own in _OWN)


def _standalone_config(config: bytes) -> bytes:
    """The text of a config file without what ties it to a place: its worktree elsewhere, being bare."""
    with tempfile.TemporaryDirectory(prefix="catty-") as directory:
        copy = os.path.join(os.fsencode(directory), b"config")
        try:
            with open(config, "rb") as source, open(copy, "wb") as target:
                target.write(source.read())
        except FileNotFoundError:
            return b""
        here = os.fsencode(directory)
        for key in ("core.worktree", "extensions.relativeWorktrees"):
            git(here, "config", "--file", "config", "--unset-all", key)
        if git(here, "config", "--file", "config", "--type=bool", "core.bare") == b"true\n":
            git(here, "config", "--file", "config", "core.bare", "false")
        with open(copy, "rb") as file:
            return file.read()


def borrowed_objects(objects: bytes, place: bytes) -> Iterable[Graft]:
    """The directories (absolute, of other repositories) that `objects` borrows from, as grafts into `place`; these may borrow too.

    Raises GitNotSelfContained where one is not there.
    """
    seen = {os.path.realpath(objects)}
    pending = [objects]
    while pending:
        current = pending.pop()
        try:
            with open(os.path.join(current, b"info/alternates"), "rb") as file:
                lines = file.read(1 << 20).splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            if not line or line.startswith(b"#"):
                continue
            lender = os.path.realpath(os.path.join(current, line))
            if not os.path.isdir(lender):
                reason = f"it borrows objects from {os.fsdecode(lender)}, which is not there"
                raise GitNotSelfContained(path=os.fsdecode(os.path.dirname(objects)), reason=reason)
            if lender not in seen:
                seen.add(lender)
                pending.append(lender)
                yield Graft(lender, place, _is_object)


def _is_object(path: bytes) -> bool:
    """Objects and packs; not what describes the lender's own set of them."""
    top, _, rest = path.partition(b"/")
    return top != b"info" and not rest.startswith(b"multi-pack-index") and not path.endswith(b".lock")
