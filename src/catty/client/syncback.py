"""Sync-back beside an attach: what changes in the machine appears in the local directory (docs/workspace.md, "Sync-back").

It has a thread and an event loop of its own, so that disks and hashes never delay a key; whatever goes wrong in it becomes one line
for the user and is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from catty.client.debug import debug
from catty.client.synclink import Link, Socket
from catty.client.syncmirror import GITIGNORE, Mirror
from catty.client.syncplan import Brake, Do, Plan, Step
from catty.client.syncstate import DirectoryLock, SyncState, read_pause, state_path
from catty.client.syncwork import carry_out, learn_rules
from catty.client.text import printable
from catty.client.trash import Trash
from catty.constants import RECONNECT_FIRST_S, RECONNECT_MAX_S
from catty.errors import CattyError, SyncLocked

__all__ = ["SyncBack", "Target"]

_HOLD_S: Final = 1.0  # deletions wait until no new one came for this long: a file that is replaced is gone for a moment
_HOLD_MAX_S: Final = 5.0
_RETRY_S: Final = 10.0  # what the local file system refused is tried again this often, and with every change
_LOOK_AGAIN_S: Final = 2.0  # whether a lock was released, a pause ended, a directory came back
_Lost = (ConnectionError, TimeoutError, CattyError)


@dataclass(frozen=True, slots=True)
class Target:
    """Which session goes where. `home` is `~/.catty`, `session` the id; `config`: --sync-config."""

    home: Path
    session: str
    label: str
    directory: Path
    config: bool = False

    @property
    def state(self) -> Path:
        return state_path(self.home / "sessions", self.session, self.directory)

    @property
    def locks(self) -> Path:
        return self.home / "locks"

    @property
    def trash(self) -> Trash:
        return Trash(self.home / "trash", self.label)


class _Paused(Exception):  # no error
    """The brake, or the state, says to wait for the user."""


@contextlib.asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[SyncState]:
    """A state that is closed by the one thread that uses it: SQLite crashes where another closes it meanwhile."""
    state = await asyncio.to_thread(SyncState, path)
    try:
        yield state
    finally:
        await asyncio.shield(asyncio.to_thread(state.close))


class SyncBack:
    """`connect` opens `/sync` (it is called in the loop of this one's thread); `notice(text, bell)` is called from that thread."""

    def __init__(
        self, connect: Callable[[], Awaitable[Socket]], target: Target, notice: Callable[[str, bool], None]
    ) -> None:
        self._connect, self._target, self._notice = connect, target, notice
        self._thread = threading.Thread(target=self._main, name="sync-back", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self.status = "connecting"
        self._written = self._deleted = 0
        self._troubles: dict[bytes, str] = {}  # what could not be done, and why
        self._told: set[tuple[bytes, str]] = set()
        self._new_troubles: list[tuple[bytes, str]] = []
        self.brake = Brake()

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()
        self._ready.wait()

    def stop(self, timeout: float = 5.0) -> None:
        """End; a step that is under way is finished. Waits at most `timeout` seconds."""
        if self._loop and self._task:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout)

    def text(self) -> str:
        """What `~s` shows: the most important first, as a line ends where the terminal does."""
        parts = [f"sync-back {self.status}"]
        if self._written or self._deleted:
            parts.append(f"{self._written} written, {self._deleted} deleted")
        if self._troubles:
            path, why = next(iter(self._troubles.items()))
            more = f" (and {len(self._troubles) - 1} more)" if len(self._troubles) > 1 else ""
            parts.append(f"{printable(path)}: {why}{more}")
        return "; ".join([*parts, f"into {printable(str(self._target.directory))}"])

    # ------------------------------------------------------------------------------------------ the thread

    def _main(self) -> None:
        with contextlib.suppress(asyncio.CancelledError), asyncio.Runner() as runner:
            runner.run(self._begin())

    async def _begin(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        # One thread for all that blocks: what is closed after a cancellation is not in use any more by then.
        self._loop.set_default_executor(ThreadPoolExecutor(1, "sync-back-files"))
        self._ready.set()
        try:
            await self._run()
        except Exception as error:  # an attach goes on whatever happens here
            debug(f"sync-back: {type(error).__name__}: {error}")
            self.status = f"stopped ({type(error).__name__})"
            self._notice(f"sync-back stopped: {error}", True)

    async def _run(self) -> None:
        said = ""
        while True:
            try:
                lock = DirectoryLock(self._target.locks, self._target.directory)
                try:
                    await self._until_paused()
                finally:
                    lock.release()
            except _Paused as pause:
                self.status = f"paused, `catty sync {self._target.label}` goes on: {pause}"
                self._notice(f"sync-back is paused: {pause} (~s shows more)", True)
                while await asyncio.to_thread(read_pause, self._target.state):  # noqa: ASYNC110  # another process ends it
                    await asyncio.sleep(_LOOK_AGAIN_S)
                said = ""
            except (SyncLocked, OSError, sqlite3.Error) as error:
                text = error.message if isinstance(error, CattyError) else f"{self._target.directory}: {error}"
                self.status = text
                if text != said:
                    self._notice(f"no sync-back: {text}", False)
                said = text
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _until_paused(self) -> None:
        """Connect again and again. Raises _Paused, OSError for a directory or state that cannot be used."""
        async with _opened(self._target.state) as state:
            if state.paused:
                raise _Paused(state.paused)
            target = self._target
            mirror = await asyncio.to_thread(
                Mirror, target.directory, state, target.label, target.trash, self, config=target.config
            )
            try:
                pause = RECONNECT_FIRST_S
                while True:
                    begun = time.monotonic()
                    try:
                        async with Link(await self._connect()) as link:
                            await _Session(self, link, mirror, state).run()
                    except _Lost as error:
                        debug(f"sync-back: {type(error).__name__}: {error}")
                        self.status = "reconnecting"
                    if time.monotonic() - begun > RECONNECT_MAX_S:
                        pause = RECONNECT_FIRST_S
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
                    pause = min(pause * 2, RECONNECT_MAX_S)
            finally:
                await asyncio.shield(asyncio.to_thread(mirror.close))

    # ------------------------------------------------------------------------------------------ for the session

    def conflict(self, path: bytes, place: bytes) -> None:
        """See `Reports`."""
        self.trouble(path, f"changed on both sides; the machine's version is {printable(place)}")

    def trouble(self, path: bytes, why: str) -> None:
        """See `Reports`."""
        self._troubles[path] = why
        if (path, why) not in self._told:
            self._told.add((path, why))
            self._new_troubles.append((path, why))

    def tell_troubles(self) -> None:
        """One line about all that is new."""
        if not self._new_troubles:
            return
        (path, why), more = self._new_troubles[0], len(self._new_troubles) - 1
        self._new_troubles = []
        self._notice(f"{printable(path)}: {why}" + (f" (and {more} more; ~s)" if more else ""), True)

    def done(self, steps: list[Step]) -> None:
        """These steps were done."""
        for step in steps:
            if step.do is not Do.CONFLICT:
                self._troubles.pop(step.path, None)
            self._written += step.do in (Do.WRITE, Do.CONFLICT)
            self._deleted += step.do is Do.DELETE and not step.replaced
        self.status = "up to date"


class _Session:
    """One connection's time."""

    def __init__(self, owner: SyncBack, link: Link, mirror: Mirror, state: SyncState) -> None:
        self._owner, self._link, self._mirror, self._state = owner, link, mirror, state
        self._held: set[bytes] = set()  # deletions that wait
        self._held_since = self._held_last = 0.0
        self._again: set[bytes] = set()  # what could not be done

    async def run(self) -> None:
        """Until the connection is lost. Raises _Paused."""
        await self._link.open(self._mirror.gathered)
        await self._learn_rules()
        self._owner.status = "comparing"
        await asyncio.to_thread(self._mirror.look_at_everything)
        plan = await asyncio.to_thread(self._mirror.plan, self._link.entries)
        await self._apply(plan, hold=False)
        while True:
            news = await self._link.changes(self._patience())
            if await asyncio.to_thread(lambda: self._mirror.replaced):
                raise OSError("the directory is not there any more")
            if any(path.rpartition(b"/")[2] == GITIGNORE for path in news):
                await self._learn_rules()
            due = self._held_is_due()
            paths = news | self._again | (self._held if due else set())
            if paths:
                await self._apply(await asyncio.to_thread(self._mirror.plan, self._link.entries, paths), hold=not due)

    async def _learn_rules(self) -> None:
        await learn_rules(self._mirror, self._link.entries, self._link.fetch)

    def _patience(self) -> float | None:
        if self._held:
            due = min(self._held_last + _HOLD_S, self._held_since + _HOLD_MAX_S)
            return max(0.01, due - time.monotonic())
        return _RETRY_S if self._again else None

    def _held_is_due(self) -> bool:
        now = time.monotonic()
        return bool(self._held) and now >= min(self._held_last + _HOLD_S, self._held_since + _HOLD_MAX_S)

    async def _apply(self, plan: Plan, *, hold: bool) -> None:
        for path, why in plan.left:
            self._owner.trouble(path, why)
        deletions = [step for step in plan.of(Do.DELETE) if not step.replaced]
        steps = plan.steps
        if hold and deletions:
            self._hold(deletions)
            steps = [step for step in steps if step not in deletions]
        elif deletions:
            self._check_brake(plan)
            self._held.clear()
        done = await carry_out(self._mirror, steps, self._link.fetch)
        self._brake_done(done)
        self._again = {step.path for step in steps} - {step.path for step in done}
        self._owner.done(done)
        self._owner.tell_troubles()

    def _hold(self, deletions: list[Step]) -> None:
        now = time.monotonic()
        new = {step.path for step in deletions} - self._held
        if new:
            self._held_last = now
            self._held_since = self._held_since if self._held else now
            self._held |= new

    def _check_brake(self, plan: Plan) -> None:
        why = self._owner.brake.check(plan.deletions, self._state.base, self._link.entries, time.monotonic())
        if why:
            self._state.paused = why
            raise _Paused(why)

    def _brake_done(self, done: list[Step]) -> None:
        self._owner.brake.done(sum(step.do is Do.DELETE and not step.replaced for step in done), time.monotonic())
