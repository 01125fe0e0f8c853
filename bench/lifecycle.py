"""What sessions cost: `make bench-lifecycle` prints a table and writes results/lifecycle.json (ARGS=--quick: fewer repetitions).

Everything is measured in one run, interleaved, in alternating order, so that whatever else the machine does hits all alike. Beside
each figure of Catty's stands the nearest thing without Catty: `podman create` + `podman start` of the same machine, `podman exec`,
Claude Code taken out of the session image and run on this host. It needs root for what it compares with, and no other sessions.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

from idle import measure_idle
from local_claude import LocalClaude
from measure import Measurements, machine
from raw_machines import RawMachines
from stage import Stage, run, stage, until_shown

REPETITIONS, QUICK = 15, 3
WARM_UP = 1  # repetitions that are thrown away
LIST_OF = 3  # sessions that `catty list` shows

CREATE_START_LIMIT = 1.2  # × `podman create` + `podman start`
CLAIM_LIMIT_MS = 100
CONNECT_LIMIT_MS = 150
LIST_LIMIT_MS = 150
RUNTIME_LIMIT_MB = 45

# What claude talks to on its way to the prompt: a key that nobody knows, and a port where nobody listens.
CLAUDE_ENV = {"ANTHROPIC_API_KEY": "sk-ant-none", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}
CLAUDE_OPTIONS = [f"--env={name}={value}" for name, value in CLAUDE_ENV.items()]
LEAVE = b"\x03\x03"  # Ctrl+C twice: catty disconnects, claude ends

_PROGRESS = re.compile(rb"(?:\r\x1b\[K[^\x1b\r\n]*|[^\x1b\r\n]*\r\n)*")


def agent_printed(output: bytes) -> bool:
    """Whether there is more in `output` than the progress of `catty new`."""
    progress = _PROGRESS.match(output)
    return progress is None or progress.end() < len(output)


def prompt_shown(output: bytes) -> bool:
    """Whether claude's prompt stands on the screen: its last line names the mode of permissions."""
    return b"bypass" in output


class Lifecycle:
    """One method per comparison; `results` collects. `label` is an idle session with claude at its prompt."""

    def __init__(
        self, place: Stage, spare: Stage, raw: RawMachines, local: LocalClaude, label: str, container: str
    ) -> None:
        self.place, self.spare, self.raw, self.local = place, spare, raw, local
        self.spares = 0  # machines that were waited for
        self.label, self.container = label, container
        self.results = Measurements()
        self.round = 0

    def repeat(self, times: int) -> None:
        """Measure everything `times` times, after WARM_UP rounds that do not count."""
        parts = [self.create_start, self.new, self.new_upload, self.engine, self.new_prompt, self.bare, self.small]
        parts.append(self.new_with_spare)
        for self.round in range(WARM_UP + times):
            if self.round == WARM_UP:
                self.results = Measurements()
            for part in parts if self.round % 2 else reversed(parts):
                part()
            sys.stderr.write(f"\r{self.round + 1} of {WARM_UP + times}")
        sys.stderr.write("\n")

    def create_start(self) -> None:
        """The engine's own command line."""
        with self.raw.by_hand() as (create, start):
            self._add("podman create + start", create.wall + start.wall, create.cpu + start.cpu)

    def engine(self) -> None:
        """Catty's engine, through Podman's API; then the claim of the machine, blank and listening."""
        for name, value in self.raw.by_engine().items():
            self.results.add(name, value)

    def new(self) -> None:
        """`catty new -d` without files."""
        server = self._server_cpu()
        ran, session = self.place.new("--no-upload", *CLAUDE_OPTIONS)
        self._add("new -d --no-upload", ran.wall, ran.cpu)
        self.results.add("new -d --no-upload: server and engine's service, CPU", self._server_cpu() - server)
        self.place.remove(session["label"])

    def new_upload(self) -> None:
        """`catty new -d` with a hundred files, one of which is new to the server."""
        (self.place.project / "changed.txt").write_text(f"{self.round}\n")
        ran, session = self.place.new(*CLAUDE_OPTIONS)
        self._add("new -d, 100 files", ran.wall, ran.cpu)
        self.place.remove(session["label"])

    def new_prompt(self) -> None:
        """`catty new` in a terminal, to claude's first byte and to its prompt."""
        name = f"prompt-{os.getpid()}-{self.round}"
        words = [self.place.command, "new", "--no-upload", "--name", name, *CLAUDE_OPTIONS]
        first, prompt = until_shown(
            words, [agent_printed, prompt_shown], env=self.place.env, cwd=self.place.project, leave=LEAVE
        )
        self.results.add("new to the agent's first byte", first)
        self.results.add("new to claude's prompt", prompt)
        self.place.remove(name)

    def new_with_spare(self) -> None:
        """The same three where the server has a blank machine ready."""
        place = self.spare
        self._until_spare()
        ran, session = place.new("--no-upload", *CLAUDE_OPTIONS)
        self._add("new -d --no-upload, spare", ran.wall, ran.cpu)
        place.remove(session["label"])
        self._until_spare()
        (place.project / "changed.txt").write_text(f"{self.round}\n")
        ran, session = place.new(*CLAUDE_OPTIONS)
        self._add("new -d, 100 files, spare", ran.wall, ran.cpu)
        place.remove(session["label"])
        self._until_spare()
        name = f"prompt-{os.getpid()}-{self.round}"
        words = [place.command, "new", "--no-upload", "--name", name, *CLAUDE_OPTIONS]
        first, prompt = until_shown(words, [agent_printed, prompt_shown], env=place.env, cwd=place.project, leave=LEAVE)
        self.results.add("new to the agent's first byte, spare", first)
        self.results.add("new to claude's prompt, spare", prompt)
        place.remove(name)

    def _until_spare(self) -> None:
        self.spares += 1
        while self.spare.spares() < self.spares:
            time.sleep(0.05)

    def bare(self) -> None:
        """`claude` on this host."""
        first, prompt = self.local.start([bool, prompt_shown], leave=LEAVE)
        self.results.add("local claude to its first byte", first)
        self.results.add("local claude to its prompt", prompt)

    def small(self) -> None:
        """The commands that should feel like nothing."""
        listed = self.place.catty("list")
        self._add(f"list ({LIST_OF} sessions)", listed.wall, listed.cpu)
        executed = self.place.catty("exec", self.label, "--", "true")
        self._add("exec true", executed.wall, executed.cpu)
        podman = run([*self.raw.client, "exec", self.container, "true"], env=self.place.env, cwd=self.place.project)
        self._add("podman exec true", podman.wall, podman.cpu)
        (painted,) = until_shown(
            [self.place.command, "connect", self.label, "--no-sync-back"],
            [prompt_shown],
            env=self.place.env,
            cwd=self.place.project,
            leave=LEAVE,
        )
        self.results.add("connect to first paint", painted)
        python = run([sys.executable, "-c", "pass"], env=self.place.env, cwd=self.place.project)
        self._add("python -c pass", python.wall, python.cpu)

    def conclude(self) -> None:
        """Ratios and aims."""
        base = "podman create + start"
        self.results.ratio("new -d --no-upload / podman create + start", "new -d --no-upload", base)
        self.results.ratio("new -d, 100 files / podman create + start", "new -d, 100 files", base)
        self.results.ratio("new -d --no-upload, spare / podman create + start", "new -d --no-upload, spare", base)
        self.results.ratio("new -d, 100 files, spare / podman create + start", "new -d, 100 files, spare", base)
        self.results.ratio(
            "new to claude's prompt, spare / local claude",
            "new to claude's prompt, spare",
            "local claude to its prompt",
        )
        self.results.ratio("engine's create + start / podman create + start", "engine: create + start", base)
        self.results.ratio(
            "new to claude's prompt / local claude", "new to claude's prompt", "local claude to its prompt"
        )
        self.results.ratio("exec true / podman exec true", "exec true", "podman exec true")
        self.results.aim("new -d --no-upload / podman create + start", CREATE_START_LIMIT)
        self.results.aim("new -d, 100 files / podman create + start", CREATE_START_LIMIT)
        self.results.aim("new -d --no-upload, spare / podman create + start", CREATE_START_LIMIT)
        self.results.aim("new -d, 100 files, spare / podman create + start", CREATE_START_LIMIT)
        self.results.aim("claim to agent started", CLAIM_LIMIT_MS)
        self.results.aim("connect to first paint", CONNECT_LIMIT_MS)
        self.results.aim(f"list ({LIST_OF} sessions)", LIST_LIMIT_MS)
        self.results.aim("runtime per idle session, 1 session", RUNTIME_LIMIT_MB)

    def _add(self, name: str, wall: float, cpu: float) -> None:
        self.results.add(name, wall)
        self.results.add(f"{name}, CPU", cpu)

    def _server_cpu(self) -> float:
        """CPU time in ms that the server and the engine's service have used so far, with the processes that they waited for."""
        ticks = 0
        for pid in self.raw.server_processes(self.place):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
        return 1000 * ticks / os.sysconf("SC_CLK_TCK")


def measure(times: int) -> None:
    """The whole benchmark."""
    with (
        stage() as place,
        stage(spare=True) as spare,
        RawMachines(place.home / "raw", place.env) as raw,
        LocalClaude(raw, CLAUDE_ENV) as local,
    ):
        about = machine(**raw.about())
        idle = measure_idle(place, raw)
        _, session = place.new("--no-upload", *CLAUDE_OPTIONS)
        for _ in range(LIST_OF - 1):
            place.new("--no-upload", "--agent", "shell")
        (_,) = until_shown(
            [place.command, "connect", session["label"]], [prompt_shown], env=place.env, cwd=place.project, leave=LEAVE
        )
        spare.remove(spare.new("--no-upload", "--agent", "shell")[1]["label"])
        bench = Lifecycle(place, spare, raw, local, session["label"], raw.container_of(session["machine_id"]))
        bench.repeat(times)
        for name, value in idle.items():
            bench.results.add(name, value, "MB")
        bench.conclude()
    print(bench.results.table())
    print("\nwritten:", bench.results.write("lifecycle", machine=about).name)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} repetitions instead of {REPETITIONS}")
    parser.add_argument("--repetitions", type=int, help="another number of them")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("it reads the memory of machines' processes and drives their engine: run it as root")
    measure(arguments.repetitions or (QUICK if arguments.quick else REPETITIONS))


if __name__ == "__main__":
    main()
