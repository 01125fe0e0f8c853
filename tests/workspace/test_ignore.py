"""Ignore rules, with the real git as the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catty.workspace.ignore import Rules, Source

NAME_PARTS = [
    b"a",
    b"b",
    b"ab",
    b"x.log",
    b".",
    b"-",
    b"*",
    b"[",
    b"]",
    b"\\",
    b" ",
    b"!",
    b"#",
    b"\xff",
    b"\xc3\xa9",
    b"A",
]
PATTERN_PARTS = [
    *NAME_PARTS,
    *(
        b"*",
        b"**",
        b"/",
        b"**/",
        b"/**",
        b"/**/",
        b"?",
        b"[ab]",
        b"[!a]",
        b"[^b]",
        b"[a-c]",
        b"[]a]",
        b"[a-",
        b"[[:alpha:]]",
    ),
    *(b"\\*", b"\\/", b"\\ ", b"[\\]a]", b"***/", b"[[:foo:]]", b"[--0]", b"[[:digit:]x]", b"\r", b"\t", b"[a"),
]

names = (
    st.lists(st.sampled_from(NAME_PARTS), min_size=1, max_size=3).map(b"".join).filter(lambda n: n not in (b".", b".."))
)
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
patterns = st.builds(
    lambda bang, slash, parts, end: bang + slash + b"".join(parts) + end,
    st.sampled_from([b"", b"", b"!"]),
    st.sampled_from([b"", b"", b"/"]),
    st.lists(st.sampled_from(PATTERN_PARTS), min_size=0, max_size=5),
    st.sampled_from([b"", b"", b"/", b" ", b"\\ ", b"\r"]),
)
rule_files = st.lists(patterns, max_size=5).map(b"\n".join)


class Git:
    """A repository whose files are made anew for each example."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.run("init", "-q")

    def run(self, *args: str, stdin: bytes = b"") -> bytes:
        env = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        command = [
            "git",
            "-C",
            os.fsdecode(self.root),
            "-c",
            f"core.excludesFile={os.fsdecode(self.root)}/.git/global",
            *args,
        ]
        return subprocess.run(command, input=stdin, env=env, check=True, stdout=subprocess.PIPE).stdout

    def clear(self) -> None:
        for entry in os.scandir(self.root):
            if entry.name != b".git":
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)

    def write(self, path: bytes, content: bytes = b"") -> bool:
        """False where a file and a directory would need the same name."""
        full = os.path.join(self.root, path)
        try:
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "wb") as file:
                file.write(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            return False
        return True

    def load(self, directory: bytes) -> bytes | None:
        try:
            with open(os.path.join(self.root, directory, b".gitignore"), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def untracked(self) -> set[bytes]:
        return set(self.run("ls-files", "-o", "-z", "--exclude-standard").split(b"\0")) - {b""}


def kept(root: bytes, rules: Rules) -> set[bytes]:
    found = set()

    def visit(directory: bytes) -> None:
        for entry in os.scandir(os.path.join(root, directory)):
            path = os.path.join(directory, entry.name)
            if path == b".git" or rules.match(path, entry.is_dir(follow_symlinks=False)):
                continue
            visit(path) if entry.is_dir(follow_symlinks=False) else found.add(path)

    visit(b"")
    return found


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Git:
    return Git(tmp_path_factory.mktemp("repository"))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=st.lists(paths, min_size=1, max_size=12),
    nested=st.dictionaries(paths, rule_files, max_size=3),
    top=rule_files,
    exclude=rule_files,
    global_file=rule_files,
)
def test_keeps_what_git_keeps(
    git: Git, tree: list[bytes], nested: dict[bytes, bytes], top: bytes, exclude: bytes, global_file: bytes
) -> None:
    git.clear()
    git.write(b".gitignore", top)
    git.write(b".git/info/exclude", exclude)
    git.write(b".git/global", global_file)
    for path in tree:
        git.write(path)
    for directory, text in nested.items():
        git.write(directory + b"/.gitignore", text)
    rules = Rules([Source(b"", global_file), Source(b"", exclude)], load=git.load)
    assert kept(git.root, rules) == git.untracked()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=patterns, tree=st.lists(paths, min_size=1, max_size=20))
def test_one_pattern_says_what_git_says(git: Git, pattern: bytes, tree: list[bytes]) -> None:
    """Names need not exist for check-ignore, so many more are tried."""
    git.clear()
    git.write(b".git/info/exclude", b"")
    git.write(b".git/global", b"")
    git.write(b".gitignore", pattern)
    tree = [path for path in tree if not path.startswith(b":")]
    try:
        said = git.run("check-ignore", "--no-index", "-z", "--stdin", stdin=b"\0".join(tree))
    except subprocess.CalledProcessError as error:
        said = error.stdout
    rules = Rules([Source(b"", pattern)])
    assert {path for path in tree if rules.match(path, False)} == set(said.split(b"\0")) - {b""}


@pytest.mark.parametrize(
    ("pattern", "path", "is_dir", "excluded"),
    [
        (b"*.log", b"deep/er/x.log", False, True),
        (b"build/", b"build", False, False),
        (b"build/", b"build", True, True),
        (b"build/", b"build/out/x", False, True),
        (b"/top", b"sub/top", False, False),
        (b"doc/*.txt", b"doc/a/b.txt", False, False),
        (b"a/**/z", b"a/z", False, True),
        (b"a**/z", b"abc/d/z", False, True),
        (b"x\\ ", b"x ", False, True),
        (b"x ", b"x", False, True),
        (b"*\n!keep", b"keep", False, False),
        (b"dir/\n!dir/keep", b"dir/keep", False, True),
        (b"\xff*", b"\xff\xfe", False, True),
        (b"*.log", b".git/refs/heads/x.log", False, False),
    ],
)
def test_rules_people_write(pattern: bytes, path: bytes, is_dir: bool, excluded: bool) -> None:
    assert Rules([Source(b"", pattern)]).match(path, is_dir) is excluded


def test_tracked_files_always_go() -> None:
    rules = Rules([Source(b"", b"build/\n*.log")], tracked=[b"build/keep/a.log"])
    assert not rules.match(b"build", True)
    assert not rules.match(b"build/keep", True)
    assert not rules.match(b"build/keep/a.log", False)
    assert rules.match(b"build/keep/b", False)
    assert rules.match(b"build/other", True)


def test_a_subdirectory_obeys_the_rules_above_it() -> None:
    rules = Rules([Source(b"", b"/sub/x\nsub/"), Source(b"sub", b"/y")], prefix=b"sub/", tracked=[b"x/t"])
    assert rules.match(b"x", False)
    assert rules.match(b"y", False)
    assert not rules.match(b"x/t", False)
    assert not rules.match(b"z", False), "the directory that was asked for is not excluded itself"


def test_case_is_folded_on_request() -> None:
    assert Rules([Source(b"", b"*.LOG")], ignore_case=True).match(b"a.log", False)


@pytest.mark.parametrize(
    "pattern",
    [b"*a" * 40 + b"b", b"**/*a" * 40 + b"/b", b"*/" * 30 + b"b", b"x/**\\/" * 40 + b"a", b"**/a/" * 40 + b"*b*b*b"],
)
def test_no_pattern_takes_long(pattern: bytes) -> None:
    rules = Rules([Source(b"", pattern)])
    started = time.perf_counter()
    for path in (b"a" * 250, b"/".join([b"aaaa"] * 400), b"x/" + b"/".join([b"a"] * 1000), b"a/b" * 300):
        rules.match(path, False)
    assert time.perf_counter() - started < 2


@given(
    st.lists(
        st.builds(
            lambda negated, text, slash: negated + text + slash,
            st.sampled_from([b"", b"!"]),
            st.sampled_from([b"a", b"A", b"b", b"a/b", b"/a", b"*", b"a*", b"*b", b"[ab]", b"a/*", b"**/b", b"?"]),
            st.sampled_from([b"", b"/"]),
        ),
        max_size=300,
    ),
    st.booleans(),
)
def test_of_many_patterns_the_last_that_fits_decides(lines: list[bytes], ignore_case: bool) -> None:
    def said_by(rules: list[bytes], path: bytes, is_dir: bool) -> bool:
        return Rules([Source(b"", b"\n".join(rules))], ignore_case=ignore_case).match(path, is_dir)

    for path, is_dir in ((b"a", False), (b"b", True), (b"B", False), (b"ab", False), (b"x", True)):
        expected = False
        for line in lines:
            pattern = line.removeprefix(b"!")
            if said_by([pattern], path, is_dir):
                expected = pattern == line
        assert said_by(lines, path, is_dir) == expected


def test_a_pattern_longer_than_any_path_fits_nothing() -> None:
    rules = Rules([Source(b"", b"*a" * 300_000 + b"\n" + b"**/" * 300_000 + b"end\n" + b"b" * 5000)])
    assert not rules.match(b"a" * 255, False)
    assert rules.match(b"x/end", False)
