"""The decisions of sync-back: each rule, and what holds for every combination of three trees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catty.client.syncplan import (
    Brake,
    Do,
    Plan,
    Scope,
    Step,
    conflict_name,
    decide,
    git_directories,
    plan,
    stays_inside,
)
from catty.constants import MASS_DELETE_COUNT, SYNC_CONFIG_PATTERNS
from catty.workspace.apply import same
from catty.workspace.model import Entry, Kind, digest


def file(path: bytes, content: bytes = b"x", mode: int = 0o644) -> Entry:
    return Entry(path, Kind.FILE, mode, 0, len(content), (digest(content),) if content else ())


def directory(path: bytes) -> Entry:
    return Entry(path, Kind.DIR, 0o755)


V1, V2, V3 = (file(b"p", content) for content in (b"1", b"2", b"3"))
DIR = directory(b"p")
LINK = Entry(b"p", Kind.SYMLINK, target=b"q")


@pytest.mark.parametrize(
    ("base", "local", "remote", "do"),
    [
        (V1, V1, V1, Do.NOTHING),
        (None, None, None, Do.NOTHING),
        (V1, V1, V2, Do.WRITE),
        (V1, V2, V1, Do.NOTHING),  # only the user changed it
        (V1, None, V1, Do.NOTHING),  # only the user deleted it
        (V1, V2, V2, Do.RECORD),  # both did the same
        (None, V1, V1, Do.RECORD),
        (V1, None, None, Do.RECORD),
        (V1, V2, V3, Do.CONFLICT),
        (None, V1, V2, Do.CONFLICT),
        (V1, None, V2, Do.CONFLICT),  # deleted here, changed there: the new version is offered beside
        (None, None, V1, Do.WRITE),
        (V1, V1, None, Do.DELETE),
        (V1, V2, None, Do.RECORD),  # changed here, deleted there: ours stays
        (None, None, DIR, Do.MKDIR),
        (None, V1, DIR, Do.BLOCKED),
        (V1, V1, DIR, Do.MKDIR),
        (DIR, DIR, V1, Do.WRITE),
        (V1, V1, LINK, Do.WRITE),
        (LINK, LINK, V1, Do.WRITE),
        (V1, V1, file(b"p", b"1", 0o755), Do.WRITE),  # the exec bit counts,
        (V1, V1, file(b"p", b"1", 0o600), Do.NOTHING),  # other bits do not
        (DIR, DIR, Entry(b"p", Kind.DIR, 0o700), Do.NOTHING),
    ],
)
def test_three_versions(base: Entry | None, local: Entry | None, remote: Entry | None, do: Do) -> None:
    assert decide(base, local, remote) is do


def test_what_changes_while_it_is_read_is_never_taken_for_known() -> None:
    strange = Entry(b"p", Kind.FILE, size=-1, torn=True)
    assert decide(V1, strange, V2) is Do.CONFLICT
    assert decide(strange, strange, V2) is Do.CONFLICT


# ------------------------------------------------------------------------------------------------ whole trees

PATHS = [b"a", b"b", b"d", b"d/a", b"d/e", b"d/e/f", b"d/e/g"]


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Entry]:
    found: dict[bytes, Entry] = {}
    for path in PATHS:
        parent = path.rpartition(b"/")[0]
        if parent and (parent not in found or found[parent].kind is not Kind.DIR):
            continue
        match draw(st.sampled_from("-1122dl" if path not in (b"d", b"d/e") else "-1dddd")):
            case "-":
                continue
            case "d":
                found[path] = directory(path)
            case "l":
                found[path] = Entry(path, Kind.SYMLINK, target=b"b")
            case content:
                found[path] = file(path, content.encode())
    return found


def carry_out(made: Plan, base: dict[bytes, Entry], local: dict[bytes, Entry]) -> None:
    """What the mirror does, in memory, with the same refusals."""
    for step in made.steps:
        path, here = step.path, local.get(step.path)
        parent = path.rpartition(b"/")[0]
        if step.do is Do.BLOCKED:
            continue
        if step.do is Do.DELETE:
            inside = any(other.startswith(path + b"/") for other in local)
            if same(here, step.local) and not (here and here.kind is Kind.DIR and inside):
                local.pop(path, None)
            if step.remote is None:
                base.pop(path, None)
            continue
        if step.do in (Do.WRITE, Do.MKDIR):
            if parent and (parent not in local or local[parent].kind is not Kind.DIR):
                for count in range(1, path.count(b"/") + 1):
                    above = b"/".join(path.split(b"/")[:count])
                    if local.setdefault(above, directory(above)).kind is not Kind.DIR:
                        break
                else:
                    parent = b""
                if parent:
                    continue
            if same(here, step.local):
                assert step.remote is not None
                local[path] = step.remote
            elif step.do is Do.MKDIR:
                continue
        if step.remote is None:
            base.pop(path, None)
        else:
            base[path] = step.remote


@settings(max_examples=1500, deadline=None)
@given(base=trees(), local=trees(), remote=trees())
def test_no_local_change_is_lost_and_the_rest_arrives(
    base: dict[bytes, Entry], local: dict[bytes, Entry], remote: dict[bytes, Entry]
) -> None:
    before_base, before = dict(base), dict(local)
    made = plan((*base, *remote), base, local, remote, Scope())
    carry_out(made, base, local)
    for path, entry in before.items():
        if not same(entry, before_base.get(path)):
            assert same(local.get(path), entry), f"{path!r} was the user's"
    conflicts = {step.path for step in made.steps if step.do in (Do.CONFLICT, Do.BLOCKED)}
    for path, there in remote.items():
        untouched = same(before.get(path), before_base.get(path))
        in_the_way = any(path == c or path.startswith(c + b"/") for c in conflicts)
        parents_fine = all(
            same(before.get(above), before_base.get(above))
            for above in _above(path)
            if above in before or above in before_base
        )
        if untouched and parents_fine and not in_the_way:
            assert same(local.get(path), there), f"{path!r} did not arrive"


def _above(path: bytes) -> list[bytes]:
    names = path.split(b"/")
    return [b"/".join(names[:count]) for count in range(1, len(names))]


@settings(max_examples=800, deadline=None)
@given(base=trees(), local=trees(), remote=trees())
def test_a_second_time_there_is_nothing_left_to_do(
    base: dict[bytes, Entry], local: dict[bytes, Entry], remote: dict[bytes, Entry]
) -> None:
    for _ in range(2):  # deleting what made room may leave a conflict for the second round
        carry_out(plan((*base, *remote), base, local, remote, Scope()), base, local)
    again = plan((*base, *remote), base, local, remote, Scope())
    assert [step for step in again.steps if step.do is not Do.BLOCKED and not _under_a_block(step, local)] == []


def _under_a_block(step: Step, local: dict[bytes, Entry]) -> bool:
    return any(above in local and local[above].kind is not Kind.DIR for above in _above(step.path))


@settings(max_examples=500, deadline=None)
@given(base=trees(), remote=trees())
def test_without_local_changes_both_sides_end_equal(base: dict[bytes, Entry], remote: dict[bytes, Entry]) -> None:
    local = dict(base)
    made = plan((*base, *remote), base, local, remote, Scope())
    assert not made.of(Do.CONFLICT, Do.BLOCKED)
    carry_out(made, base, local)
    assert local.keys() == remote.keys()
    assert all(same(local[path], remote[path]) for path in remote)
    assert base == remote or all(same(base[path], remote[path]) for path in remote)


def test_children_go_before_their_directory_and_come_after_it() -> None:
    old = {path: directory(path) if path == b"d" else file(path) for path in (b"d", b"d/a", b"d/b")}
    new = {path: directory(path) if path == b"e" else file(path) for path in (b"e", b"e/a")}
    made = plan((*old, *new), old, old, new, Scope())
    assert [(step.word, step.path) for step in made.steps] == [
        ("delete", b"d/b"),
        ("delete", b"d/a"),
        ("delete", b"d"),
        ("create", b"e"),
        ("create", b"e/a"),
    ]
    assert [step.path for step in made.deletions] == [b"d/b", b"d/a"]


def test_making_room_is_no_deletion() -> None:
    old = {b"d": directory(b"d"), b"d/a": file(b"d/a")}
    new = {b"d": file(b"d")}
    made = plan((*old, *new), old, old, new, Scope())
    assert [(step.do, step.path) for step in made.steps] == [(Do.DELETE, b"d/a"), (Do.DELETE, b"d"), (Do.WRITE, b"d")]
    assert made.deletions == []


# ------------------------------------------------------------------------------------------------ scope


@pytest.mark.parametrize(
    "path",
    [
        *(
            b".git",
            b".git/config",
            b"sub/.git/hooks/x",
            b".GIT/config",
            b"a/.Git",
            b".git./x",
            b".g\xe2\x80\x8cit/x",
            b"sub/.git /x",
        ),
        *(b".catty-uploads", b".catty-uploads/x.png"),
    ],
)
def test_git_and_uploads_are_silently_left_out(path: bytes) -> None:
    assert Scope(config=True).reason(path, False, file(path)) == ""


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a/../b", b"a\0", b"x" * 300, b".catty-tmp-1", b"git~1/x"])
def test_hostile_names_are_told(path: bytes) -> None:
    assert "not safe" in (Scope().reason(path, False, file(path)) or "")


def test_what_runs_code_needs_a_flag() -> None:
    names = [
        *(
            b".claude/settings.json",
            b".claude/settings.local.json",
            b"sub/.claude/settings.json",
            b".mcp.json",
            b"a/.mcp.json",
        ),
        *(b".envrc", b"x/.envrc", b".vscode/tasks.json", b"x/.vscode/y/z", b"p.code-workspace", b"a/p.code-workspace"),
        *(b".ENVRC", b".Vscode/tasks.json", b".envrc.", b".claude/Settings.json"),
    ]
    assert len(SYNC_CONFIG_PATTERNS) == 5, "every one of them is tried above"
    for name in names:
        assert "--sync-config" in (Scope().reason(name, False, file(name)) or ""), name
        assert Scope(config=True).reason(name, False, file(name)) is None, name
    for name in (b".claude/commands/x.md", b"settings.json", b"vscode/x", b"envrc", b"a.mcp.json"):
        assert Scope().reason(name, False, file(name)) is None, name


def test_rules_leave_out() -> None:
    scope = Scope([lambda path, is_dir: path.endswith(b".log"), lambda path, is_dir: is_dir and path == b"out"])
    assert scope.reason(b"a.log", False, None) == ""
    assert scope.reason(b"out", True, None) == ""
    assert scope.reason(b"out", False, None) is None


def test_git_directories_by_another_name() -> None:
    assert git_directories([b"x/HEAD", b"x/objects", b"x/refs", b"x/config"]) == {b"x"}
    assert git_directories([b"x/y/head", b"x/y/Objects", b"x/y/REFS"]) == {b"x/y"}
    assert git_directories([b"x/HEAD", b"x/commondir"]) == {b"x"}
    assert git_directories([b"HEAD", b"objects", b"refs"]) == {b""}
    assert git_directories([b"x/HEAD", b"x/objects", b"y/refs", b"docs/refs"]) == set()
    scope = Scope(git_dirs=[b"x"])
    assert scope.reason(b"x/hooks/post-commit", False, file(b"x")) == ""
    assert scope.reason(b"xy", False, file(b"xy")) is None
    assert Scope(git_dirs=[b""]).reason(b"anything", False, file(b"anything")) == ""


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        (b"a", b"b", True),
        (b"d/a", b"../b", True),
        (b"d/a", b"./b/c", True),
        (b"d/e/a", b"../../b", True),
        (b"a", b"../b", False),
        (b"d/a", b"../../b", False),
        (b"a", b"/etc/passwd", False),
        (b"a", b"b/../../c", False),
        (b"a", b"b/..", False),  # b may be a symlink itself
        (b"a", b".git/hooks", False),
        (b"d/a", b"../.GIT", False),
        (b"a", b".", False),
        (b"a", b"", False),
    ],
)
def test_symlinks_stay_inside(path: bytes, target: bytes, inside: bool) -> None:
    assert stays_inside(path, target) is inside
    link = Entry(path, Kind.SYMLINK, target=target)
    assert (Scope().reason(path, False, link) is None) is inside


def test_conflict_names() -> None:
    assert conflict_name(b"d/a.txt", "brave-tiger-1234", "T") == b"d/a.txt.catty-conflict-brave-tiger-1234-T"
    assert conflict_name(b"a", "l", "T", 2) == b"a.catty-conflict-l-T-2"
    name = conflict_name(b"d/" + b"x" * 255, "brave-tiger-1234", "20260101T000000Z")
    assert len(name.split(b"/")[1]) == 255
    assert name.endswith(b".catty-conflict-brave-tiger-1234-20260101T000000Z")


# ------------------------------------------------------------------------------------------------ the brake


def tree(count: int, prefix: bytes = b"f") -> dict[bytes, Entry]:
    return {b"%s%d" % (prefix, n): file(b"%s%d" % (prefix, n), b"%d" % n) for n in range(count)}


def check(base: dict[bytes, Entry], remote: dict[bytes, Entry], brake: Brake | None = None, now: float = 0.0) -> str:
    made = plan((*base, *remote), base, base, remote, Scope())
    return (brake or Brake()).check(made.deletions, base, remote, now)


def test_brake() -> None:
    full = tree(120)
    keep = MASS_DELETE_COUNT
    assert check(full, dict(list(full.items())[: 120 - keep])) == "", "50 deletions are no mass"
    assert check(full, dict(list(full.items())[:60])) == "", "60 of 120 are not over half"
    assert check(full, dict(list(full.items())[:59])) == "61 of 120 files were deleted"
    assert check(tree(1000), dict(list(tree(1000).items())[:600])) == "", "400 of 1000 are not over half"
    assert "emptied" in check(tree(3), {})
    assert "emptied" in check(tree(3), {b"d": directory(b"d")})
    assert check({}, {}) == ""


def test_brake_counts_what_comes_bit_by_bit() -> None:
    brake, base = Brake(), tree(100)
    remote = dict(base)
    for round_ in range(5):
        for n in range(round_ * 10, round_ * 10 + 10):
            del remote[b"f%d" % n]
        assert check(base, remote, brake, now=float(round_)) == ""
        base = dict(remote)
        brake.done(10, now=float(round_))
    del remote[b"f50"]
    assert check(base, remote, brake, now=10.0) == "51 of 100 files were deleted"
    assert check(base, remote, brake, now=100.0) == "", "a minute later it is another matter"


def test_a_rename_is_no_mass_deletion() -> None:
    old = tree(100, b"src/")
    moved = {b"lib/" + path[4:]: entry for path, entry in old.items()}
    assert check(old, moved) == ""
    assert check(old, dict(list(moved.items())[:40])) == "60 of 100 files were deleted"
    twins = {b"f%d" % n: file(b"f%d" % n, b"same") for n in range(100)}
    assert check(twins, dict(list(twins.items())[:40])) != "", "an old twin is no new place"
