"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from e2e.catty import Catty


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small repository with what uploads must keep and leave out."""
    root = tmp_path / "project"
    (root / "empty").mkdir(parents=True)
    (root / "node_modules" / "left").mkdir(parents=True)
    (root / "node_modules" / "left" / "out.js").write_text("x")
    (root / "README.md").write_text("a project\n")
    (root / "run.sh").write_text("#!/bin/sh\necho ok\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("README.md")
    (root / ".gitignore").write_text("ignored/\n")
    (root / "ignored").mkdir()
    (root / "ignored" / "secret.bin").write_bytes(b"\0" * 1000)
    git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *args], cwd=root, check=True)
    subprocess.run(["git", "config", "user.name", "Ann"], cwd=root, check=True)
    subprocess.run(["git", "config", "user.email", "ann@example.org"], cwd=root, check=True)
    return root


@pytest.fixture
def catty(catty_command: str, catty_home: Path, project: Path) -> Catty:
    return Catty(catty_command, catty_home, project)
