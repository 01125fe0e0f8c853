"""Save and restore between a machine's trees and the store, over a real socket."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from catty.errors import RestoreFailed, SaveFailed
from catty.server.snapshots import restore, save
from catty.workspace.manifest import Manifest
from catty.workspace.model import Entry, Kind
from catty.workspace.objects import Objects
from catty.workspace.store import SnapshotStore
from runtime.workspace_support import Machine, fingerprint, make_tree


@pytest.fixture
async def store() -> AsyncIterator[SnapshotStore]:
    store = SnapshotStore(Objects(MemoryStore()), "local")
    yield store
    store.close()


class Machines:
    """Makes machines that run until the test ends."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self._directory, self._stack, self._number = directory, stack, 0

    async def new(self) -> Machine:
        self._number += 1
        return await self._stack.enter_async_context(Machine(self._directory / f"m{self._number}").running())


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    async with AsyncExitStack() as stack:
        yield Machines(tmp_path, stack)


@pytest.fixture
async def machine(machines: Machines) -> Machine:
    return await machines.new()


async def test_a_tree_comes_back_as_it_was(store: SnapshotStore, machines: Machines) -> None:
    one, two = await machines.new(), await machines.new()
    make_tree(one.workspace, files=300)
    (one.home / ".claude/projects/-workspace").mkdir(parents=True)
    (one.home / ".claude/projects/-workspace/talk.jsonl").write_text("{}\n" * 1000)
    (one.home / ".claude/credentials").write_text("secret")
    (one.home / ".bashrc").write_text("mine")
    head = await save(one.dial, "", store, "s", reason="autosave")
    assert head
    assert head.complete
    _, manifest = await store.load("s")
    seen: list[tuple[int, int]] = []
    await restore(two.dial, "", store, manifest, lambda done, of: seen.append((done, of)))
    assert fingerprint(two.workspace) == fingerprint(one.workspace)
    assert os.stat(two.workspace).st_mtime_ns == os.stat(one.workspace).st_mtime_ns
    assert set(fingerprint(two.home)) == {
        b".claude", b".claude/projects", b".claude/projects/-workspace", b".claude/projects/-workspace/talk.jsonl"
    }  # fmt: skip
    assert seen[-1][0] == seen[-1][1] > 0
    assert os.stat(two.workspace / "sparse").st_blocks * 512 < 4 << 20


async def test_an_unchanged_tree_sends_nothing(store: SnapshotStore, machines: Machines) -> None:
    one, two = await machines.new(), await machines.new()
    make_tree(one.workspace)
    assert await save(one.dial, "", store, "s")
    assert await save(one.dial, "", store, "s") is None
    (one.workspace / "empty/x").touch()
    (one.workspace / "empty/x").unlink()  # only the directory's time is another one
    assert await save(one.dial, "", store, "s") is None
    _, manifest = await store.load("s")
    await restore(two.dial, "", store, manifest)
    assert await save(two.dial, "", store, "s") is None
    two.trees.baseline, two.trees.cache = None, type(two.trees.cache).empty()  # as after a crash of the process
    assert await save(two.dial, "", store, "s") is None


async def test_changes_are_saved_and_only_they(store: SnapshotStore, machine: Machine, machines: Machines) -> None:
    make_tree(machine.workspace)
    await save(machine.dial, "", store, "s")
    (machine.workspace / "new.txt").write_text("new")
    (machine.workspace / "link").unlink()
    (machine.workspace / "link").mkdir()
    (machine.workspace / "link/below").write_text("now a directory")
    shutil.rmtree(machine.workspace / "empty")
    os.chmod(machine.workspace / "big", 0o755)
    big = bytearray((machine.workspace / "big").read_bytes())
    big[1 << 20 : (1 << 20) + 7] = b"changed"
    (machine.workspace / "big").write_bytes(big)
    head = await save(machine.dial, "", store, "s")
    assert head
    assert (head.number, head.base) == (2, 1)
    other = await machines.new()
    await restore(other.dial, "", store, (await store.load("s"))[1])
    assert fingerprint(other.workspace, times=False) == fingerprint(machine.workspace, times=False)


async def test_what_is_never_saved(store: SnapshotStore, machine: Machine) -> None:
    for name in ("node_modules", "__pycache__", ".venv", "deep/venv", "deep/.cache", ".npm", ".yarn", ".git/objects"):
        (machine.workspace / name).mkdir(parents=True)
        (machine.workspace / name / "file").write_text("x")
    (machine.workspace / "node_modules.txt").write_text("a file")
    (machine.workspace / "venv").write_text("a file too")
    os.mkfifo(machine.workspace / "fifo")
    head = await save(machine.dial, "", store, "s")
    assert head
    assert head.complete  # a fifo is no loss
    _, manifest = await store.load("s")
    assert set(manifest.entries) == {
        b"home", b"workspace", b"workspace/.git", b"workspace/.git/objects", b"workspace/.git/objects/file",
        b"workspace/deep", b"workspace/node_modules.txt", b"workspace/venv",
    }  # fmt: skip


async def test_a_file_that_keeps_changing_is_saved_and_marked(
    store: SnapshotStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = machine.workspace / "log"
    log.write_text("line\n")
    real = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        with log.open("a") as file:
            file.write("more\n")
        return real(descriptor, length, offset)

    monkeypatch.setattr("os.pread", pread)
    head = await save(machine.dial, "", store, "s")
    assert head
    assert not head.complete
    assert (await store.load("s"))[1].entries[b"workspace/log"].torn
    monkeypatch.undo()
    head = await save(machine.dial, "", store, "s")
    assert head
    assert head.complete
    entry = (await store.load("s"))[1].entries[b"workspace/log"]
    assert (entry.torn, entry.size) == (False, log.stat().st_size)


async def test_a_change_that_leaves_size_and_time_alone_is_seen(store: SnapshotStore, machine: Machine) -> None:
    path = machine.workspace / "file"
    path.write_text("before")
    os.utime(path, ns=(10**18, 10**18))
    await save(machine.dial, "", store, "s")
    path.write_text("behind")
    os.utime(path, ns=(10**18, 10**18))
    assert await save(machine.dial, "", store, "s")


async def test_twenty_lives_change_nothing(store: SnapshotStore, machines: Machines) -> None:
    """Save, restore elsewhere, change a little, save there: over and over."""
    machine = await machines.new()
    make_tree(machine.workspace, files=50)
    for life in range(20):
        (machine.workspace / f"life{life}").write_text(str(life))
        head = await save(machine.dial, "", store, "s")
        assert head
        assert head.number == life + 1
        before = fingerprint(machine.workspace)
        machine = await machines.new()
        await restore(machine.dial, "", store, (await store.load("s"))[1])
        after = fingerprint(machine.workspace)
        assert after == before


async def test_a_restore_done_again_sends_only_what_is_not_right_yet(store: SnapshotStore, machines: Machines) -> None:
    one, two = await machines.new(), await machines.new()
    make_tree(one.workspace, files=100)
    await save(one.dial, "", store, "s")
    _, manifest = await store.load("s")
    await restore(two.dial, "", store, manifest)
    (two.workspace / "big").unlink()
    (two.workspace / "big").symlink_to("/etc/passwd")
    (two.workspace / "empty").rmdir()
    (two.workspace / "empty").write_text("in the way")
    counts: list[int] = []
    await restore(two.dial, "", store, manifest, lambda _done, of: counts.append(of))
    assert fingerprint(two.workspace) == fingerprint(one.workspace)
    assert counts == [4]


async def test_two_saves_at_once_both_end_well(store: SnapshotStore, machine: Machine) -> None:
    make_tree(machine.workspace)
    results = await asyncio.gather(
        save(machine.dial, "", store, "s"), save(machine.dial, "", store, "s"), return_exceptions=True
    )
    heads = [result for result in results if result is not None and not isinstance(result, BaseException)]
    assert heads
    assert [head.number for head in await store.heads("s")] == list(range(1, len(heads) + 1))
    assert await save(machine.dial, "", store, "s") is None


async def test_blobs_that_the_store_lost_are_sent_again(store: SnapshotStore, machine: Machine) -> None:
    (machine.workspace / "kept").write_text("kept")
    await save(machine.dial, "", store, "s")
    _, manifest = await store.load("s")
    other = SnapshotStore(Objects(MemoryStore()), "local")  # the same snapshots, none of the blobs
    await other.put_pack(await anext(aiter(store.fetch(manifest.blobs()))))
    await other.commit("s", manifest)
    index = await other._indexed()
    index.clear()
    (machine.workspace / "new").write_text("new")
    head = await save(machine.dial, "", other, "s")
    assert head
    assert await other.missing((await other.load("s"))[1].blobs()) == []
    other.close()


async def test_restore_never_follows_what_stands_in_its_way(
    store: SnapshotStore, machines: Machines, tmp_path: Path
) -> None:
    one, two = await machines.new(), await machines.new()
    (one.workspace / "d").mkdir()
    (one.workspace / "d/file").write_text("content")
    (one.workspace / "file").write_text("content")
    await save(one.dial, "", store, "s")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("content")  # a file that is right already, but somebody else's too
    os.utime(outside / "file", ns=(1, 1))
    (two.workspace / "d").symlink_to(outside)
    os.link(outside / "file", two.workspace / "file")
    await restore(two.dial, "", store, (await store.load("s"))[1])
    assert (outside / "file").stat().st_mtime_ns == 1
    assert fingerprint(two.workspace) == fingerprint(one.workspace)


async def test_a_machine_that_cannot_write_says_so(store: SnapshotStore, machine: Machine) -> None:
    (machine.workspace / "d").mkdir()
    (machine.workspace / "d/other").write_text("in the way")
    manifest = Manifest.of([Entry(b"workspace", Kind.DIR, 0o755), Entry(b"workspace/d", Kind.SYMLINK, target=b"x")])
    with pytest.raises(RestoreFailed, match="not empty"):
        await restore(machine.dial, "", store, manifest)
    machine.workspace.rename(machine.workspace.with_name("gone"))
    with pytest.raises(SaveFailed, match="No such file"):
        await save(machine.dial, "", store, "s")
