"""The workspace process as init runs it: claimed, killed at any moment, started again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from catty.errors import CattyError, SaveFailed
from catty.server.snapshots import restore, save
from catty.workspace.manifest import Manifest
from catty.workspace.objects import Objects
from catty.workspace.store import SnapshotStore
from runtime.workspace_support import fingerprint, make_tree, trees_in

TOKEN = "f00d" * 8
CLAIM = {"token": TOKEN, "conversation": [".claude/projects"]}


class Process:
    """Holds the listener, as init does, and starts processes on it."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.trees = trees_in(directory)
        self.workspace, self.home = Path(self.trees.workspace), Path(self.trees.home)
        self.path = str(directory / "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.environment = {
            **os.environ,
            "CATTY_WORKSPACE_DIR": self.trees.workspace,
            "CATTY_AGENT_HOME": self.trees.home,
            "CATTY_AGENT_UID": str(os.getuid()),
            **environment,
        }
        self.init: socket.socket | None = None
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *, claimed: bool = True) -> None:
        if self.init:
            self.init.close()
        self.init, theirs = socket.socketpair()
        descriptors = self.listener.fileno(), theirs.fileno()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "catty.runtime.workspace", *map(str, descriptors),
            env=self.environment, pass_fds=descriptors,
        )  # fmt: skip
        theirs.close()
        if claimed:
            self.claim()

    def claim(self) -> None:
        assert self.init
        self.init.sendall(json.dumps(CLAIM).encode() + b"\n")

    async def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        assert await self.process.wait() == -signal.SIGKILL

    async def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.path)
        return sock

    async def end(self) -> None:
        """Init goes, and the process with it."""
        if self.init:
            self.init.close()
        self.listener.close()
        if self.process:
            async with asyncio.timeout(10):
                await self.process.wait()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Process]:
    process = Process(tmp_path / "one")
    yield process
    await process.end()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Process]:
    process = Process(tmp_path / "two")
    yield process
    await process.end()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SnapshotStore]:
    store = SnapshotStore(Objects.in_directory(tmp_path / "store"), "local")
    yield store
    store.close()


async def test_it_serves_whoever_knows_the_token(machine: Process, store: SnapshotStore) -> None:
    await machine.start(claimed=False)
    with pytest.raises(SaveFailed):
        await save(machine.dial, "None", store, "s")
    machine.claim()
    assert await until_saved(machine, store)
    for token in ("", TOKEN[:-1], TOKEN + "0", "None"):
        with pytest.raises(SaveFailed):
            await save(machine.dial, token, store, "s")
    assert len(await store.heads("s")) == 1


async def until_saved(machine: Process, store: SnapshotStore, **options: object) -> Manifest:
    """Save until it works, as the keeper does; the newest manifest."""
    async with asyncio.timeout(20):
        while True:
            try:
                await save(machine.dial, TOKEN, store, "s", **options)  # type: ignore[arg-type]
            except SaveFailed:
                await asyncio.sleep(0.02)
            else:
                return (await store.load("s"))[1]


async def test_it_ends_with_init(machine: Process) -> None:
    await machine.start()
    assert machine.init
    machine.init.close()
    assert machine.process
    async with asyncio.timeout(10):
        assert await machine.process.wait() == 0


async def test_the_claim_says_what_of_the_home_is_saved(machine: Process, store: SnapshotStore) -> None:
    (machine.home / ".claude/projects").mkdir(parents=True)
    (machine.home / ".claude/projects/talk").write_text("talk")
    (machine.home / ".codex/sessions").mkdir(parents=True)
    await machine.start()
    manifest = await until_saved(machine, store)
    assert {b"home/.claude/projects/talk"} == {path for path in manifest.entries if path.endswith(b"talk")}
    assert b"home/.codex" not in manifest.entries
    manifest = await until_saved(machine, store, conversation=[".codex/sessions"])
    assert b"home/.codex/sessions" in manifest.entries
    assert b"home/.claude" not in manifest.entries


async def test_killed_in_the_middle_of_saves(machine: Process, other: Process, store: SnapshotStore) -> None:
    """Whatever the moment: the store stays whole, and the process that follows saves what is missing."""
    make_tree(machine.workspace, files=200)
    chance = random.Random(7)
    await machine.start()
    for number in range(8):
        (machine.workspace / f"new{number}").write_bytes(chance.randbytes(2_000_000))
        saving = asyncio.create_task(save(machine.dial, TOKEN, store, "s"))
        await asyncio.wait([saving], timeout=chance.uniform(0.1, 0.5))
        await machine.kill()
        await machine.start()  # and serves who was still waiting in the listener's queue
        await asyncio.gather(saving, return_exceptions=True)
        for head in await store.heads("s"):
            _, manifest = await store.load("s", head.number)
            assert await store.missing(manifest.blobs()) == []
    manifest = await until_saved(machine, store)
    await other.start()
    await until_restored(other, store, manifest)
    assert fingerprint(other.workspace, times=False) == fingerprint(machine.workspace, times=False)


async def until_restored(machine: Process, store: SnapshotStore, manifest: Manifest) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await restore(machine.dial, TOKEN, store, manifest)
            except CattyError:
                await asyncio.sleep(0.02)


async def test_killed_in_the_middle_of_restores(machine: Process, other: Process, store: SnapshotStore) -> None:
    make_tree(machine.workspace, files=1500)
    await machine.start()
    manifest = await until_saved(machine, store)
    chance = random.Random(8)
    await other.start()
    for _ in range(8):
        restoring = asyncio.create_task(restore(other.dial, TOKEN, store, manifest))
        await asyncio.wait([restoring], timeout=chance.uniform(0.1, 0.5))
        await other.kill()
        await other.start()
        await asyncio.gather(restoring, return_exceptions=True)
    await until_restored(other, store, manifest)
    assert fingerprint(other.workspace) == fingerprint(machine.workspace)
    assert await save(other.dial, TOKEN, store, "s") is None


async def test_an_unchanged_tree_is_no_news_after_a_crash(machine: Process, store: SnapshotStore) -> None:
    make_tree(machine.workspace, files=100)
    await machine.start()
    await until_saved(machine, store)
    await machine.kill()
    await machine.start()
    await until_saved(machine, store)
    assert len(await store.heads("s")) == 1


async def test_a_volume_is_saved_by_a_helper_that_is_never_claimed(tmp_path: Path, store: SnapshotStore) -> None:
    machine = Process(tmp_path / "m")
    (machine.home / ".claude/projects").mkdir(parents=True)
    (machine.home / ".claude/projects/talk").write_text("talk")
    await machine.start()
    await until_saved(machine, store)
    await machine.kill()
    machine.listener.close()
    (machine.workspace / "last words").write_text("saved?")
    (machine.home / ".claude/projects/talk").write_text("talk and more")
    (tmp_path / "m/socket").unlink()
    helper = Process(tmp_path / "m", CATTY_SALVAGE="1")
    await helper.start(claimed=False)
    manifest = await until_saved(helper, store)
    assert b"workspace/last words" in manifest.entries
    assert (
        manifest.entries[b"home/.claude/projects/talk"].size == 4
    )  # nobody said what belongs to the conversation: kept
    manifest = await until_saved(helper, store, conversation=[".claude/projects"])
    assert manifest.entries[b"home/.claude/projects/talk"].size == 13
    with pytest.raises(CattyError):
        await restore(helper.dial, TOKEN, store, manifest)
    await helper.end()
    assert machine.init
    machine.init.close()
