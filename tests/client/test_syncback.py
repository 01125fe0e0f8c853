"""Sync-back while connected, against the machine's own side of `/sync` over a real socket."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from catty.client import link
from catty.client.config import Server
from catty.client.syncback import SyncBack, Target
from catty.client.synclink import Socket, put_file
from catty.client.syncstate import DirectoryLock, SyncState, read_pause
from catty.constants import BLOB_BYTES
from catty.errors import BadRequest, CattyError, ConnectionLost, ServerUnreachable, UsageError
from catty.workspace import apply
from runtime.workspace_support import Machine


class Bench:
    """A machine and a local directory; `following()` runs sync-back between them."""

    def __init__(self, root: Path) -> None:
        self.machine = Machine(root / "machine")
        self.there, self.here = self.machine.workspace, root / "here"
        self.here.mkdir()
        self.target = Target(root / "home", "id", "brave-tiger-1234", self.here)
        self.notices: list[str] = []
        self.connected = 0
        self.sockets: list[tuple[asyncio.AbstractEventLoop, link.WebSocket]] = []
        self.reachable = True

    async def connect(self) -> link.WebSocket:
        if not self.reachable:
            raise ServerUnreachable(server="bench", reason="unplugged")
        self.connected += 1
        token = Path(self.machine.socket).with_name("token")
        token.write_text("t")
        socket = await link.connect(Server(f"unix:{self.machine.socket}", token_file=token), "/sync")
        self.sockets.append((asyncio.get_running_loop(), socket))
        return socket

    async def cut(self) -> None:
        """The connection breaks, without a goodbye."""
        loop, socket = self.sockets[-1]
        loop.call_soon_threadsafe(socket._transport.disconnect, False)

    @asynccontextmanager
    async def following(self, **options: bool) -> AsyncIterator[SyncBack]:
        target = Target(self.target.home, self.target.session, self.target.label, self.here, **options)
        sync = SyncBack(self.connect, target, lambda text, bell: self.notices.append(text))
        await asyncio.to_thread(sync.start)
        try:
            yield sync
        finally:
            await asyncio.to_thread(sync.stop)

    def files(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.here)): path.read_text(errors="replace")
            for path in sorted(self.here.rglob("*"))
            if path.is_file() and not path.name.startswith(".catty-tmp")
        }

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)

    async def until_files(self, **files: str) -> None:
        try:
            await self.until(lambda: self.files() == files)
        except TimeoutError:
            assert self.files() == files


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "machine").mkdir()
    bench = Bench(tmp_path)
    async with bench.machine.running():
        yield bench


async def test_changes_appear(bench: Bench) -> None:
    (bench.there / "a").write_text("1")
    async with bench.following() as sync:
        await bench.until_files(a="1")
        (bench.there / "a").write_text("2")
        await bench.until_files(a="2")
        (bench.there / "d/e").mkdir(parents=True)
        (bench.there / "d/e/f").write_text("f")
        await bench.until_files(a="2", **{"d/e/f": "f"})
        (bench.there / "d/e/f").rename(bench.there / "g")
        await bench.until_files(a="2", g="f")
        (bench.there / "big").write_bytes(os.urandom(18 * BLOB_BYTES))
        await bench.until((bench.here / "big").exists)
        assert (bench.here / "big").read_bytes() == (bench.there / "big").read_bytes()
        await bench.until(lambda: "up to date" in sync.text())
    assert bench.notices == []
    assert bench.connected == 1


async def test_deletions_appear_in_the_trash(bench: Bench) -> None:
    for name in "abc":
        (bench.there / name).write_text(name)
    async with bench.following():
        await bench.until_files(a="a", b="b", c="c")
        (bench.there / "b").unlink()
        await bench.until_files(a="a", c="c")
    assert [path.read_text() for path in (bench.target.home / "trash").rglob("*") if path.is_file()] == ["b"]


async def test_a_replaced_file_is_never_gone(bench: Bench) -> None:
    """Editors and `git checkout` delete and create: nothing of that reaches the trash."""
    (bench.there / "a").write_text("0")
    (bench.there / "b").write_text("b")
    async with bench.following():
        await bench.until_files(a="0", b="b")
        for number in range(1, 20):
            (bench.there / "a").unlink()
            await asyncio.sleep(0.05)
            (bench.there / "a").write_text(f"{number}")
        await bench.until_files(a="19", b="b")
    assert not list((bench.target.home / "trash").rglob("a"))


async def test_local_changes_stay(bench: Bench) -> None:
    (bench.there / "a").write_text("1")
    async with bench.following():
        await bench.until_files(a="1")
        (bench.here / "a").write_text("mine")
        (bench.here / "own").write_text("own")
        (bench.there / "a").write_text("theirs")
        await bench.until(lambda: len(bench.files()) == 3)
        (copy,) = [name for name in bench.files() if "catty-conflict-brave-tiger-1234" in name]
        assert bench.files() == {"a": "mine", "own": "own", copy: "theirs"}
        await bench.until(lambda: bench.notices != [])
    assert bench.notices == [f"a: changed on both sides; the machine's version is {copy}"]


async def test_what_happened_while_disconnected_is_not_missed(bench: Bench) -> None:
    (bench.there / "a").write_text("1")
    (bench.there / "b").write_text("1")
    async with bench.following() as sync:
        await bench.until_files(a="1", b="1")
        bench.reachable = False
        await bench.cut()
        await bench.until(lambda: "reconnecting" in sync.text())
        (bench.there / "a").write_text("2")
        (bench.there / "b").unlink()
        (bench.there / "c").write_text("new")
        bench.reachable = True
        await bench.until_files(a="2", c="new")
    (bench.there / "a").write_text("3")
    (bench.here / "c").write_text("mine")
    async with bench.following():
        await bench.until_files(a="3", c="mine")
    assert bench.notices == []


async def test_what_the_agent_builds_stays_there(bench: Bench) -> None:
    async with bench.following():
        (bench.there / ".gitignore").write_text("build/\n")
        await bench.until(lambda: ".gitignore" in bench.files())
        for name in ("build", "node_modules", ".catty-uploads", ".git"):
            (bench.there / name).mkdir()
            (bench.there / name / "x").write_text("x")
        (bench.there / "src").write_text("src")
        await bench.until(lambda: "src" in bench.files())
    assert bench.files().keys() == {".gitignore", "src"}


async def test_files_that_become_ignored_are_not_deleted(bench: Bench) -> None:
    (bench.there / "data").mkdir()
    (bench.there / "data/x").write_text("x")
    async with bench.following():
        await bench.until_files(**{"data/x": "x"})
        (bench.there / ".gitignore").write_text("data/\n")
        (bench.there / "y").write_text("y")
        await bench.until(lambda: len(bench.files()) == 3)
        (bench.there / "z").write_text("z")
        await bench.until(lambda: "z" in bench.files())
        await asyncio.sleep(1.5)  # longer than deletions wait
    assert "data/x" in bench.files()


async def test_files_that_are_no_longer_ignored_come(bench: Bench) -> None:
    (bench.there / ".gitignore").write_text("data/\n")
    (bench.there / "data").mkdir()
    (bench.there / "data/x").write_text("x")
    async with bench.following():
        await bench.until(lambda: ".gitignore" in bench.files())
        (bench.there / ".gitignore").write_text("")
        await bench.until_files(**{".gitignore": "", "data/x": "x"})


async def test_a_mass_deletion_pauses_and_the_user_decides(bench: Bench) -> None:
    for number in range(120):
        (bench.there / f"f{number}").write_text(str(number))
    async with bench.following() as sync:
        await bench.until(lambda: len(bench.files()) == 120)
        for number in range(61):
            (bench.there / f"f{number}").unlink()
        await bench.until(lambda: "paused" in sync.text())
        assert len(bench.files()) == 120
        assert "61 of 120 files were deleted" in sync.text()
        assert "catty sync brave-tiger-1234" in sync.text()
        assert read_pause(bench.target.state)
        lock = DirectoryLock(bench.target.locks, bench.here)  # free for `catty sync`
        with SyncState(bench.target.state) as state:
            state.record((f"f{number}".encode(), None) for number in range(61))
            state.paused = ""
        lock.release()
        (bench.there / "new").write_text("goes on")
        await bench.until(lambda: "new" in bench.files())
    assert len(bench.files()) == 121
    assert bench.notices == ["sync-back is paused: 61 of 120 files were deleted (~s shows more)"]


async def test_an_emptied_workspace_pauses(bench: Bench) -> None:
    for name in ("a", "b"):
        (bench.there / name).write_text(name)
    async with bench.following() as sync:
        await bench.until_files(a="a", b="b")
        for name in ("a", "b"):
            (bench.there / name).unlink()
        await bench.until(lambda: "emptied" in sync.text())
    assert bench.files() == {"a": "a", "b": "b"}
    async with bench.following() as sync:
        await bench.until(lambda: "emptied" in sync.text())
    assert bench.files() == {"a": "a", "b": "b"}


async def test_another_client_has_the_directory(bench: Bench) -> None:
    (bench.there / "a").write_text("a")
    lock = DirectoryLock(bench.target.locks, bench.here)
    async with bench.following() as sync:
        await bench.until(lambda: bench.notices != [])
        assert str(os.getpid()) in bench.notices[0]
        assert "another client" in sync.text()
        assert bench.files() == {}
        lock.release()
        await bench.until_files(a="a")
    assert len(bench.notices) == 1


async def test_disk_full_is_said_once_and_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    full = threading.Event()
    full.set()
    write = os.write

    def maybe(descriptor: int, data: bytes) -> int:
        if full.is_set() and threading.current_thread().name.startswith("sync-back"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(apply.os, "write", maybe)
    (bench.there / "a").write_text("a")
    async with bench.following() as sync:
        await bench.until(lambda: bench.notices != [])
        assert bench.notices == ["a: No space left on device"]
        assert "No space left" in sync.text()
        full.clear()
        (bench.there / "b").write_text("b")
        await bench.until_files(a="a", b="b")
        assert "No space left" not in sync.text()
    assert len(bench.notices) == 1


async def test_the_directory_goes_away_and_comes_back(bench: Bench) -> None:
    (bench.there / "a").write_text("a")
    async with bench.following() as sync:
        await bench.until_files(a="a")
        shutil.rmtree(bench.here)
        (bench.there / "b").write_text("b")
        await bench.until(lambda: bench.notices != [])
        assert not bench.here.exists()
        assert "directory" in sync.text()
        bench.here.mkdir()
        await bench.until(lambda: len(bench.files()) > 0)
    assert "sync-back" in bench.notices[0]


async def test_a_storm_of_renames_ends_in_the_same_tree(bench: Bench) -> None:
    """`git checkout` back and forth between branches with other files."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(bench.there)]

    def run(*args: str) -> None:
        subprocess.run([*git, *args], check=True, capture_output=True)

    run("init", "-q", "-b", "one")
    for number in range(40):
        (bench.there / f"f{number}").write_text(f"one {number}")
    run("add", ".")
    run("commit", "-q", "-m", "one")
    run("checkout", "-q", "-b", "two")
    for number in range(0, 40, 2):
        (bench.there / f"f{number}").unlink()
    for number in range(1, 40, 2):
        (bench.there / f"f{number}").write_text(f"two {number}")
    run("add", "-A")
    run("commit", "-q", "-m", "two")
    async with bench.following():
        for _ in range(5):
            for branch in ("one", "two"):
                run("checkout", "-q", branch)
                await asyncio.sleep(0.1)
        wanted = {path.name: path.read_text() for path in bench.there.iterdir() if path.is_file()}
        await bench.until(lambda: bench.files() == wanted)
    assert bench.notices == []


async def test_a_hostile_machine_disturbs_nobody(bench: Bench) -> None:
    class Hostile:
        def __init__(self) -> None:
            self.closed = False
            self.heard = 0

        async def send(self, message: bytes | str) -> None: ...

        async def receive(self) -> bytes | str:
            if self.closed:
                raise ConnectionLost(server="bench", reason="closed")
            await asyncio.sleep(0)
            self.heard += 1
            return '{"type":"listing","digest":"","sent":true}' if self.heard == 1 else os.urandom(50)

        async def close(self) -> None:
            self.closed = True

    async def connect() -> Hostile:
        return Hostile()

    sync = SyncBack(connect, bench.target, lambda text, bell: bench.notices.append(text))
    await asyncio.to_thread(sync.start)
    await bench.until(lambda: "reconnecting" in sync.text())
    await asyncio.to_thread(sync.stop)
    assert bench.files() == {}
    assert bench.notices == []


async def test_it_ends_while_nothing_answers(bench: Bench) -> None:
    bench.reachable = False
    async with bench.following() as sync:
        await bench.until(lambda: "reconnecting" in sync.text())
    assert not sync._thread.is_alive()


# ------------------------------------------------------------------------------------------------ pasted files


async def test_put(bench: Bench) -> None:
    picture = bench.here / "shot 1.png"
    picture.write_bytes(os.urandom(3 * BLOB_BYTES))
    path = await put_file(bench.connect, picture)
    (there,) = (bench.there / ".catty-uploads").iterdir()
    assert path == str(there)
    assert there.read_bytes() == picture.read_bytes()
    with pytest.raises(UsageError):
        await put_file(bench.connect, bench.here / "missing.png")
    with (bench.here / "huge.png").open("wb") as file:
        file.truncate(11 << 20)
    with pytest.raises(UsageError, match="larger than 10 MiB"):
        await put_file(bench.connect, bench.here / "huge.png")
    bench.reachable = False
    with pytest.raises(CattyError):
        await put_file(bench.connect, picture)


class Answering:
    """A machine that answers whatever is put with one message."""

    def __init__(self, **answer: object) -> None:
        self._answers = [json.dumps({"type": "put", **answer})]
        self._closed = asyncio.Event()

    async def send(self, message: bytes | str) -> None:
        """Takes everything."""

    async def receive(self) -> bytes | str:
        if not self._answers:
            await self._closed.wait()
            raise ConnectionLost(server="it", reason="over")
        return self._answers.pop()

    async def close(self) -> None:
        self._closed.set()


@pytest.mark.parametrize("path", ["/workspace/\udfff.png", "/workspace/a\x1b[31m.png", "/workspace/a\nrm -rf ~\n"])
async def test_a_path_that_a_machine_made_up_is_not_typed(tmp_path: Path, path: str) -> None:
    async def connect() -> Socket:
        return Answering(path=path)

    (tmp_path / "a.png").write_bytes(b"png")
    with pytest.raises(BadRequest):
        await put_file(connect, tmp_path / "a.png")


async def test_the_state_is_not_closed_while_it_is_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite ends the process where one thread closes what another uses."""
    using, closed, used = threading.Event(), threading.Event(), []
    load, close = SyncState.load_seen, SyncState.close

    def slow_load(state: SyncState) -> object:
        using.set()
        used.append(not closed.wait(0.5))
        return load(state)

    def noted_close(state: SyncState) -> None:
        closed.set()
        close(state)

    monkeypatch.setattr(SyncState, "load_seen", slow_load)
    monkeypatch.setattr(SyncState, "close", noted_close)
    async with bench.following():
        await asyncio.to_thread(using.wait)
    assert closed.is_set()
    assert used == [True]
