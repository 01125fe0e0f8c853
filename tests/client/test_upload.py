"""Upload: what goes, what stays, git directories that are made whole."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from catty.client.download import download
from catty.client.sources import human_size
from catty.client.syncstate import SyncState, state_path
from catty.client.trash import Trash
from catty.client.upload import Progress, Uploaded, prepare, send
from catty.constants import BLOB_BYTES, MIB
from catty.errors import BlobsMissing, GitNotSelfContained, HomeDirectory, UploadTooLarge, UsageError
from catty.workspace.model import Kind
from client.store import MemoryServer


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, and a home without any settings of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CATTY_HOME", str(tmp_path / "home/.catty"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "catty")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def git(directory: Path, *args: str) -> str:
    command = ["git", "-c", "protocol.file.allow=always", *args]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout


def upload(server: MemoryServer, directory: Path, **options: bool | int) -> Uploaded:
    return send(server, "s", prepare(directory, **options))  # type: ignore[arg-type]


def paths(uploaded: Uploaded) -> set[str]:
    return {os.fsdecode(path.removeprefix(b"workspace/")) for path in uploaded.manifest.entries} - {"workspace"}


def copy(server: MemoryServer, project: Path) -> Path:
    """The upload as it would arrive, elsewhere."""
    place = project.parent / f"copy{len(server.manifests)}"
    download(server, "s", place, trash=Trash(project.parent / "trash", "s"))
    return place


def test_files_survive(server: MemoryServer, project: Path) -> None:
    (project / "sub/empty").mkdir(parents=True)
    (project / "run").write_text("#!/bin/sh\n")
    (project / "run").chmod(0o755)
    (project / "link").symlink_to("../outside")
    (project / "none").write_bytes(b"")
    (project / "big").write_bytes(os.urandom(2 * BLOB_BYTES + 5))
    odd = os.fsencode(project) + b"/\xff\n x"
    with open(odd, "wb") as file:
        file.write(b"odd")
    uploaded = upload(server, project)
    entries = uploaded.manifest.entries
    assert entries[b"workspace/sub/empty"].kind is Kind.DIR
    assert entries[b"workspace/run"].mode & 0o111 == 0o111
    assert entries[b"workspace/link"].target == b"../outside"
    assert entries[b"workspace/none"].size == 0
    assert len(entries[b"workspace/big"].blobs) == 3
    assert entries[b"workspace/\xff\n x"].size == 3
    assert uploaded.skipped == ()
    assert (copy(server, project) / "big").read_bytes() == (project / "big").read_bytes()


def test_ignored_files_stay_and_tracked_ones_go(server: MemoryServer, project: Path) -> None:
    git(project, "init", "-q")
    (project / ".gitignore").write_text("*.tmp\n/build/\n")
    (project / "sub").mkdir()
    (project / "sub/.gitignore").write_text("!keep.tmp\n")
    for name in ("a.tmp", "sub/keep.tmp", "sub/b.tmp", "c.log", "d.pyc", ".env", "plain", "excluded"):
        (project / name).write_text(name)
    (project / ".git/info/exclude").write_text("excluded\n")
    (project / "home").mkdir()
    (project.parent / "home/.config/git").mkdir(parents=True)
    (project.parent / "home/.config/git/ignore").write_text("global\n")
    (project / "global").write_text("")
    for name in ("node_modules", "build", ".venv"):
        (project / name).mkdir()
        (project / name / "x").write_text("x")
    git(project, "add", "-f", "c.log", "build/x")
    went = {path for path in paths(upload(server, project)) if not path.startswith(".git/")}
    assert went == {
        ".git",
        ".gitignore",
        "sub",
        "sub/.gitignore",
        "sub/keep.tmp",
        "c.log",
        "plain",
        "build",
        "build/x",
        "home",
    }


def test_rules_hold_without_a_repository(server: MemoryServer, project: Path) -> None:
    (project / ".gitignore").write_text("secret\n")
    for name in ("secret", "x.log", "public"):
        (project / name).write_text(name)
    assert paths(upload(server, project)) == {".gitignore", "public"}


def test_only_what_is_missing_is_sent(server: MemoryServer, project: Path) -> None:
    for number in range(50):
        (project / f"f{number}").write_bytes(os.urandom(1000))
    first = upload(server, project)
    assert first.sent == 50_000
    (project / "f7").write_bytes(b"changed")
    assert upload(server, project).sent == len(b"changed")
    assert server.packs_taken == 2
    assert upload(server, project).sent == 0
    assert server.packs_taken == 2


def test_it_is_remembered_what_both_sides_have(server: MemoryServer, project: Path) -> None:
    git(project, "init", "-q")
    (project / "f").write_text("x")
    upload(server, project)
    with SyncState(state_path(project.parent / "home/.catty/sessions", "s", project)) as state:
        assert list(state.base) == [b"f"], "git directories are no matter of sync-back"


def test_large_files_go_in_several_packs(server: MemoryServer, project: Path) -> None:
    (project / "big").write_bytes(os.urandom(20 * MIB))
    assert upload(server, project).sent == 20 * MIB
    assert server.packs_taken == 2


def test_too_much_is_refused_before_anything_is_sent(server: MemoryServer, project: Path) -> None:
    for number in range(7):
        (project / f"f{number}").write_bytes(b"x" * (number + 1) * 100_000)
    (project / "ignored.log").write_bytes(b"x" * 5_000_000)
    with pytest.raises(UploadTooLarge) as caught:
        upload(server, project, limit=MIB)
    text = caught.value.message + caught.value.hint
    assert "2.7 MiB" in text
    assert all(f"f{number}" in text for number in (2, 3, 4, 5, 6))
    assert not any(name in text for name in ("f0", "f1", "ignored"))
    assert server.asked == 0
    upload(server, project, limit=3 * MIB)


def test_progress_reaches_its_end(server: MemoryServer, project: Path) -> None:
    for number in range(10):
        (project / f"f{number}").write_bytes(os.urandom(1000))
    seen: list[Progress] = []
    send(server, "s", prepare(project), seen.append)
    assert {progress.step for progress in seen} == {"reading", "sending"}
    assert seen[-1] == Progress("sending", 10, 10, 10_000, 10_000)
    assert all(progress.done_bytes <= progress.all_bytes for progress in seen)


def test_what_cannot_go_is_told(server: MemoryServer, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(project / "pipe")
    (project / "secret").write_text("x")
    from catty.workspace import chunks

    opened = chunks.open_file

    def refuse(directory: int, name: bytes) -> int:
        if name == b"secret":
            raise PermissionError(13, "Permission denied")
        return opened(directory, name)

    monkeypatch.setattr(chunks, "open_file", refuse)  # root may read everything, so chmod would show nothing
    uploaded = upload(server, project)
    assert uploaded.skipped == (("pipe", "neither file, directory nor symlink"), ("secret", "Permission denied"))


def test_a_file_that_changes_after_it_was_asked_for_is_sent_as_it_is(server: MemoryServer, project: Path) -> None:
    (project / "f").write_bytes(b"first")

    class Changing(MemoryServer):
        def missing_blobs(self, digests: list[bytes]) -> list[bytes]:
            (project / "f").write_bytes(b"second version")
            return super().missing_blobs(digests)

    changing = Changing()
    upload(changing, project)
    assert (copy(changing, project) / "f").read_bytes() == b"second version"


def test_blobs_that_the_server_dropped_meanwhile_are_sent_again(project: Path) -> None:
    (project / "f").write_bytes(b"content")

    class Forgetful(MemoryServer):
        def put_workspace(self, label: str, manifest: bytes) -> int:
            if not self.manifests:
                self.manifests.append(b"")
                self.blobs.clear()
                raise BlobsMissing(count=1)
            return super().put_workspace(label, manifest)

    forgetful = Forgetful()
    upload(forgetful, project)
    assert b"content" in forgetful.blobs.values()


def test_no_such_directory(server: MemoryServer, project: Path) -> None:
    with pytest.raises(UsageError):
        upload(server, project / "missing")


# ------------------------------------------------------------------------------------------------ git


def commit(repository: Path, name: str = "a", text: str = "text") -> None:
    (repository / name).write_text(text)
    git(repository, "add", name)
    git(repository, "commit", "-q", "-m", f"add {name}")


def healthy(directory: Path) -> str:
    """The copy's log, after git itself found nothing wrong."""
    assert git(directory, "fsck", "--full") == ""
    assert git(directory, "status", "--porcelain") == ""
    return git(directory, "log", "--format=%s")


def test_a_repository_arrives_whole(server: MemoryServer, project: Path) -> None:
    git(project, "init", "-q", "-b", "x.log")  # a branch whose file an ignore rule would fit
    commit(project)
    (project / ".git/hooks/pre-commit").write_text("#!/bin/sh\n")
    (project / ".git/index.lock").write_text("")
    upload(server, project)
    there = copy(server, project)
    assert healthy(there) == "add a\n"
    assert (there / ".git/hooks/pre-commit").exists()
    assert not (there / ".git/index.lock").exists()


def test_no_git(server: MemoryServer, project: Path) -> None:
    git(project, "init", "-q")
    commit(project)
    assert paths(upload(server, project, git=False)) == {"a"}


def test_a_subdirectory_goes_alone_under_the_rules_above_it(server: MemoryServer, project: Path) -> None:
    git(project, "init", "-q")
    (project / ".gitignore").write_text("*.tmp\n/sub/here\n")
    (project / "sub").mkdir()
    for name in ("x.tmp", "here", "keep", "tracked.tmp"):
        (project / "sub" / name).write_text("")
    git(project, "add", "-f", "sub/tracked.tmp")
    prepared = prepare(project / "sub")
    assert prepared.notes == [f"only this directory goes, not the repository around it ({project})"]
    assert paths(send(server, "s", prepared)) == {"keep", "tracked.tmp"}


def test_a_linked_worktree_becomes_a_repository_of_its_own(server: MemoryServer, project: Path) -> None:
    main = project.parent / "main"
    main.mkdir()
    git(main, "init", "-q", "-b", "trunk")
    commit(main)
    project.rmdir()
    git(main, "worktree", "add", "-q", "-b", "feature", str(project))
    commit(project, "b")
    commit(main, "c")
    (project / "b").write_text("staged")
    git(project, "add", "b")
    (main / ".git/MERGE_HEAD").write_text("of the main working tree only")
    upload(server, project)
    there = copy(server, project)
    assert git(there, "status", "--porcelain") == "M  b\n"
    assert git(there, "log", "--format=%s") == "add b\nadd a\n"
    assert git(there, "log", "--format=%s", "trunk") == "add c\nadd a\n"
    assert git(there, "rev-parse", "--abbrev-ref", "HEAD") == "feature\n"
    assert git(there, "fsck", "--full") == ""
    assert len(git(there, "worktree", "list").splitlines()) == 1
    assert not (there / ".git/MERGE_HEAD").exists()
    git(there, "checkout", "-q", "-f", "trunk")
    assert (project / ".git").is_file(), "nothing is changed here"


def test_a_worktree_of_a_bare_repository(server: MemoryServer, project: Path) -> None:
    bare = project.parent / "bare.git"
    git(project.parent, "init", "-q", "--bare", str(bare))
    project.rmdir()
    seed = project.parent / "seed"
    seed.mkdir()
    git(seed, "init", "-q", "-b", "w")
    commit(seed)
    git(seed, "push", "-q", str(bare), "w")
    git(bare, "worktree", "add", "-q", str(project), "w")
    upload(server, project)
    assert healthy(copy(server, project)) == "add a\n"


def test_a_worktree_inside_its_repository(server: MemoryServer, project: Path) -> None:
    git(project, "init", "-q")
    commit(project)
    git(project, "worktree", "add", "-q", "-b", "inner", "trees/inner")
    commit(project / "trees/inner", "b")
    upload(server, project)
    there = copy(server, project)
    assert healthy(there / "trees/inner") == "add b\nadd a\n"
    git(there, "checkout", "-q", "inner")  # refused if a worktree elsewhere seemed to hold the branch


@pytest.fixture
def super_project(project: Path) -> Path:
    library = project.parent / "library"
    library.mkdir()
    git(library, "init", "-q")
    commit(library, "lib.log")
    git(project, "init", "-q")
    git(project, "submodule", "add", "-q", str(library), "lib")
    git(project, "commit", "-q", "-m", "with library")
    return project


def test_a_project_with_a_submodule(server: MemoryServer, super_project: Path) -> None:
    upload(server, super_project)
    there = copy(server, super_project)
    assert healthy(there) == "with library\n"
    assert healthy(there / "lib") == "add lib.log\n"
    assert (there / "lib/lib.log").exists(), "tracked by the submodule, whatever the built-in list says"
    assert (there / "lib/.git").is_file(), "relative links stay true"


def test_a_submodule_alone(server: MemoryServer, super_project: Path) -> None:
    upload(server, super_project / "lib")
    there = copy(server, super_project)
    assert (there / ".git").is_dir()
    assert healthy(there) == "add lib.log\n"


def test_a_submodule_in_a_subdirectory_sent_alone(server: MemoryServer, super_project: Path) -> None:
    (super_project / "deps").mkdir()
    git(super_project, "mv", "lib", "deps/lib")
    upload(server, super_project / "deps")
    assert healthy(copy(server, super_project) / "lib") == "add lib.log\n"


def test_borrowed_objects_come_along(server: MemoryServer, project: Path) -> None:
    lender = project.parent / "lender"
    lender.mkdir()
    git(lender, "init", "-q")
    commit(lender)
    git(lender, "gc", "-q")
    commit(lender, "loose")
    project.rmdir()
    git(project.parent, "clone", "-q", "--shared", str(lender), str(project))
    commit(project, "b")
    upload(server, project)
    there = copy(server, project)
    assert not (there / ".git/objects/info/alternates").exists()
    lender.rename(lender.parent / "gone")
    assert healthy(there) == "add b\nadd loose\nadd a\n"
    with pytest.raises(GitNotSelfContained, match="borrows objects from"):
        upload(server, project)
    upload(server, project, git=False)


def test_a_git_directory_behind_a_symlink(server: MemoryServer, project: Path) -> None:
    git(project, "init", "-q")
    commit(project)
    (project / ".git").rename(project.parent / "elsewhere")
    (project / ".git").symlink_to(project.parent / "elsewhere")
    upload(server, project)
    there = copy(server, project)
    assert not (there / ".git").is_symlink()
    assert healthy(there) == "add a\n"


def test_a_link_to_nowhere_goes_as_it_is(server: MemoryServer, project: Path) -> None:
    (project / "x").mkdir()
    (project / "x/.git").write_text("gitdir: /nowhere\n")
    prepared = prepare(project)
    assert prepared.notes == ["x/.git points to no git directory"]
    assert "x/.git" in paths(send(server, "s", prepared))


# ------------------------------------------------------------------------------------------------ speed


def test_two_thousand_files_take_less_than_a_second(server: MemoryServer, project: Path) -> None:
    for number in range(2000):
        (project / f"d{number % 40}").mkdir(exist_ok=True)
        (project / f"d{number % 40}/{number}").write_bytes(b"%d" % number * 500)
    started = time.process_time()
    prepare(project)
    upload(server, project)
    assert time.process_time() - started < 2, "a wide margin: below 0.6 on an idle machine"
    assert len(server.blobs) == 2000


def test_sizes_for_people() -> None:
    assert [human_size(size) for size in (17, 4_404_019, 1 << 30, 5 << 40)] == [
        "17 B",
        "4.2 MiB",
        "1.0 GiB",
        "5120.0 GiB",
    ]


@pytest.mark.parametrize("linked", [False, True])
def test_cattys_own_directory_stays_whatever_the_rules_say(
    server: MemoryServer, project: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    own = project / "deep/.catty"
    (project / "elsewhere" if linked else own).mkdir(parents=True)
    if linked:
        (project / "deep").mkdir()
        own.symlink_to("../elsewhere")
    (own / "secrets.key").write_text("key")
    (project / "deep/.catty-not").write_text("x")
    (project / ".gitignore").write_text("!.catty\n!secrets.key\n")
    git(project, "init", "-q")
    git(project, "add", "-f", ".")
    monkeypatch.setenv("CATTY_HOME", str(own))
    uploaded = upload(server, project, git=False)
    assert paths(uploaded) == {".gitignore", "deep", "deep/.catty-not"}
    monkeypatch.chdir(own)
    with pytest.raises(UsageError, match="secrets"):
        prepare(own)


@pytest.mark.parametrize("here", ["home", "."])
def test_a_home_directory_is_refused(here: str, project: Path) -> None:
    with pytest.raises(HomeDirectory):
        prepare(project.parent / here)
