"""Installing a container engine: the plan says all that is done, and does all that it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from catty.errors import EngineFailed, EngineNotFound
from catty.setup import podman
from catty.setup.podman import InstallPlan, install, plan_install

APT_INSTALL = "env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare Debian, as root: only apt-get on the PATH, no ids for containers."""
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("somebody:100000:65536\n")
    (tmp_path / "bin").mkdir()
    program(tmp_path, "apt-get")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("DEBIAN_FRONTEND", raising=False)
    monkeypatch.setattr(podman, "_DIRECTORIES", "")
    monkeypatch.setattr(podman, "_PROGRAMS", {"netavark": str(tmp_path / "bin" / "netavark"), "uidmap": "newuidmap"})
    monkeypatch.setattr(podman, "_ALTERNATIVES", {"runc": ("crun",), "slirp4netns": ("pasta",)})
    monkeypatch.setattr(podman, "_SUBID_FILES", (str(tmp_path / "subuid"), str(tmp_path / "subgid")))
    monkeypatch.setattr(podman, "_is_debian", lambda: True)
    monkeypatch.setattr(podman, "find_docker", lambda: None)
    monkeypatch.setattr(podman, "is_root", lambda: True)
    monkeypatch.setattr(
        podman, "has_subids", lambda name=None: f"{name or 'somebody'}:" in (tmp_path / "subuid").read_text()
    )
    return tmp_path


def program(host: Path, name: str, script: str = "exit 0") -> None:
    (host / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (host / "bin" / name).chmod(0o755)


def commands(plan: InstallPlan | None) -> list[str]:
    assert plan is not None
    return [" ".join(command) for command in plan.commands]


def test_bare_debian_as_root(host: Path) -> None:
    plan = plan_install()
    assert commands(plan) == [
        "apt-get update",
        f"{APT_INSTALL} podman runc netavark slirp4netns mount mmdebstrap",
    ]
    assert plan is not None
    said = "\n".join(plan.lines)
    assert all(command in said for command in commands(plan))
    assert "containers:2147483647:2147483648" in said


def test_bare_debian_as_a_user_with_sudo(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman, "is_root", lambda: False)
    program(host, "sudo")
    words = commands(plan_install())
    assert words[0] == "sudo apt-get update"
    assert words[1].startswith("sudo env DEBIAN_FRONTEND=noninteractive apt-get install ")
    assert words[1].endswith(" uidmap")
    assert len(words) == 2


def test_user_without_ids_is_given_free_ones(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman, "is_root", lambda: False)
    monkeypatch.setattr(podman, "has_subids", lambda name=None: False)
    (host / "subgid").write_text("containers:2147483647:2147483648\nother:300000:65536\n")
    program(host, "sudo")
    assert "usermod --add-subuids 365536-431071 --add-subgids 365536-431071" in commands(plan_install())[2]


def test_user_without_sudo_is_told_what_to_ask_for(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman, "is_root", lambda: False)
    with pytest.raises(EngineNotFound) as caught:
        plan_install()
    assert "apt-get install --yes --no-install-recommends podman" in caught.value.hint


@pytest.mark.parametrize(("platform", "word"), [("darwin", "catty login"), ("linux", "Install Podman 4")])
def test_without_apt(host: Path, monkeypatch: pytest.MonkeyPatch, platform: str, word: str) -> None:
    (host / "bin" / "apt-get").unlink()
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(EngineNotFound) as caught:
        plan_install()
    assert word in caught.value.hint


def test_only_what_is_missing(host: Path) -> None:
    for name in ("podman", "crun", "netavark", "pasta", "mount"):
        program(host, name)
    assert commands(plan_install())[1].endswith("--no-install-recommends mmdebstrap")
    program(host, "mmdebstrap")
    plan = plan_install()
    assert commands(plan) == []
    assert plan is not None
    assert plan.subids


def test_nothing_to_do(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("podman", "runc", "netavark", "slirp4netns", "mount", "mmdebstrap"):
        program(host, name)
    for name in ("subuid", "subgid"):
        (host / name).write_text("containers:2147483647:2147483648\n")
    assert plan_install() is None


def test_docker_will_do(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman, "find_docker", lambda: host / "docker.sock")
    assert plan_install() is None


def test_installs_what_the_plan_says(host: Path) -> None:
    log = host / "log"
    program(host, "apt-get", f'echo "$DEBIAN_FRONTEND $*" >> {log}; [ "$1" != update ]')
    program(host, "env", 'export "$1"; shift; exec "$@"')
    plan = plan_install()
    said: list[str] = []
    assert plan is not None
    install(plan, said.append)
    assert log.read_text().splitlines()[0] == " update"  # its failure alone stops nothing
    assert log.read_text().splitlines()[1].startswith("noninteractive install --yes")
    assert len(said) == 2
    for name in ("subuid", "subgid"):
        assert (host / name).read_text() == "somebody:100000:65536\ncontainers:2147483647:2147483648\n"
    install(plan, said.append)
    assert (host / "subuid").read_text().count("containers") == 1


def test_failure_tells_the_last_words(host: Path) -> None:
    program(host, "env", "echo trying; echo 'E: Unable to locate package podman' >&2; exit 100")
    plan = plan_install()
    assert plan is not None
    with pytest.raises(EngineFailed, match="could not be installed: E: Unable to locate package podman") as caught:
        install(plan, lambda _: None)
    assert "apt-get install" in caught.value.hint


def test_unwritable_ids_stop_nothing(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman, "_SUBID_FILES", ("/proc/version",))
    said: list[str] = []
    install(InstallPlan((), (), subids=True), said.append)
    assert "could not add user ids" in said[0]
