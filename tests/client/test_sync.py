"""`catty sync` on real directories: every rule of sync-back, faults of the local disk, and what a killed process leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from catty.client import sync as module
from catty.client.sync import SyncReport, sync_once
from catty.client.syncback import Target
from catty.client.syncstate import DirectoryLock, Intent, SyncState, read_pause
from catty.client.upload import prepare, send
from catty.constants import BLOB_BYTES
from catty.errors import CannotWrite, SyncLocked
from catty.workspace import apply
from catty.workspace.apply import TEMP_PREFIX
from catty.workspace.manifest import Manifest
from catty.workspace.model import WORKSPACE, Entry, Kind, digest
from client.store import MemoryServer


class Pair:
    """A local directory and the machine's copy of it, `there`; `sync` brings one to the other."""

    def __init__(self, root: Path) -> None:
        self.here, self.there, self.home = root / "here", root / "there", root / "home"
        for path in (self.here, self.there):
            path.mkdir()
        self.server = MemoryServer()
        self.target = Target(self.home, "id", "brave-tiger-1234", self.here)

    def begin(self) -> None:
        """As after an upload: both sides are the same, and that is known."""
        send(self.server, "id", prepare(self.here), sessions=self.home / "sessions")
        subprocess.run(["cp", "-a", f"{self.here}/.", str(self.there)], check=True)

    def sync(self, **options: object) -> SyncReport:
        self.save()
        return sync_once(self.server, self.target, **options)  # type: ignore[arg-type]

    def save(self) -> None:
        """The machine's files become the newest snapshot, whatever rules the machine's user would have."""
        entries = [Entry(WORKSPACE, Kind.DIR, 0o755)]
        for path in sorted(self.there.rglob("*")):
            inner = WORKSPACE + b"/" + os.fsencode(path.relative_to(self.there))
            mode = path.lstat().st_mode & 0o7777
            if path.is_symlink():
                entries.append(Entry(inner, Kind.SYMLINK, target=os.fsencode(os.readlink(path))))
            elif path.is_dir():
                entries.append(Entry(inner, Kind.DIR, mode))
            else:
                entries.append(self.hold(inner, path.read_bytes(), mode))
        self.server.manifests.append(Manifest.of(entries).to_bytes())

    def hold(self, path: bytes, data: bytes, mode: int = 0o644) -> Entry:
        pieces = [data[at : at + BLOB_BYTES] for at in range(0, len(data), BLOB_BYTES)]
        self.server.blobs |= {digest(piece): piece for piece in pieces}
        return Entry(path, Kind.FILE, mode, 0, len(data), tuple(map(digest, pieces)))

    def files(self) -> dict[str, str]:
        """What lies in the local directory, conflict copies under a name without their time."""
        return {
            re.sub(r"\d{8}T\d{6}Z", "T", str(path.relative_to(self.here))): path.read_text()
            for path in sorted(self.here.rglob("*"))
            if path.is_file() and not path.is_symlink() and ".git/" not in f"{path}/"
        }

    def trashed(self) -> list[str]:
        return sorted(path.read_text() for path in (self.home / "trash").rglob("*") if path.is_file())


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    pair = Pair(tmp_path)
    (pair.here / "a").write_text("a1")
    (pair.here / "d").mkdir()
    (pair.here / "d/b").write_text("b1")
    pair.begin()
    yield pair
    assert not [path for path in pair.here.rglob("*") if path.name.startswith(TEMP_PREFIX.decode())]


def test_changes_arrive(pair: Pair) -> None:
    (pair.there / "a").write_text("a2")
    (pair.there / "new/deep").mkdir(parents=True)
    (pair.there / "new/deep/f").write_text("f")
    (pair.there / "run").write_text("#!")
    (pair.there / "run").chmod(0o755)
    (pair.there / "link").symlink_to("d/b")
    (pair.there / "big").write_bytes(os.urandom(20 * BLOB_BYTES + 3))
    (pair.there / "empty").write_bytes(b"")
    report = pair.sync()
    assert report.updated == ["a"]
    assert report.created == ["big", "empty", "link", "new", "new/deep", "new/deep/f", "run"]
    assert (pair.here / "a").read_text() == "a2"
    assert (pair.here / "big").read_bytes() == (pair.there / "big").read_bytes()
    assert (pair.here / "run").stat().st_mode & 0o111 == 0o111
    assert os.readlink(pair.here / "link") == "d/b"
    assert pair.sync().nothing


def test_a_machine_restored_from_an_older_save_takes_nothing_away(pair: Pair) -> None:
    (pair.there / "a").write_text("a2, and then the machine died")
    pair.sync()
    (pair.there / "a").write_text("a1")
    pair.sync()
    assert pair.files()["a"] == "a1"
    assert "a2, and then the machine died" in pair.trashed()


def test_a_local_change_stays_and_the_other_version_goes_beside_it(pair: Pair) -> None:
    (pair.here / "a").write_text("mine")
    (pair.there / "a").write_text("theirs")
    report = pair.sync()
    assert list(report.conflicts) == ["a"]
    copy = "a.catty-conflict-brave-tiger-1234-T"
    assert pair.files() == {"a": "mine", copy: "theirs", "d/b": "b1"}
    assert pair.sync().nothing, "once is enough"
    (pair.there / "a").write_text("theirs 2")
    pair.sync()
    assert pair.files() == {"a": "mine", copy: "theirs 2", "d/b": "b1"}, (
        "a copy that nobody touched is brought up to date"
    )


def test_a_conflict_copy_that_the_user_edits_is_the_users(pair: Pair) -> None:
    (pair.here / "a").write_text("mine")
    (pair.there / "a").write_text("theirs")
    pair.sync()
    (copy,) = pair.here.glob("a.catty-conflict*")
    copy.write_text("merged")
    (pair.there / "a").write_text("theirs 2")
    pair.sync()
    assert sorted(path.read_text() for path in pair.here.glob("a*")) == ["merged", "mine", "theirs 2"]


def test_without_a_known_version_equal_files_are_adopted_and_others_conflict(pair: Pair) -> None:
    pair.target = replace(pair.target, session="another")
    (pair.there / "d/b").write_text("b2")
    report = pair.sync()
    assert list(report.conflicts) == ["d/b"]
    assert pair.files()["a"] == "a1"
    assert pair.files()["d/b"] == "b1"
    (pair.there / "a").write_text("a2")
    assert pair.sync().updated == ["a"]


def test_only_the_local_side_changed(pair: Pair) -> None:
    (pair.here / "a").write_text("mine")
    (pair.here / "d/b").unlink()
    assert pair.sync().nothing
    assert pair.files() == {"a": "mine"}


def test_deletions_need_a_flag_and_go_to_the_trash(pair: Pair) -> None:
    (pair.there / "d/b").unlink()
    (pair.there / "d").rmdir()
    report = pair.sync()
    assert report.kept == ["d/b", "d"]
    assert pair.files() == {"a": "a1", "d/b": "b1"}
    report = pair.sync(delete=True)
    assert report.deleted == ["d/b", "d"]
    assert pair.files() == {"a": "a1"}
    assert not (pair.here / "d").exists()
    assert pair.trashed() == ["b1"]


def test_what_was_changed_here_is_not_deleted(pair: Pair) -> None:
    (pair.there / "d/b").unlink()
    (pair.there / "d").rmdir()
    (pair.here / "d/b").write_text("mine")
    pair.sync(delete=True)
    assert pair.files()["d/b"] == "mine"
    (pair.there / "d").mkdir()
    (pair.there / "d/b").write_text("again")
    assert list(pair.sync(delete=True).conflicts) == ["d/b"]


def test_dry_run_tells_exactly_and_changes_nothing(pair: Pair) -> None:
    (pair.there / "a").write_text("a2")
    (pair.there / "n").write_text("n")
    (pair.there / "d/b").write_text("b2")
    (pair.here / "d/b").write_text("mine")
    (pair.there / "x").mkdir()
    (pair.there / "hostile").symlink_to("/etc/passwd")
    before = pair.files()
    dry = pair.sync(dry_run=True)
    assert dry.lines() == [
        "create  n",
        "create  x",
        "update  a",
        "conflict  d/b",
        "skip  hostile  (it is a symlink that leads out of the directory, or into its git directory)",
    ]
    assert pair.files() == before
    done = pair.sync().lines()
    assert done[:3] + done[4:] == dry.lines()[:3] + dry.lines()[4:]
    assert re.match(
        r"conflict  d/b  \(the machine's version is d/b\.catty-conflict-brave-tiger-1234-\d+T\d+Z\)", done[3]
    )


def test_kinds_change_both_ways(pair: Pair) -> None:
    (pair.there / "a").unlink()
    (pair.there / "a/deep").mkdir(parents=True)
    (pair.there / "a/deep/f").write_text("f")
    (pair.there / "d/b").unlink()
    (pair.there / "d").rmdir()
    (pair.there / "d").write_text("file now")
    pair.sync()
    assert pair.files() == {"a/deep/f": "f", "d": "file now"}
    assert pair.sync().nothing
    assert pair.trashed() == ["a1", "b1"]


def test_a_directory_with_files_of_the_users_is_not_replaced(pair: Pair) -> None:
    (pair.here / ".gitignore").write_text("ignored\n")
    (pair.here / "d/ignored").write_text("mine")
    (pair.there / "d/b").unlink()
    (pair.there / "d").rmdir()
    (pair.there / "d").write_text("file now")
    pair.sync()
    assert pair.files()["d/ignored"] == "mine"
    assert pair.files()["d.catty-conflict-brave-tiger-1234-T"] == "file now"
    assert pair.sync().nothing


def test_a_file_in_the_way_of_a_directory_is_told(pair: Pair) -> None:
    (pair.here / "x").write_text("mine")
    (pair.there / "x").mkdir()
    (pair.there / "x/f").write_text("f")
    report = pair.sync()
    assert [path for path, why in report.left] == ["x"]
    assert pair.files()["x"] == "mine"
    (pair.here / "x").unlink()
    pair.sync()
    assert pair.files()["x/f"] == "f"


def test_ignored_paths_are_left_alone_by_the_rules_of_either_side(pair: Pair) -> None:
    (pair.here / ".gitignore").write_text("out/\n")
    for name in ("out", "node_modules", "data"):
        (pair.there / name).mkdir()
        (pair.there / name / "x").write_text(name)
    (pair.there / ".catty-uploads").mkdir()
    (pair.there / ".catty-uploads/p.png").write_text("png")
    pair.sync()
    assert sorted(pair.files()) == [".gitignore", "a", "d/b", "data/x"]
    (pair.there / ".gitignore").write_text("data/\n")
    (pair.there / "data/x").unlink()  # it is ignored there from now on: to be gone there means nothing here
    report = pair.sync(delete=True)
    assert list(report.conflicts) == [".gitignore"]
    assert report.deleted == []
    assert "data/x" in pair.files()


def test_rules_that_change_with_the_files(pair: Pair) -> None:
    (pair.here / ".gitignore").write_text("data\n")
    pair.begin()
    (pair.there / ".gitignore").write_text("build\n")
    (pair.there / "data").write_text("no longer ignored")
    (pair.there / "build").write_text("ignored now")
    dry = pair.sync(dry_run=True)
    assert dry.created == ["data"]
    assert pair.sync().lines() == dry.lines()
    assert sorted(pair.files()) == [".gitignore", "a", "d/b", "data"]


def test_tracked_files_are_synced_whatever_the_rules_say(pair: Pair) -> None:
    (pair.here / "x.log").write_text("1")
    for command in (["init", "-q"], ["add", "-f", "x.log"]):
        subprocess.run(["git", *command], cwd=pair.here, check=True)
    pair.begin()
    (pair.there / "x.log").write_text("2")
    (pair.there / "y.log").write_text("2")
    pair.sync()
    assert pair.files()["x.log"] == "2"
    assert "y.log" not in pair.files()


def test_git_directories_are_never_touched(pair: Pair) -> None:
    subprocess.run(["git", "init", "-q"], cwd=pair.here, check=True)
    (pair.there / ".git/hooks").mkdir(parents=True)
    (pair.there / ".git/hooks/pre-commit").write_text("evil")
    (pair.there / "sub").mkdir()
    (pair.there / "sub/.git").write_text("gitdir: ../evil")
    (pair.there / "sub/.GIT").mkdir()
    (pair.there / "sub/.GIT/config").write_text("evil")
    (pair.there / "bare").mkdir()
    for name in ("objects", "refs", "hooks"):
        (pair.there / "bare" / name).mkdir()
    (pair.there / "bare/HEAD").write_text("ref: refs/heads/main")
    (pair.there / "bare/config").write_text("evil")
    report = pair.sync()
    assert pair.files() == {"a": "a1", "d/b": "b1"}
    assert not (pair.here / ".git/hooks/pre-commit").exists()
    assert report.left == []
    assert not (pair.here / "bare").exists()


def test_a_git_directory_that_comes_bit_by_bit_never_becomes_one(pair: Pair) -> None:
    (pair.there / "x/objects").mkdir(parents=True)
    (pair.there / "x/config").write_text("evil")
    pair.sync()
    (pair.there / "x/HEAD").write_text("ref: refs/heads/main")
    (pair.there / "x/refs").mkdir()
    pair.sync()
    assert not (pair.here / "x/HEAD").exists()
    assert not (pair.here / "x/refs").exists()


def test_a_bare_repository_of_the_users_is_never_touched(pair: Pair) -> None:
    subprocess.run(["git", "init", "-q", "--bare", "store.git"], cwd=pair.here, check=True)
    (pair.there / "store.git/hooks").mkdir(parents=True)
    (pair.there / "store.git/hooks/post-receive").write_text("evil")
    report = pair.sync()
    assert not (pair.here / "store.git/hooks/post-receive").exists()
    assert report.nothing


def test_config_that_runs_code_needs_a_flag(pair: Pair) -> None:
    (pair.there / ".vscode").mkdir()
    (pair.there / ".vscode/tasks.json").write_text("{}")
    (pair.there / ".envrc").write_text("evil")
    report = pair.sync()
    assert {path for path, why in report.left if "--sync-config" in why} == {".vscode", ".vscode/tasks.json", ".envrc"}
    assert pair.files() == {"a": "a1", "d/b": "b1"}
    pair.target = replace(pair.target, config=True)
    pair.sync()
    assert {".envrc", ".vscode/tasks.json"} <= pair.files().keys()


def test_a_machine_never_writes_to_cattys_own_directory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATTY_HOME", str(pair.here / ".catty"))
    (pair.here / ".catty").mkdir()
    (pair.here / ".catty/config.toml").write_text("mine")
    for name in (".catty", ".Catty"):
        (pair.there / name).mkdir()
        for file in ("config.toml", "credentials.json"):
            (pair.there / name / file).write_text("theirs")
    assert pair.sync(delete=True).nothing
    assert pair.files() == {"a": "a1", "d/b": "b1", ".catty/config.toml": "mine"}
    (pair.there / "new").write_text("theirs")
    monkeypatch.setenv("CATTY_HOME", str(pair.here))
    assert pair.sync().nothing
    assert not (pair.here / "new").exists()


def test_symlinks_that_lead_out_are_not_made_and_none_is_followed(pair: Pair, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("precious")
    (pair.there / "out").symlink_to(outside)
    (pair.there / "hooks").symlink_to(".git/hooks")
    (pair.here / "mine").symlink_to(outside)
    (pair.there / "mine").mkdir()
    (pair.there / "mine/f").write_text("evil")
    report = pair.sync()
    assert not (pair.here / "out").is_symlink()
    assert not (pair.here / "hooks").is_symlink()
    assert (outside / "f").read_text() == "precious"
    assert {path for path, _ in report.left} == {"out", "hooks", "mine"}


def test_setuid_is_not_applied(pair: Pair) -> None:
    (pair.there / "su").write_text("x")
    (pair.there / "su").chmod(0o6755)
    pair.sync()
    assert (pair.here / "su").stat().st_mode & 0o7000 == 0


def test_odd_names(pair: Pair) -> None:
    names = [b"\xff\xfe", b"new\nline", b"...", b"x" * 255, "ü".encode(), b"-rf", b" "]
    for name in names:
        with open(os.fsencode(pair.there) + b"/" + name, "wb") as file:
            file.write(name)
    report = pair.sync()
    assert set(os.listdir(os.fsencode(pair.here))) == {b"a", b"d", *names}
    assert all(line.isprintable() for line in report.lines())
    with open(os.fsencode(pair.here) + b"/" + b"x" * 255, "wb") as file:
        file.write(b"mine")
    with open(os.fsencode(pair.there) + b"/" + b"x" * 255, "wb") as file:
        file.write(b"theirs")
    assert list(pair.sync().conflicts) == ["x" * 255]
    assert len([name for name in os.listdir(pair.here) if "catty-conflict" in name]) == 1


def test_content_that_is_here_already_is_not_fetched(pair: Pair) -> None:
    (pair.here / "big").write_bytes(os.urandom(12 * BLOB_BYTES))
    pair.begin()
    (pair.there / "big").rename(pair.there / "moved")
    pair.save()
    pair.server.blobs.clear()
    sync_once(pair.server, pair.target)
    assert (pair.here / "moved").read_bytes() == (pair.there / "moved").read_bytes()


# ------------------------------------------------------------------------------------------------ pause, lock


def test_a_pause_asks(pair: Pair) -> None:
    (pair.there / "d/b").unlink()
    (pair.there / "a").write_text("a2")
    for answer in (True, False):
        with SyncState(pair.target.state) as state:
            state.paused = "61 of 120 files were deleted"
        pair.sync()
        assert read_pause(pair.target.state), "nobody was asked"
        assert pair.files()["a"] == "a2", "what is no deletion is done"
        asked: list[tuple[str, list[str]]] = []

        def confirm(why: str, paths: list[str]) -> bool:
            asked.append((why, paths))  # noqa: B023
            return answer  # noqa: B023

        pair.sync(confirm=confirm)
        assert asked == [("61 of 120 files were deleted", ["d/b"])]
        assert read_pause(pair.target.state) == ""
        assert ("d/b" in pair.files()) is not answer
        assert pair.sync().nothing, "a file that was kept is the user's own"
        (pair.here / "d/b").write_text("b1")
        (pair.there / "d/b").write_text("b1")
        pair.sync()
        (pair.there / "d/b").unlink()


def test_one_process_at_a_time(pair: Pair) -> None:
    lock = DirectoryLock(pair.target.locks, pair.here)
    with pytest.raises(SyncLocked, match=str(os.getpid())):
        pair.sync()
    assert pair.sync(dry_run=True).nothing
    lock.release()
    pair.sync()


# ------------------------------------------------------------------------------------------------ faults


def test_disk_full_and_the_next_time_it_works(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    (pair.there / "a").write_text("a2")
    (pair.there / "big").write_bytes(os.urandom(9 * BLOB_BYTES))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(apply.os, "write", full)
        report = pair.sync()
    assert report.left == [("a", "No space left on device"), ("big", "No space left on device")]
    assert pair.files() == {"a": "a1", "d/b": "b1"}
    assert pair.sync().updated == ["a"]
    assert (pair.here / "big").stat().st_size == 9 * BLOB_BYTES


def test_holes_stay_holes(pair: Pair) -> None:
    for name, size in (("ends", 5 * BLOB_BYTES), ("huge", 20 * BLOB_BYTES), ("small", BLOB_BYTES)):
        with open(pair.there / name, "wb") as file:
            file.write(b"begin" if name != "small" else b"")
            file.truncate(size)
    with open(pair.there / "huge", "ab") as file:
        file.write(b"end")
    pair.sync()
    for name in ("ends", "huge", "small"):
        assert (pair.here / name).read_bytes() == (pair.there / name).read_bytes()
        assert (pair.here / name).stat().st_blocks * 512 <= 2 * BLOB_BYTES


def test_what_has_no_room_is_not_begun(pair: Pair) -> None:
    pair.save()
    content = b"x" * BLOB_BYTES
    huge = Entry(b"workspace/huge", Kind.FILE, size=BLOB_BYTES << 20, blobs=(digest(content),) * (1 << 20))
    before = Manifest.from_bytes(pair.server.manifests[-1])
    pair.server.manifests.append(Manifest.of([*before.entries.values(), huge]).to_bytes())
    report = sync_once(pair.server, pair.target)  # fetching anything would raise: the server does not have it
    assert report.left == [("huge", "No space left on device")]
    assert not (pair.here / "huge").exists()


def test_permission_denied_for_one_file_stops_no_other(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    (pair.there / "a").write_text("a2")
    (pair.there / "d/b").write_text("b2")
    stage = apply.Applier.stage

    def refuse(self: apply.Applier, path: bytes, mode: int) -> apply.Staged:
        if path == b"a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return stage(self, path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(apply.Applier, "stage", refuse)
        assert pair.sync().left == [("a", "Permission denied")]
    assert pair.files() == {"a": "a1", "d/b": "b2"}
    pair.sync()
    assert pair.files()["a"] == "a2"


def test_a_directory_that_is_gone(pair: Pair) -> None:
    pair.target = replace(pair.target, directory=pair.here / "gone")
    with pytest.raises(CannotWrite):
        pair.sync()


def test_a_file_edited_between_plan_and_write(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    (pair.there / "a").write_text("theirs")
    place = apply.Staged.place

    def late(self: apply.Staged, path: bytes, expected: Entry | None) -> bool:
        if path == b"a":
            (pair.here / "a").write_text("mine")
        return place(self, path, expected)

    monkeypatch.setattr(apply.Staged, "place", late)
    report = pair.sync()
    assert list(report.conflicts) == ["a"]
    assert report.updated == []
    assert pair.files()["a"] == "mine"
    assert pair.files()["a.catty-conflict-brave-tiger-1234-T"] == "theirs"


@pytest.mark.parametrize("when", ["before the write", "after the write"])
def test_killed_between_write_and_record(pair: Pair, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    (pair.there / "a").write_text("a2")
    (pair.there / "d/b").unlink()

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        name = "begin" if when == "before the write" else "record"
        patch.setattr(module.Mirror, name, die)
        with pytest.raises(Killed):
            pair.sync(delete=True)
    assert pair.files()["a"] == ("a1" if when == "before the write" else "a2")
    (pair.there / "a").write_text("a3")
    (pair.there / "d/b").write_text("b3")
    report = pair.sync(delete=True)
    assert report.conflicts == {}
    assert pair.files() == {"a": "a3", "d/b": "b3"}


def test_killed_again_and_again_at_any_moment(pair: Pair) -> None:
    """Neither a conflict nor a loss: what is there in the end is what the machine has."""
    chance = random.Random(7)
    for round_ in range(12):
        for number in range(60):
            path = pair.there / f"f{number}"
            match chance.randrange(3):
                case 0:
                    path.write_text(f"{round_} {number}" * chance.randrange(1, 2000))
                case 1:
                    path.unlink(missing_ok=True)
        pair.save()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                sync_once(pair.server, pair.target, delete=True)
            os._exit(0)
        time.sleep(chance.uniform(0.01, 0.15))  # anywhere in the middle
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    report = pair.sync(delete=True)
    assert report.conflicts == {}
    assert report.left == []
    assert pair.files() == {str(p.relative_to(pair.there)): p.read_text() for p in pair.there.rglob("*") if p.is_file()}
    assert pair.sync().nothing


def test_an_intent_that_was_not_done_is_no_knowledge(pair: Pair) -> None:
    with SyncState(pair.target.state) as state:
        state.intend([Intent(b"a", b"a", pair.hold(b"a", b"never written"))])
    (pair.here / "a").write_text("mine")
    (pair.there / "a").write_text("theirs")
    assert list(pair.sync().conflicts) == ["a"]


def test_a_leftover_temporary_file_goes_to_the_trash(pair: Pair) -> None:
    (pair.here / "d" / f"{TEMP_PREFIX.decode()}0123").write_text("half or old")
    pair.sync()
    assert pair.trashed() == ["half or old"]


def test_a_damaged_state_costs_knowledge_only(pair: Pair) -> None:
    pair.target.state.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    (pair.there / "a").write_text("a2")
    assert list(pair.sync().conflicts) == ["a"]
    assert pair.target.state.with_suffix(".damaged").exists()


def test_a_state_damaged_in_its_middle_costs_knowledge_only(pair: Pair) -> None:
    names = [f"f{number}" for number in range(2000)]
    with SyncState(pair.target.state) as state:
        base = dict(state.base)
        state.replace(
            (b"known/%s" % name.encode(), Entry(b"x", Kind.FILE, size=1, blobs=(b"d" * 32,))) for name in names
        )
        state.record(base.items())
    with open(pair.target.state, "r+b") as file:
        file.seek(40_000)
        file.write(os.urandom(20_000))
    (pair.there / "a").write_text("a2")
    assert list(pair.sync().conflicts) == ["a"]
    assert (pair.here / "a").read_text() == "a1"
    assert pair.sync().conflicts.keys() == set()


def test_equal_times_and_sizes_do_not_deceive(pair: Pair) -> None:
    pair.sync()
    before = (pair.here / "a").stat()
    (pair.here / "a").write_text("zz")
    os.utime(pair.here / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    (pair.there / "a").write_text("a2")
    assert list(pair.sync().conflicts) == ["a"]
    assert (pair.here / "a").read_text() == "zz"


def test_hostile_lengths_are_not_written(pair: Pair) -> None:
    entry = replace(pair.hold(WORKSPACE + b"/evil", b"12345"), size=4)
    pair.save()
    held = Manifest.from_bytes(pair.server.manifests[-1])
    pair.server.manifests.append(Manifest.of([*held.entries.values(), entry]).to_bytes())
    with pytest.raises(Exception, match="another length"):
        sync_once(pair.server, pair.target)
    assert "evil" not in pair.files()
