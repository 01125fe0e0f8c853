"""Sync-back and `catty sync` with a real machine, through the real command line: nothing of the user's is lost, nothing escapes."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.catty import Catty, tree
from e2e.terminal import Terminal

ESCAPE = b"esc\x1b[31mred.txt"
NEW_LINE = b"new\nline.txt"
NO_TEXT = b"no\xfftext.txt"

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


def until(term: Terminal, holds: Callable[[], Any], seconds: float = 30) -> None:
    """Let the attach go on until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{term.screen_text}"
        assert term.pump(0.1), term.screen_text


def leave(term: Terminal) -> None:
    term.send("\r~.")
    assert term.wait_exit() == 130


def text(path: Path) -> str:
    """What a file holds; "" while there is none."""
    return path.read_text() if path.is_file() else ""


def in_trash(catty: Catty, label: str) -> dict[str, bytes]:
    """Path → content of all files in a session's trash."""
    runs = (catty.home / "trash" / label).glob("*")
    return {str(f.relative_to(run)): f.read_bytes() for run in runs for f in run.rglob("*") if f.is_file()}


def test_while_connected_and_after(catty: Catty, project: Path, tmp_path: Path) -> None:
    outside, other = tmp_path / "outside", tmp_path / "other"
    for directory in (outside, other, project / "sub", project / "linked"):
        directory.mkdir()
    for name in ("both.txt", "mine.txt", "theirs.txt", "doomed.txt", "sub/inner.txt", "linked/victim.txt"):
        (project / name).write_text("first\n")
    (outside / "victim.txt").write_text("outside\n")
    label = catty.new("--agent", "shell")
    git_before = tree(project / ".git")

    def machine(script: str) -> None:
        catty.exec(label, f"set -e; {script}")

    with catty.terminal("connect", label) as term:
        term.wait_for("/workspace$")

        # Changed there, changed here, changed on both sides, deleted there.
        machine("echo machine > theirs.txt")
        until(term, lambda: text(project / "theirs.txt") == "machine\n")
        (project / "mine.txt").write_text("mine\n")
        (project / "both.txt").write_text("mine\n")
        machine("echo machine > both.txt; rm doomed.txt; echo typed > new.txt")
        until(term, lambda: text(project / "new.txt") and not (project / "doomed.txt").exists())
        term.wait_for("both.txt: changed on both sides")
        assert (text(project / "both.txt"), text(project / "mine.txt")) == ("mine\n", "mine\n")
        [copy] = project.glob("both.txt.catty-conflict-*")
        assert re.fullmatch(rf"both\.txt\.catty-conflict-{label}-\d{{8}}T\d{{6}}Z", copy.name)
        assert text(copy) == "machine\n"
        assert in_trash(catty, label) == {"doomed.txt": b"first\n"}

        # What the rules leave out, what runs code by itself, and every kind of git directory stay there.
        machine(
            "mkdir -p node_modules/m ignored .claude .vscode kept; touch node_modules/m/i.js ignored/i a.log .env; "
            "touch .claude/settings.json .claude/settings.local.json .mcp.json .envrc .vscode/tasks.json x.code-workspace; "
            "git commit -qm theirs --allow-empty; git config core.hooksPath /tmp; "
            "git init -q nested; touch nested/file; mkdir worktree; echo gitdir: /x > worktree/.git; touch worktree/file; "
            "git init -q --bare bare; mkdir -p twin/.GIT/hooks; touch twin/.GIT/hooks/pre-commit .claude/CLAUDE.md; "
            "echo end > kept/marker"
        )
        until(term, lambda: text(project / "kept/marker"))
        assert (project / "nested/file").exists()
        assert (project / "worktree/file").exists()
        assert (project / ".claude/CLAUDE.md").exists()

        # A parent directory that became a symlink, on either side; links that lead out; names to deceive people with.
        (project / "linked/victim.txt").unlink()
        (project / "linked").rmdir()
        (project / "linked").symlink_to(outside)
        machine(
            "rm -r sub; ln -s /etc sub; echo escaped > linked/victim.txt; echo new > linked/new.txt; "
            "ln -s /etc/passwd absolute; ln -s ../../up up; ln -s .git/hooks hooks; ln -s README.md inside; "
            "printf 1 > $'esc\\e[31mred.txt'; printf 1 > $'new\\nline.txt'; printf 1 > $'no\\xfftext.txt'; echo end > marker2"
        )
        until(term, lambda: text(project / "marker2"))
        here = os.fsencode(project)
        for name in (ESCAPE, NEW_LINE, NO_TEXT):
            until(term, lambda name=name: os.path.exists(here + b"/" + name))
        Path(os.fsdecode(here + b"/" + ESCAPE)).write_text("mine")
        machine("printf 2 > $'esc\\e[31mred.txt'")
        term.wait_for("red.txt: changed on both sides")
        assert ESCAPE not in term.raw

        # Another client of the same directory says so, and leaves it to the first.
        with catty.terminal("connect", label) as second:
            second.wait_for("no sync-back: another client (process ")
            second.send("\r~s")
            second.wait_for("another client (process ")
            leave(second)
        leave(term)

    # While nobody is connected, and while one is connected that does not want it.
    machine("echo later > theirs.txt; echo later > later.txt")
    with catty.terminal("connect", label, "--no-sync-back") as term:
        term.wait_for("/workspace$")
        term.send("\r~s")
        term.wait_for("sync-back is off")
        leave(term)
    assert not (project / "later.txt").exists()
    with catty.terminal("connect", label, "--sync-dir", str(other)) as term:
        until(term, lambda: text(other / "later.txt") == "later\n" and text(other / "theirs.txt") == "later\n")
        leave(term)
    assert not (project / "later.txt").exists()
    with catty.terminal("connect", label) as term:
        until(term, lambda: text(project / "later.txt") == "later\n" and text(project / "theirs.txt") == "later\n")
        leave(term)

    assert tree(project / ".git") == git_before
    assert tree(outside) == {"victim.txt": ("file", b"outside\n", False)}
    for root in (project, other):
        assert not (root / "node_modules/m").exists()
        for name in ("a.log", ".env", ".mcp.json", ".envrc", ".vscode", "x.code-workspace", "absolute", "up", "hooks"):
            assert not os.path.lexists(root / name), name
        for name in (
            ".claude/settings.json",
            ".claude/settings.local.json",
            "nested/.git",
            "worktree/.git",
            "twin/.GIT",
        ):
            assert not os.path.lexists(root / name), name
        assert not (root / "sub").is_symlink()
        assert (root / "inside").readlink() == Path("README.md")
        repositories = [d for d in root.rglob("*") if all((d / mark).exists() for mark in ("HEAD", "objects", "refs"))]
        assert repositories == ([root / ".git"] if root == project else [])
    assert not (project / "ignored/i").exists()
    assert (project / "node_modules/left/out.js").exists()
    assert text(project / "both.txt") == "mine\n"

    with catty.terminal("connect", label, "--sync-config") as term:
        until(term, lambda: (project / ".claude/settings.json").exists() and (project / ".vscode/tasks.json").exists())
        leave(term)


def test_a_mass_deletion_waits_for_the_user(catty: Catty, project: Path) -> None:
    names = {f"many/{number}.txt" for number in range(120)}
    (project / "many").mkdir()
    for name in names:
        (project / name).write_text(name)
    label = catty.new("--agent", "shell")

    def there() -> int:
        return sum((project / name).exists() for name in names)

    with catty.terminal("connect", label) as term:
        term.wait_for("/workspace$")
        catty.exec(label, "echo one > synced")
        until(term, lambda: text(project / "synced"))
        bells = term.raw.count(b"\a")
        catty.exec(label, "rm many/1*.txt many/2*.txt many/3*.txt many/4*.txt many/5*.txt; echo paused > while-paused")
        term.wait_for("sync-back is paused: ")
        until(term, lambda: term.raw.count(b"\a") > bells)
        term.send("\r~s")
        term.wait_for(f"sync-back paused, `catty sync {label}` goes on: ")
        assert re.search(r"goes on: \d+ of \d+ files were deleted", term.screen_text)
        assert there() == 120

        # Nobody to ask: nothing is deleted, and it stays paused.
        ran = catty.call("sync", label)
        assert b"sync-back stays paused" in ran.stderr
        kept = ran.stdout.decode()
        assert kept.count("keep  many/") == sum(name[5] in "12345" for name in names)
        assert there() == 120

        with catty.terminal("sync", label) as question:
            question.wait_for("Delete them here too")
            assert "sync-back was paused" in question.screen_text
            question.send("y\r")
            assert question.wait_exit() == 0
        assert there() == sum(name[5] not in "12345" for name in names)
        assert in_trash(catty, label)["many/1.txt"] == b"many/1.txt"

        catty.exec(label, "echo two > synced")
        until(term, lambda: text(project / "synced") == "two\n")
        leave(term)


def test_sync_once_does_what_its_dry_run_says(catty: Catty, project: Path, tmp_path: Path) -> None:
    for name in ("both.txt", "theirs.txt", "gone.txt", "mine.txt"):
        (project / name).write_text("first\n")
    label = catty.new("--agent", "shell")
    catty.exec(
        label,
        "set -e; echo 2 > both.txt; echo 2 > theirs.txt; rm gone.txt; mkdir dir; echo 2 > dir/new.txt; touch .envrc a.log; "
        "ln -s /etc out; printf 1 > $'esc\\e[31mred.txt'; printf 1 > $'new\\nline.txt'; printf 1 > $'no\\xfftext.txt'",
    )
    (project / "both.txt").write_text("mine\n")
    (project / "mine.txt").write_text("mine\n")
    before = tree(project)

    def lines(*flags: str, conflicts: bool = True) -> list[str]:
        ran = catty.call("sync", label, *flags)
        assert ran.returncode == (5 if conflicts else 0), ran.stderr
        assert b"\x1b" not in ran.stdout + ran.stderr
        # Where a conflict copy lies is known only once it is made.
        return sorted(re.sub(r"(conflict  [^ ]+)  \(.*\)$", r"\1", line) for line in ran.stdout.decode().splitlines())

    planned = lines("--dry-run")
    assert tree(project) == before
    assert {line.split("  ")[0] for line in planned} == {"create", "update", "conflict", "keep", "skip"}
    assert len(planned) == 10
    done = lines()
    assert done == planned

    after = tree(project)
    created = {line.split("  ")[1] for line in done if line.startswith("create")}
    new = set(after) - set(before)
    [copy] = [name for name in new if "catty-conflict" in name]
    assert len(new - {copy}) == len(created) == 5
    assert {"dir", "dir/new.txt"} <= created
    assert {name for name in before if after.get(name) != before[name]} == {"theirs.txt"}
    assert after[copy] == ("file", b"2\n", False)
    assert "gone.txt" in after

    # The machine need not be there for that.
    catty.run("stop", label)
    with_deletion = lines("--dry-run", "--delete", conflicts=False)
    assert "delete  gone.txt" in with_deletion
    assert lines("--delete", conflicts=False) == with_deletion
    assert not (project / "gone.txt").exists()
    assert (
        project / "node_modules/left/out.js"
    ).exists()  # git tracks it, saves leave it out: its absence says nothing
    assert in_trash(catty, label)["gone.txt"] == b"first\n"
    history = subprocess.run(["git", "log", "--format=%s"], cwd=project, capture_output=True, text=True, check=True)
    assert history.stdout == "first\n"
