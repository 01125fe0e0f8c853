"""The environments that Catty makes for itself, and the script that runs it from a checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from catty.errors import EnvironmentFailed
from catty.setup import environment

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def one_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock "one" that holds a single small package, and an empty home."""
    locks = tmp_path / "locks"
    locks.mkdir()
    lines = (environment.LOCKS / "server.txt").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("idna=="))
    end = next(number for number, line in enumerate(lines) if number > start and not line.startswith(" "))
    (locks / "one.txt").write_text("\n".join(["# 0123456789abcdef", *lines[start:end]]) + "\n")
    monkeypatch.setattr(environment, "LOCKS", locks)
    monkeypatch.setenv("CATTY_HOME", str(tmp_path / "home"))
    return locks / "one.txt"


@pytest.mark.parametrize("name", ["server", "dev"])
def test_a_lock_names_its_content(name: str) -> None:
    first, _, rest = (environment.LOCKS / f"{name}.txt").read_bytes().partition(b"\n")
    assert first.decode() == f"# {hashlib.sha256(rest).hexdigest()[:16]}", "run `make lock`"


@pytest.mark.parametrize(
    "path", [*environment.LOCKS.glob("*.txt"), *ROOT.glob("src/catty/image/locks/*.txt")], ids=lambda p: p.name
)
def test_locks_have_hashes_and_name_no_index(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    for requirement in text.replace("\\\n", "").splitlines():
        assert requirement.startswith("#") or "--hash=sha256:" in requirement


def test_locks_hold_what_the_project_declares() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock, wanted in {
        environment.LOCKS / "server.txt": [*project["dependencies"], *extras["server"]],
        environment.LOCKS / "dev.txt": [
            *project["dependencies"],
            *extras["server"],
            *extras["runtime"],
            *extras["dev"],
        ],
        ROOT / "src/catty/image/locks/runtime.txt": extras["runtime"],
    }.items():
        locked = {line.partition("==")[0] for line in lock.read_text().splitlines() if "==" in line}
        names = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in wanted} - {"catty"}
        assert names <= locked, "run `make lock`"


def test_an_environment_is_made_once(one_package: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    python = environment.ensure_environment("one", lambda *step: steps.append(step))
    assert subprocess.run([python, "-c", "import idna"], check=False).returncode == 0
    assert steps[0][1] == 0
    assert steps[-1][1] == steps[-1][2]
    assert "fetching idna" in [text for text, _, _ in steps]
    assert stat.S_IMODE(python.parent.parent.parent.stat().st_mode) == 0o700
    made = python.parent.stat().st_ctime_ns
    assert environment.ensure_environment("one") == python
    assert python.parent.stat().st_ctime_ns == made


def test_an_environment_whose_python_is_gone_is_made_again(one_package: Path) -> None:
    python = environment.ensure_environment("one")
    python.unlink()
    python.symlink_to("/usr/bin/python3.0")
    assert environment.ensure_environment("one") == python
    assert subprocess.run([python, "-c", "import idna"], check=False).returncode == 0


def test_a_wrong_hash_leaves_nothing(one_package: Path) -> None:
    one_package.write_text("# 0123456789abcdef\nidna==3.10 --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(EnvironmentFailed, match="ERROR") as failure:
        environment.ensure_environment("one")
    assert failure.value.hint
    assert list(environment.environment_python("one").parent.parent.parent.iterdir()) == []


def test_the_server_runs_in_this_environment_if_it_can() -> None:
    assert environment.ensure_server_environment() == Path(sys.executable)


# ---------------------------------------------------------------------------------------------- the script


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is a stand-in that says how it was called."""
    root = tmp_path / "check out"
    (root / "src/catty/setup/locks").mkdir(parents=True)
    shutil.copy(ROOT / "catty", root / "catty")
    (root / "src/catty/setup/locks/server.txt").write_text("# feedfeedfeedfeed\n")
    python = tmp_path / "home/env/feedfeedfeedfeed/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    return root


def run(command: list[str], tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CATTY_HOME": str(tmp_path / "home"), **more}
    cwd = tmp_path / "elsewhere"
    cwd.mkdir(exist_ok=True)
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("way", ["path", "relative", "link", "link to link", "PATH"])
def test_the_script_finds_its_checkout(way: str, checkout: Path, tmp_path: Path) -> None:
    links = tmp_path / "bin"
    links.mkdir()
    (links / "catty").symlink_to("../check out/catty")
    (links / "other").symlink_to("catty")
    command = {
        "path": [str(checkout / "catty")],
        "relative": ["../check out/catty"],
        "link": [str(links / "catty")],
        "link to link": ["../bin/other"],
        "PATH": ["/bin/sh", "-c", 'PATH="$1:$PATH"; shift; catty "$@"', "sh", str(links)],
    }[way]
    done = run([*command, "list", "a b", ""], tmp_path)
    path, *arguments = done.stdout.split("\n")
    assert os.path.realpath(path) == str(checkout / "src"), done.stderr
    assert os.path.isabs(path)
    assert arguments == ["-m", "catty", "list", "a b", "", ""]


def test_the_script_starts_no_process_once_all_is_there(checkout: Path, tmp_path: Path) -> None:
    done = run([str(checkout / "catty"), "list"], tmp_path, PATH="/nonexistent")
    assert (done.returncode, done.stderr) == (0, "")


def test_without_python_the_script_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("id", "readlink"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    shutil.rmtree(tmp_path / "home")
    done = run([str(checkout / "catty"), "list"], tmp_path, PATH=str(tools))
    assert done.returncode == 1
    assert "[python-missing]" in done.stderr
    assert "python3-venv" in done.stderr


@pytest.mark.parametrize(
    ("root", "given", "installs"), [(True, [], True), (False, [], False), (False, ["--yes"], True)]
)
def test_python_is_installed_only_when_agreed(
    root: bool, given: list[str], installs: bool, checkout: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "id").write_text(f"#!/bin/sh\necho {0 if root else 1000}\n")
    (tools / "apt-get").write_text('#!/bin/sh\necho "apt-get $*" >>"$HOME/ran"\n')
    (tools / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    shutil.rmtree(tmp_path / "home")
    done = run([str(checkout / "catty"), "new", *given], tmp_path, PATH=str(tools))
    assert done.returncode == 1
    ran = (tmp_path / "ran").read_text().splitlines() if (tmp_path / "ran").exists() else []
    wanted = ["apt-get -qq update", "apt-get install -qq --no-install-recommends python3 python3-venv"]
    assert ran == (wanted if installs else [])
    assert "apt-get install -qq --no-install-recommends python3 python3-venv" in done.stderr


def test_the_script_agrees_with_the_module(tmp_path: Path) -> None:
    """`./catty` and environment.py compute the same place."""
    python = environment.environment_python("server")
    script = (
        (ROOT / "catty").read_text().replace('exec "$python" -m catty "$@"', 'echo "$python"').replace("[ ! -x", "[ -d")
    )
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "catty").write_text(script)
    done = subprocess.run(["/bin/sh", str(tmp_path / "catty")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(python)
