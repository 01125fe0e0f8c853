"""The image's name follows from everything that goes into it, and from nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from catty.image import identity


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that may be changed."""
    copy = tmp_path / "catty"
    shutil.copytree(identity._PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "_PACKAGE", copy)
    monkeypatch.setattr(identity, "_IMAGE", copy / "image")
    return copy


@pytest.mark.parametrize(
    "name",
    [
        "image/Containerfile",
        "image/isolate",
        "image/make-base",
        "image/agents/package-lock.json",
        "image/locks/runtime.txt",
        "constants.py",
        "wire/claim.py",
        "workspace/model.py",
        "runtime/__init__.py",
    ],
)
def test_each_input_changes_the_name(package: Path, name: str) -> None:
    before = identity.current_image()
    (package / name).write_text((package / name).read_text() + "\n")
    assert identity.current_image() != before


@pytest.mark.parametrize(
    "name", ["cli/main.py", "server/new.py", "runtime/__pycache__/init.cpython-313.pyc", "image/identity.py"]
)
def test_nothing_else_does(package: Path, name: str) -> None:
    before = identity.current_image()
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("changed")
    assert identity.current_image() == before


def test_a_file_that_moves_changes_the_name(package: Path) -> None:
    before = identity.current_image()
    (package / "wire/claim.py").rename(package / "wire/other.py")
    assert identity.current_image() != before


def test_the_base_depends_on_its_script_only(package: Path) -> None:
    base = identity.base_image()
    (package / "image/Containerfile").write_text("changed")
    assert identity.base_image() == base
    (package / "image/make-base").write_text("exit 3\n")
    assert identity.base_image() != base


def test_two_contexts_look_the_same_to_an_engine(package: Path, tmp_path: Path) -> None:
    shapes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert identity.write_context(tmp_path / name) == identity.current_image()
        shapes.append(
            {
                path.relative_to(tmp_path / name): (
                    path.stat().st_mode,
                    path.stat().st_mtime,
                    path.is_file() and path.read_bytes(),
                )
                for path in (tmp_path / name).rglob("*")
            }
        )
        (package / "constants.py").touch()
        (package / "constants.py").chmod(0o600)
    assert shapes[0] == shapes[1]
    assert Path("catty/wire/claim.py") in shapes[0]


def test_what_the_containerfile_copies_is_in_the_context() -> None:
    inputs = identity.inputs()
    for line in inputs["Containerfile"].read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert any(name == source or name.startswith(source + "/") for name in inputs), source
