"""Plans and requests, without an engine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty import constants
from catty.engines.base import MachineSpec
from catty.engines.container import host, open_engine
from catty.engines.container.docker import DockerDialect
from catty.engines.container.find import find_docker
from catty.engines.container.plan import Facts, machine_plan, salvage_plan, sandboxed
from catty.engines.container.podman import PodmanDialect
from catty.errors import EngineNotFound

SPEC = MachineSpec("0f5e4d3c-0000-0000-0000-000000000000", "image:1", closed_addresses=("203.0.113.9",))
ALL = Facts(limits=frozenset({"memory", "cpu", "pids"}), network="slirp4netns", auto_userns=True)


def plan(spec: MachineSpec = SPEC, facts: Facts = ALL):
    return machine_plan(spec, f"catty-owner-{spec.machine}", "owner", facts, ["192.0.2.2"])


def test_closed_addresses() -> None:
    assert plan().env["CATTY_CLOSED"] == "169.254.0.0/16,192.0.2.2,203.0.113.9"
    moved = sandboxed(plan(), "runsc")
    assert (moved.env["CATTY_CLOSED"], moved.capabilities) == ("", ())
    assert moved.labels["catty.closed"] == plan().env["CATTY_CLOSED"]


def test_owner_and_machine_cannot_be_forged_by_labels() -> None:
    spec = MachineSpec("m", "image:1", labels={"catty.owner": "another", "session": "s"})
    assert plan(spec).labels == {"catty.owner": "owner", "catty.machine": "m", "session": "s"}


@given(st.frozensets(st.sampled_from(["memory", "cpu", "pids"])))
def test_only_limits_that_hold_are_asked_for(limits: frozenset[str]) -> None:
    facts = Facts(limits=limits, network="slirp4netns")
    _, body = PodmanDialect().container(plan(facts=facts))
    assert body["resource_limits"].keys() == limits
    _, docker = DockerDialect().container(plan(facts=facts))
    asked = {"memory": "Memory", "cpu": "NanoCpus", "pids": "PidsLimit"}
    assert {name for name, key in asked.items() if key in docker["HostConfig"]} == limits


def test_figures_of_limits() -> None:
    spec = MachineSpec("m", "image:1", cpus=1.5, memory_mb=256, pids=99)
    _, podman = PodmanDialect().container(plan(spec))
    assert podman["resource_limits"] == {
        "memory": {"limit": 256 << 20, "swap": 256 << 20},
        "cpu": {"quota": 150_000, "period": 100_000},
        "pids": {"limit": 99},
    }
    _, docker = DockerDialect().container(plan(spec))
    assert docker["HostConfig"]["NanoCpus"] == 1_500_000_000
    assert docker["HostConfig"]["MemorySwap"] == docker["HostConfig"]["Memory"] == 256 << 20


def test_helper_has_the_machines_volumes_and_ids_but_no_network() -> None:
    machine = plan()
    helper = salvage_plan("m", machine.name, "owner", image="image:1", facts=ALL, id_map=(70000, 65536))
    assert helper.volumes[:2] == machine.volumes[:2]
    assert helper.volumes[2] != machine.volumes[2]
    _, body = PodmanDialect().container(helper)
    assert body["netns"] == {"nsmode": "none"}
    assert body["idmappings"]["UIDMap"] == [{"container_id": 0, "host_id": 70000, "size": 65536}]
    assert DockerDialect().container(helper)[1]["HostConfig"]["NetworkMode"] == "none"


def test_nobody_outside_the_machine_may_write_its_endpoint() -> None:
    body = PodmanDialect().volume(plan().volumes[2], {}, 0)
    assert "mode=0755" in body["Options"]["o"]
    assert "uid=231072,gid=231072" in DockerDialect().volume(plan().volumes[2], {}, 231072)["DriverOpts"]["o"]


def test_ids_of_a_container() -> None:
    inspected = {"HostConfig": {"IDMappings": {"UidMap": ["0:2147483647:65536"]}}}
    assert PodmanDialect().id_map(inspected) == (2147483647, 65536)
    assert PodmanDialect().id_map({"HostConfig": {"IDMappings": None}}) is None
    assert PodmanDialect().id_map({"HostConfig": {}}) is None


def test_host_addresses_are_this_hosts() -> None:
    found = host.host_addresses()
    assert not any(address.startswith("127.") for address in found)
    for address in found:
        with socket.socket() as sock:
            sock.bind((address, 0))  # only one's own addresses can be bound


def test_subids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *rest: (
            "a:1:65535\nb:100000:40000\nb:200000:40000\nbroken\n"
            if str(self).startswith("/etc/sub")
            else real(self, *rest)
        ),
    )
    assert [host.has_subids(name) for name in ("a", "b", "c")] == [False, True, False]


def test_docker_serves_only_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docker.sock").touch()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setattr("catty.engines.container.find.is_root", lambda: True)
    assert find_docker() == tmp_path / "docker.sock"
    monkeypatch.setattr("catty.engines.container.find.is_root", lambda: False)
    assert find_docker() is None


def test_public_key_is_handed_on() -> None:
    assert plan(MachineSpec("m", "image:1", public_key="ab" * 32)).env["CATTY_PUBLIC_KEY"] == "ab" * 32


def test_defaults_are_behaviours() -> None:
    assert plan().memory == constants.MEMORY_DEFAULT_MB << 20
    assert plan().hostname == "catty-0f5e4d3c"


def test_the_engine_of_a_server_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another engine is installed later, or the first one stopped, its machines do not pass for dead."""
    there: dict[str, object] = {"docker": tmp_path / "docker.sock"}
    monkeypatch.setattr("catty.engines.container.find.find_podman", lambda: there.get("podman"))
    monkeypatch.setattr("catty.engines.container.find.find_docker", lambda: there.get("docker"))

    def kind(data: str) -> str:
        return open_engine(tmp_path / data, "test")._backend.dialect.name

    assert kind("old") == "docker"
    there["podman"] = "/usr/bin/podman"
    assert (kind("old"), kind("new")) == ("docker", "podman")
    del there["docker"]
    with pytest.raises(EngineNotFound, match=r"docker, which holds .* is not there"):
        kind("old")
    (tmp_path / "old" / "engine" / "kind").unlink()
    assert kind("old") == "podman"
