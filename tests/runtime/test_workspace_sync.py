"""What a client sees of `/workspace` over `/sync`: the listing, changes as they happen, blobs, pasted files."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from catty.errors import BadRequest, CattyError
from catty.runtime import workspace_watch
from catty.runtime.workspace_put import clean_name
from catty.server.sessions.control import open_websocket
from catty.wire.channel import Channel
from catty.workspace.exchange import Exchange, Kind, Object, join_digests
from catty.workspace.manifest import Manifest
from catty.workspace.model import digest
from catty.workspace.packs import read
from runtime.workspace_support import Machine, fingerprint, make_tree


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with Machine(tmp_path).running() as machine:
        yield machine


def rules(text: bytes = b"", base: bytes = b"") -> dict[str, Any]:
    return {"sources": [[base64.b64encode(base).decode(), base64.b64encode(text).decode()]]}


class Client:
    """Keeps a manifest up to date with what the machine tells."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.manifest = Manifest(())
        self.deltas = 0

    async def hello(self, **fields: Any) -> dict[str, Any]:
        await self.exchange.send("hello", version=1, **fields)
        listing = await self.exchange.expect("listing")
        if listing["sent"]:
            self.manifest = Manifest.from_bytes((await self.exchange.expect_object(Kind.MANIFEST)).data)
        return listing

    def paths(self) -> set[str]:
        return {os.fsdecode(path) for path in self.manifest.entries}

    async def until(self, *paths: str) -> None:
        """Until exactly these paths lie in the workspace."""
        async with asyncio.timeout(10):
            while self.paths() != {"workspace", *(f"workspace/{path}" for path in paths)}:
                await self.delta()

    async def delta(self) -> None:
        self.manifest = self.manifest.apply((await self.exchange.expect_object(Kind.DELTA)).data)
        self.deltas += 1

    async def until_like(self, root: Path) -> None:
        """Until it knows exactly the files that are there, with their content."""
        async with asyncio.timeout(20):
            while not self.is_like(root):
                await self.delta()

    def is_like(self, root: Path) -> bool:
        files = fingerprint(root)
        known = {path.removeprefix(b"workspace/"): entry for path, entry in self.manifest.entries.items()}
        known.pop(b"workspace", None)
        if known.keys() != files.keys():
            return False
        for path, (_, _, content) in files.items():
            entry = known[path]
            if isinstance(content, bytes) and not entry.target:
                cuts = range(0, len(content), 1 << 20)
                if entry.blobs != tuple(digest(content[cut : cut + (1 << 20)]) for cut in cuts):
                    return False
        return True

    async def blobs(self, *names: bytes) -> tuple[dict[bytes, bytes], list[str]]:
        await self.exchange.send_object(Kind.DIGESTS, join_digests(list(names)))
        found: dict[bytes, bytes] = {}
        while isinstance(item := await self.exchange.receive(), Object):
            if item.kind is Kind.DELTA:
                self.manifest = self.manifest.apply(item.data)
            else:
                found |= {name: bytes(data) for name, data in read(item.data)}
        assert item["type"] == "blobs"
        return found, item["missing"]


@asynccontextmanager
async def client(machine: Machine) -> AsyncIterator[Client]:
    channel = Channel()
    await open_websocket(await machine.dial(), "/sync", "", lambda: channel, 2 << 20)
    async with Exchange(channel) as exchange:
        yield Client(exchange)


async def test_the_listing_is_the_workspace_without_git_and_the_ignored(machine: Machine) -> None:
    for path in (
        ".git/HEAD",
        "src/.GIT/config",
        "deep/.git",
        ".catty-uploads/x",
        "out/a.o",
        "b.o",
        "keep.o",
        "src/main.c",
    ):
        (machine.workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (machine.workspace / path).write_text(path)
    (machine.workspace / ".gitignore").write_text("out/\n*.o\n!keep.o\n")
    (machine.workspace / "src/.gitignore").write_text("*.tmp\n")
    (machine.workspace / "src/x.tmp").write_text("")
    (machine.workspace / "secret.env").write_text("")
    async with client(machine) as seen:
        listing = await seen.hello(rules=rules(b"*.env\n"))
        assert seen.paths() == {
            "workspace", "workspace/.gitignore", "workspace/keep.o", "workspace/deep",
            "workspace/src", "workspace/src/.gitignore", "workspace/src/main.c",
        }  # fmt: skip
        assert listing["digest"] == seen.manifest.digest.hex()
    async with client(machine) as again:
        assert (await again.hello(rules=rules(b"*.env\n"), known=listing["digest"]))["sent"] is False


async def test_tracked_files_and_rules_from_above_the_workspace(machine: Machine) -> None:
    for name in ("a.log", "b.log", "c.txt"):
        (machine.workspace / name).write_text(name)
    async with client(machine) as seen:
        await seen.exchange.send_object(Kind.PATHS, b"a.log\0")
        prefix = base64.b64encode(b"sub/").decode()
        await seen.hello(rules=rules(b"*.log\n") | {"prefix": prefix})
        assert seen.paths() == {"workspace", "workspace/a.log", "workspace/c.txt"}


async def test_changes_are_told_as_they_happen(machine: Machine) -> None:
    work = machine.workspace
    async with client(machine) as seen:
        await seen.hello()
        (work / "a").write_text("one")
        await seen.until("a")
        (work / "d/e").mkdir(parents=True)
        (work / "d/e/f").write_text("two")
        await seen.until("a", "d", "d/e", "d/e/f")
        (work / "d").rename(work / "g")
        await seen.until("a", "g", "g/e", "g/e/f")
        (work / "g/e/h").write_text("in a directory that was moved")
        await seen.until("a", "g", "g/e", "g/e/f", "g/e/h")
        shutil.rmtree(work / "g")
        (work / "a").unlink()
        (work / "a").symlink_to("elsewhere")
        (work / "g").write_text("a file now")
        await seen.until("a", "g")
        await seen.until_like(work)
        (work / "g").unlink()
        (work / "g").mkdir()
        (work / "g/x").write_text("a directory again")
        await seen.until("a", "g", "g/x")
        os.chmod(work / "g/x", 0o755)
        await seen.delta()
        assert seen.manifest.entries[b"workspace/g/x"].mode == 0o755


async def test_a_file_that_stays_open_is_told_while_it_grows(machine: Machine) -> None:
    async with client(machine) as seen:
        await seen.hello()
        descriptor = os.open(machine.workspace / "log", os.O_WRONLY | os.O_CREAT)
        try:
            await seen.until("log")
            os.write(descriptor, b"first line\n")
            async with asyncio.timeout(5):
                while seen.manifest.entries[b"workspace/log"].size != 11:
                    await seen.delta()
        finally:
            os.close(descriptor)


async def test_ignored_files_are_not_told_and_new_rules_are_heard(machine: Machine) -> None:
    async with client(machine) as seen:
        await seen.hello(rules=rules(b"*.log\n"))
        (machine.workspace / "a.log").write_text("x")
        (machine.workspace / ".git").mkdir()
        (machine.workspace / ".git/HEAD").write_text("x")
        (machine.workspace / "b.txt").write_text("x")
        await seen.until("b.txt")
        (machine.workspace / ".gitignore").write_text("b.*\n")
        await seen.until(".gitignore")
        (machine.workspace / ".gitignore").write_text("!*.log\n")
        await seen.until(".gitignore", "a.log", "b.txt")


async def test_a_storm_of_changes_ends_in_the_same_tree(machine: Machine) -> None:
    work = machine.workspace
    async with client(machine) as seen:
        await seen.hello()
        script = """
            for i in 1 2 3 4 5 6; do
                mkdir -p a/b$i/c && echo $i > a/b$i/c/f && cp -r a/b$i a/copy$i && mv a moved && mv moved a
                rm -rf a/b$((i-1)) && ln -sf f a/link && echo more >> a/copy$i/c/f
                for j in 1 2 3 4 5 6 7 8 9; do echo $i$j > a/f$j.tmp; mv a/f$j.tmp a/f$j; done
                [ $i = 3 ] && mv a b && mkdir a && mv b a/b
            done; true
        """
        storm = await asyncio.create_subprocess_exec("sh", "-ec", script, cwd=work)
        await storm.wait()
        await seen.until_like(work)


async def test_lost_events_are_made_good(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(machine.workspace, files=50)
    async with client(machine) as seen:
        await seen.hello()
        real = workspace_watch.Watcher.read

        def lossy(self: workspace_watch.Watcher) -> workspace_watch.Changes:
            real(self)
            return workspace_watch.Changes(everything=True)

        monkeypatch.setattr(workspace_watch.Watcher, "read", lossy)
        (machine.workspace / "new/deep").mkdir(parents=True)
        (machine.workspace / "new/deep/file").write_text("x")
        (machine.workspace / "big").unlink()
        await seen.until_like(machine.workspace)
        monkeypatch.undo()
        (machine.workspace / "new/deep/other").write_text("watched after the comparison too")
        await seen.until_like(machine.workspace)


async def test_without_watches_changes_are_still_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.workspace / "d").mkdir()
    real = workspace_watch.Watcher._add

    def stingy(self: workspace_watch.Watcher, path: bytes) -> bool:
        self.limited = True
        return real(self, path) if not path else False

    monkeypatch.setattr(workspace_watch.Watcher, "_add", stingy)
    monkeypatch.setattr("catty.runtime.workspace_sync._LIMITED_S", 0.1)
    async with client(machine) as seen:
        await seen.hello()
        (machine.workspace / "d/file").write_text("x")
        await seen.until("d", "d/file")


async def test_blobs_are_sent_while_they_are_there(machine: Machine) -> None:
    make_tree(machine.workspace, files=60)
    async with client(machine) as seen:
        await seen.hello()
        wanted = seen.manifest.blobs()
        found, missing = await seen.blobs(*wanted)
        assert found.keys() == wanted.keys()
        assert missing == []
        old = seen.manifest.entries[b"workspace/big"].blobs
        (machine.workspace / "big").write_bytes(b"replaced")
        unknown = digest(b"unknown")
        found, missing = await seen.blobs(*old, unknown)
        assert found == {}
        assert missing == [name.hex() for name in (*old, unknown)]


async def test_blobs_are_never_read_through_a_symlink(machine: Machine, tmp_path: Path) -> None:
    (machine.workspace / "d").mkdir()
    (machine.workspace / "d/f").write_text("inside")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/f").write_text("inside")
    async with client(machine) as seen:
        await seen.hello()
        shutil.rmtree(machine.workspace / "d")
        (machine.workspace / "d").symlink_to(tmp_path / "out")
        name = digest(b"inside")
        await seen.until("d")
        assert await seen.blobs(name) == ({}, [name.hex()])


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("shot.png", "shot.png"),
        ("/etc/../x y.pdf", "x-y.pdf"),
        ("C:\\a\\b.txt", "b.txt"),
        ("..", "file"),
        (".bashrc", "bashrc"),
        ("a\nb;$(rm -rf).md", "a-b-rm--rf-.md"),
        ("Bild ü.jpg", "Bild-ü.jpg"),
        ("x" * 300 + ".jpeg", "x" * 95 + ".jpeg"),
        ("", "file"),
    ],
)
def test_names_of_pasted_files(name: str, clean: str) -> None:
    assert clean_name(name) == clean


async def test_pasted_files_get_names_of_their_own(machine: Machine) -> None:
    async with client(machine) as seen:
        paths = []
        for number in range(3):
            await seen.exchange.send("put", id=number, name="../shot.png")
            await seen.exchange.send_object(Kind.FILE, b"picture %d" % number)
            reply = await seen.exchange.expect("put")
            assert reply["id"] == number
            paths.append(Path(reply["path"]))
        assert [path.name for path in paths] == ["shot.png", "shot-1.png", "shot-2.png"]
        assert [path.read_bytes() for path in paths] == [b"picture 0", b"picture 1", b"picture 2"]
        assert {path.parent for path in paths} == {machine.workspace / ".catty-uploads"}


async def test_a_pasted_file_does_not_leave_the_workspace(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (machine.workspace / ".catty-uploads").symlink_to(tmp_path / "out")
    async with client(machine) as seen:
        await seen.exchange.send("put", id=1, name="x.png")
        await seen.exchange.send_object(Kind.FILE, b"x")
        assert (await seen.exchange.expect("put"))["error"]["error"] == "machine-error"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "hello",
    [
        {"version": 2},
        {},
        {"version": 1, "rules": []},
        {"version": 1, "rules": {"sources": [["", 5]]}},
        {"version": 1, "rules": {"sources": ["x"]}},
        {"version": 1, "rules": {"prefix": "eA=="}},
        {"version": 1, "known": "xyz"},
    ],
)
async def test_a_hello_that_is_none_is_refused(machine: Machine, hello: dict[str, Any]) -> None:
    async with client(machine) as seen:
        await seen.exchange.send("hello", **hello)
        with pytest.raises(BadRequest):
            await seen.exchange.expect("listing")


async def test_requests_of_the_future_are_answered(machine: Machine) -> None:
    async with client(machine) as seen:
        await seen.exchange.send("bundle", refs=["main"])
        assert await seen.exchange.expect("unsupported") == {"type": "unsupported", "request": "bundle"}
        await seen.exchange.send_object(Kind.DIGESTS, bytes(32))
        with pytest.raises(CattyError):
            await seen.exchange.expect("blobs")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_clients_that_go_leave_nothing_behind(machine: Machine) -> None:
    make_tree(machine.workspace, files=20)
    counts = []
    for _ in range(4):
        async with client(machine) as seen:
            await seen.hello()
        await asyncio.gather(*machine.served)
        counts.append(open_descriptors())
    assert len(set(counts[1:])) == 1
