"""The conformance suite on rootless Podman: test_podman.py, run by an unprivileged user that is made for it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.conftest import IMAGE_VARIABLE

USER = "catty-rootless-test"
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.getuid() != 0, reason="test_podman.py is rootless already"),
    pytest.mark.skipif(not shutil.which("podman"), reason="no podman here"),
    pytest.mark.skipif(not shutil.which("newuidmap"), reason="no newuidmap here (Debian: uidmap)"),
]


@pytest.fixture(scope="module")
def as_user() -> Iterator[list[str]]:
    """The start of a command line that runs as the unprivileged user, who may use Podman."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", USER], check=True, capture_output=True)
    user = pwd.getpwnam(USER)
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        if not any(line.startswith(f"{USER}:") for line in path.read_text().splitlines()):
            with path.open("a") as file:
                file.write(f"{USER}:{200_000_000}:65536\n")
    runtime = Path(f"/run/user/{user.pw_uid}")
    runtime.mkdir(parents=True, exist_ok=True)
    os.chown(runtime, user.pw_uid, user.pw_gid)
    runtime.chmod(0o700)
    # udev gives this mode on every real system; bare machines have none.
    for device in ("/dev/net/tun", "/dev/fuse"):
        if Path(device).exists():
            Path(device).chmod(0o666)
    words = ["setpriv", f"--reuid={USER}", f"--regid={user.pw_gid}", "--init-groups", "env", "--ignore-environment"]
    words += [f"HOME={user.pw_dir}", f"XDG_RUNTIME_DIR={runtime}", f"PATH={os.environ['PATH']}", "LANG=C.UTF-8"]
    yield [*words, "sh", "-c", 'cd "$HOME" && exec "$@"', "sh"]
    # Podman leaves a process that holds its user namespace.
    subprocess.run([*words, "podman", "system", "migrate"], capture_output=True, check=False)


@pytest.fixture(scope="module")
def python(as_user: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Words that run this interpreter's packages as the user, who may read neither root's home nor what lies in it."""
    if not subprocess.run([*as_user, sys.executable, "-c", "import aiohttp, pytest"], check=False).returncode:
        yield ["env", "-C", str(ROOT), sys.executable]
        return
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    system = shutil.which(version, path="/usr/local/bin:/usr/bin:/bin")
    if system is None:
        pytest.skip(f"no {version} that an unprivileged user can run")
    with tempfile.TemporaryDirectory() as readable:
        Path(readable).chmod(0o755)
        for folder in ("src", "tests"):
            shutil.copytree(ROOT / folder, Path(readable, folder))
        shutil.copy(ROOT / "pyproject.toml", readable)
        shutil.copytree(sysconfig.get_path("purelib"), Path(readable, "site-packages"))
        yield ["env", "-C", readable, f"PYTHONPATH={readable}/src:{readable}/site-packages", system]


def test_conformance_rootless(as_user: list[str], python: list[str], machine_image: str) -> None:
    podman = [*as_user, "podman", "--storage-driver=overlay"]
    if subprocess.run([*podman, "image", "exists", machine_image], check=False).returncode:
        subprocess.run([*podman, "rmi", "--all", "--force"], check=True, capture_output=True)  # of earlier versions
        with subprocess.Popen(["podman", "save", machine_image], stdout=subprocess.PIPE) as saving:
            subprocess.run([*podman, "load", "--quiet"], stdin=saving.stdout, check=True)
    words = [
        *as_user,
        "env",
        f"{IMAGE_VARIABLE}={machine_image}",
        *python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*words, "tests/engines/test_podman.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
