"""`pipx install .`: the wheel holds all that the command line, the server and the session image are made of, and works by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from catty.image import identity
from catty.setup.environment import LOCKS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "catty"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is made from: somebody may be editing the original."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip builds it: in isolation, with what pyproject.toml asks for."""
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(checkout)]
    subprocess.run(words, check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the programs of a fresh environment that holds the wheel and its dependencies, as pipx makes it."""
    environment = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "--quiet", str(wheel)], check=True)
    return environment / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    files = [path for path in (checkout / "src").rglob("*") if path.is_file()]
    assert names == {path.relative_to(checkout / "src").as_posix() for path in files}
    needed = {*identity.inputs().values(), *LOCKS.glob("*.txt"), *(SOURCE / "server/db/migrations").rglob("*.py")}
    assert len(needed) > 50
    assert {path.relative_to(SOURCE.parent).as_posix() for path in needed} <= names


def test_the_light_install_is_light(installed: Path) -> None:
    """Without the server's dependencies; the server gets an environment of its own (setup/environment.py)."""
    run = subprocess.run([installed / "pip", "list", "--format=json"], capture_output=True, check=True)
    names = {package["name"].lower() for package in json.loads(run.stdout)}
    assert {"catty", "click", "picows"} <= names
    assert not {"aiohttp", "sqlalchemy", "obstore", "alembic"} & names


@pytest.mark.engine
def test_an_installed_catty_works(checkout: Path, installed: Path, catty_home: Path, tmp_path: Path) -> None:
    def catty(*words: str) -> str:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        run = subprocess.run(
            [installed / "catty", *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert "catty new" in catty("--help")
    assert json.loads(catty("version", "--json"))["client"]["version"]
    checks = {check["name"]: check for check in json.loads(catty("doctor", "--json"))}
    assert checks["engine"]["status"] == "ok"
    # The image that the checkout makes: all its inputs are there, byte for byte.
    ask = "from catty.image.identity import current_image; print(current_image())"
    env = os.environ | {"PYTHONPATH": str(checkout / "src")}
    image = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True).stdout
    assert image.strip() in checks["session image"]["found"]
    # The server, in its own environment, runs the installed package.
    catty("server", "start")
    try:
        status = json.loads(catty("server", "status", "--json"))
        environment = Path(f"/proc/{status['pid']}/environ").read_bytes().split(b"\0")
        (path,) = (entry for entry in environment if entry.startswith(b"PYTHONPATH="))
        assert path.decode().removeprefix("PYTHONPATH=").startswith(str(installed.parent))
        assert catty("list") == "no sessions; `catty new` starts one\n"
    finally:
        catty("server", "stop")
