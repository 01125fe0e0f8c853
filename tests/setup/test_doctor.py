"""What `catty doctor` finds, on this machine and on ones with something missing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from catty.engines.container.plan import Facts
from catty.setup import doctor
from catty.setup.doctor import Check, examine


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("podman") or os.getuid() != 0, reason="needs rootful Podman")
async def test_this_machine_can_make_machines(tmp_path: Path) -> None:
    checks = by_name(await examine(tmp_path))
    assert [check for check in checks.values() if check.status == "fail"] == []
    assert checks["engine"].found.startswith("podman ")
    assert "ran a container" in checks["OCI runtime"].found
    assert checks["network"].found.startswith(("slirp4netns", "pasta"))
    assert {"Python", "limits", "user namespaces", "session image", "CA certificates"} <= checks.keys()
    json.dumps([dataclasses.asdict(check) for check in checks.values()])


async def test_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("catty.engines.container.find.find_docker", lambda: None)
    found = by_name(await examine(tmp_path))["engine"]
    assert (found.status, found.mend) == ("fail", "`catty setup` installs Podman")


async def test_broken_engine_is_a_finding_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho 'Error: out of locks' >&2; exit 125\n")
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = by_name(await examine(tmp_path / "data"))["engine"]
    assert found.status == "fail"
    assert "out of locks" in found.found


def test_findings_of_a_poor_host() -> None:
    facts = Facts(limits=frozenset({"pids"}), notes=("no network by slirp4netns: /dev/net/tun",))
    assert doctor._limits(facts).status == "warn"
    assert doctor._limits(facts).found.startswith("cpu, memory cannot be limited")
    assert doctor._network(facts) == Check(
        "network", "fail", facts.notes[0], "install slirp4netns (`catty setup` does it)"
    )
    assert doctor._user_namespace(facts).status == "warn"
    assert doctor._user_namespace(Facts(rootless=True)).status == "ok"


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(used=95, free=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = doctor._disk("disk", tmp_path / "not" / "there")
    assert found.status == "fail"
    assert found.found.startswith("95 % used")


def test_ca_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n" * 3)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert doctor._ca_bundle().found.startswith(f"{bundle}: 3")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("catty.engines.ca.SYSTEM_BUNDLES", ())
    assert doctor._ca_bundle().status == "warn"
