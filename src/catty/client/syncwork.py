"""Carries out a plan of sync-back: contents are fetched a few at a time, so memory stays bounded whatever the files' sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from catty.client.syncmirror import GITIGNORE, Mirror
from catty.client.syncplan import Do, Step
from catty.constants import BLOB_BYTES, MIB
from catty.workspace.model import Entry, Kind

__all__ = ["Fetch", "carry_out", "learn_rules"]

Fetch = Callable[[dict[bytes, int]], Awaitable[dict[bytes, bytes]]]
"""Gives the content of blobs (digest → length), as far as they are still there."""

_AT_ONCE_BYTES: Final = 8 * MIB  # of contents in memory
_AT_ONCE_STEPS: Final = 256


async def carry_out(mirror: Mirror, steps: Sequence[Step], fetch: Fetch) -> list[Step]:
    """Do `steps` in order; those that were done, and are recorded. What failed has been reported by the mirror."""
    done: list[Step] = []
    for group in _groups(steps):
        await asyncio.to_thread(mirror.note, group)
        if len(group) == 1 and _size(group[0]) > _AT_ONCE_BYTES:
            finished = group if await _write_in_parts(mirror, group[0], fetch) else []
        else:
            contents = await _contents(mirror, [part for step in group for part in _parts(step)], fetch)
            finished = await asyncio.to_thread(_do, mirror, group, contents)
        await asyncio.to_thread(mirror.record, group, finished)
        done += finished
    return done


async def learn_rules(mirror: Mirror, remote: dict[bytes, Entry], fetch: Fetch) -> None:
    """Have the mirror know the ignore rules of both sides as they are now."""
    files = {
        path.rpartition(b"/")[0]: entry
        for path, entry in remote.items()
        if path.rpartition(b"/")[2] == GITIGNORE and entry.kind is Kind.FILE and 0 < entry.size <= BLOB_BYTES
    }
    contents = await _contents(mirror, [(entry.blobs[0], entry.size) for entry in files.values()], fetch)
    texts = {directory: contents.get(entry.blobs[0]) for directory, entry in files.items()}
    await asyncio.to_thread(mirror.learn_rules, texts.get)


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    group: list[Step] = []
    size = 0
    for step in steps:
        if group and (size + _size(step) > _AT_ONCE_BYTES or len(group) >= _AT_ONCE_STEPS):
            yield group
            group, size = [], 0
        group.append(step)
        size += _size(step)
    if group:
        yield group


def _size(step: Step) -> int:
    return sum(length for _, length in _parts(step))


def _parts(step: Step) -> list[tuple[bytes, int]]:
    """(digest, length) of the blobs that a step needs."""
    entry = step.remote
    if step.do not in (Do.WRITE, Do.CONFLICT) or entry is None:
        return []
    return [(name, min(BLOB_BYTES, entry.size - number * BLOB_BYTES)) for number, name in enumerate(entry.blobs)]


async def _contents(mirror: Mirror, parts: list[tuple[bytes, int]], fetch: Fetch) -> dict[bytes, bytes]:
    """What of `parts` can be had, from local files or from the remote side; nothing of another length than it should have."""
    wanted = dict(parts)
    found = await asyncio.to_thread(
        lambda: {name: data for name in wanted if (data := mirror.content(name)) is not None}
    )
    missing = {name: length for name, length in wanted.items() if name not in found}
    if missing:
        found |= await fetch(missing)
    return {name: data for name, data in found.items() if len(data) == wanted.get(name)}


def _do(mirror: Mirror, group: list[Step], contents: dict[bytes, bytes]) -> list[Step]:
    return [step for step in group if (_write(mirror, step, contents) if _is_file(step) else mirror.do(step))]


def _is_file(step: Step) -> bool:
    return step.do in (Do.WRITE, Do.CONFLICT) and step.remote is not None and step.remote.kind is Kind.FILE


def _write(mirror: Mirror, step: Step, contents: dict[bytes, bytes]) -> bool:
    parts = _parts(step)
    if any(name not in contents for name, _ in parts):
        return False  # it has changed since: news of that are on their way
    staged = mirror.begin(step)
    if staged is None:
        return False
    return all(mirror.write(step, staged, contents[name]) for name, _ in parts) and mirror.finish(step, staged)


async def _write_in_parts(mirror: Mirror, step: Step, fetch: Fetch) -> bool:
    staged = await asyncio.to_thread(mirror.begin, step)
    if staged is None:
        return False
    complete = False
    try:
        parts, at_once = _parts(step), _AT_ONCE_BYTES // BLOB_BYTES
        for start in range(0, len(parts), at_once):
            some = parts[start : start + at_once]
            contents = await _contents(mirror, some, fetch)
            for name, _ in some:
                if name not in contents or not await asyncio.to_thread(mirror.write, step, staged, contents[name]):
                    return False
        complete = True
        return await asyncio.to_thread(mirror.finish, step, staged)
    finally:
        if not complete:
            mirror.give_up(staged)
