"""The blank machine that waits for the next session, on a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.catty import Catty
from e2e.processes import Host, kill, podman, until

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.image]


def ready(home: Path) -> list[str]:
    """The machines that were kept ready so far."""
    lines = map(json.loads, (home / "server/server.log").read_text().splitlines())
    return [line["machine"] for line in lines if line["message"] == "a machine is kept ready"]


def test_a_spare_machine(catty: Catty) -> None:
    catty = catty.given(CATTY_SERVER_NO_SPARE="")
    host = Host(catty.home)

    def new() -> str:
        made = json.loads(catty.run("new", "-d", "--json", "--agent", "shell", "--no-upload"))
        catty.exec(made["label"], "true")
        return str(made["machine_id"])

    def machines() -> set[str]:
        names = podman("ps", "--all", "--filter", f"name=catty-{host.owner}", "--format", "{{.Names}}").split()
        return {name.removeprefix(f"catty-{host.owner}-") for name in names}

    first = new()
    (spare,) = until(lambda: ready(catty.home))
    second = new()
    assert second == spare

    until(lambda: len(ready(catty.home)) == 2)
    assert len(machines()) == 3
    kill(host.server())
    catty.run("list")
    until(lambda: machines() == {first, second})  # nobody's: destroyed

    third = new()
    until(lambda: len(ready(catty.home)) == 3)
    assert len(machines()) == 4
    catty.run("server", "stop")
    assert machines() == {first, second, third}
