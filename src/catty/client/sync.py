"""`catty sync`: applies a session's workspace to a directory, once; of running sessions (saved first) and stopped ones.

plan = what a dry run prints; deletions only with --delete, or when the user says so after the brake has paused sync-back
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from catty.client.download import Server, fetch, newest
from catty.client.syncback import Target
from catty.client.syncmirror import Mirror
from catty.client.syncplan import Do, Plan, Step
from catty.client.syncstate import DirectoryLock, SyncState
from catty.client.syncwork import carry_out, learn_rules
from catty.client.text import printable
from catty.constants import SAVE_EXCLUDES
from catty.errors import CannotWrite
from catty.workspace.ignore import Rules, Source
from catty.workspace.model import WORKSPACE, Kind

__all__ = ["SyncReport", "sync_once"]

_INSIDE: Final = WORKSPACE + b"/"

Confirm = Callable[[str, list[str]], bool]
"""Called with why sync-back paused and the paths it would delete; True: delete them, False: keep them for good."""


@dataclass(slots=True)
class SyncReport:
    """What was done, or would be done. Paths are fit for a terminal. `kept`: gone in the machine, still here for want of --delete.
    `conflicts`: paths changed on both sides → where the machine's version is ("": not written yet).
    `left`: (path, why) of what differs and was left as it is, or could not be done."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line per path: what, where, and why where that is not plain."""
        named = (("create", self.created), ("update", self.updated), ("delete", self.deleted))
        lines = [f"{word}  {path}" for word, paths in named for path in paths]
        for path, place in self.conflicts.items():
            lines.append(f"conflict  {path}" + (f"  (the machine's version is {place})" if place else ""))
        lines += [f"keep  {path}  (deleted in the machine; --delete deletes it here)" for path in self.kept]
        return lines + [f"skip  {path}  ({why})" for path, why in self.left]

    @property
    def nothing(self) -> bool:
        """Whether both sides were the same already."""
        return not self.lines()


class _Report(SyncReport):
    """As the mirror's `Reports`."""

    def trouble(self, path: bytes, why: str) -> None:
        self.left.append((printable(path), why))

    def conflict(self, path: bytes, place: bytes) -> None:
        self.conflicts[printable(path)] = printable(place)


def sync_once(
    server: Server,
    target: Target,
    *,
    delete: bool = False,
    dry_run: bool = False,
    confirm: Confirm | None = None,
) -> SyncReport:
    """Apply the workspace of `target.label` to `target.directory`.

    `confirm` is asked if sync-back is paused (None: nobody to ask; it stays paused, nothing is deleted). Raises SyncLocked while an
    attach syncs into the directory (not for a dry run), CannotWrite if it cannot be used, and what the server raises.
    """
    lock = None if dry_run else DirectoryLock(target.locks, target.directory)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_sync(server, target, delete=delete, dry_run=dry_run, confirm=confirm))
    except OSError as error:
        raise CannotWrite(path=target.directory, reason=error.strerror or str(error)) from None
    finally:
        if lock:
            lock.release()


async def _sync(server: Server, target: Target, *, delete: bool, dry_run: bool, confirm: Confirm | None) -> SyncReport:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    manifest, notes = await asyncio.to_thread(newest, server, target.label)
    saved = {path[len(_INSIDE) :]: e for path, e in manifest.entries.items() if path.startswith(_INSIDE)}
    report = _Report(notes=notes)

    async def blobs(wanted: dict[bytes, int]) -> dict[bytes, bytes]:
        return await asyncio.to_thread(lambda: {name: bytes(data) for name, data in fetch(server, wanted)})

    with SyncState(target.state) as state:
        # What saves leave out is not deleted because it is not in one: nothing has been heard of it since it was uploaded.
        unsaved = Rules([Source(b"", "\n".join(SAVE_EXCLUDES).encode())])
        unheard = {path: e for path, e in state.base.items() if unsaved.match(path, e.kind is Kind.DIR)}
        remote = unheard | saved
        mirror = Mirror(target.directory, state, target.label, target.trash, report, config=target.config)
        try:
            await learn_rules(mirror, remote, blobs)
            await asyncio.to_thread(lambda: mirror.look_at_everything(tidy=not dry_run))
            plan = await asyncio.to_thread(mirror.plan, remote)
            for path, why in plan.left:
                report.trouble(path, why)
            steps = _steps(plan, state, delete=delete, dry_run=dry_run, confirm=confirm, report=report)
            done = steps if dry_run else await carry_out(mirror, steps, blobs)
        finally:
            await asyncio.to_thread(mirror.close)
    _tell(report, done)
    return report


def _steps(
    plan: Plan, state: SyncState, *, delete: bool, dry_run: bool, confirm: Confirm | None, report: SyncReport
) -> list[Step]:
    """The steps that are to be done; what becomes of deletions is decided here."""
    paths = [step.path for step in plan.of(Do.DELETE) if not step.replaced]
    paused = state.paused
    if paused and not dry_run and not delete and confirm is not None:
        delete = confirm(paused, list(map(printable, paths)))
        state.paused = ""
        if not delete:  # the user's own from now on
            return [replace(step, do=Do.RECORD) if step.path in set(paths) else step for step in plan.steps]
    if delete:
        if not dry_run:
            state.paused = ""
        return plan.steps
    if paused:
        report.notes.append(f"sync-back stays paused ({paused}): answer in a terminal, or decide with --delete")
    report.kept = list(map(printable, paths))
    return [step for step in plan.steps if step.replaced or step.do is not Do.DELETE]


def _tell(report: SyncReport, done: list[Step]) -> None:
    for step in done:
        path = printable(step.path)
        if step.do is Do.CONFLICT or path in report.conflicts:
            report.conflicts.setdefault(path, "")
        elif step.do is Do.DELETE and not step.replaced:
            report.deleted.append(path)
        elif step.do in (Do.WRITE, Do.MKDIR):
            (report.created if step.local is None else report.updated).append(path)
