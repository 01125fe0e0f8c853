"""Claude Code without Catty: the program out of the session image, on this host, with the same first-run files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from catty import agents
from catty.constants import WORKSPACE_DIR
from raw_machines import RawMachines
from stage import until_shown

__all__ = ["LocalClaude"]

_UID = 1000  # claude refuses to approve everything by itself as root
_IN_IMAGE = "/opt/agents/node_modules/@anthropic-ai"


class LocalClaude:
    """`env` is what a session would get. Each start has a fresh home, as each session has."""

    def __init__(self, raw: RawMachines, env: dict[str, str]) -> None:
        self._raw, self._env = raw, env
        self._root = Path(tempfile.mkdtemp(prefix="catty-claude-"))
        self._root.chmod(0o755)

    def __enter__(self) -> Self:
        container = self._raw.podman("create", self._raw.image).strip()
        try:
            self._raw.podman("cp", f"{container}:{_IN_IMAGE}", str(self._root / "package"))
        finally:
            self._raw.podman("rm", container)
        (self._program,) = (self._root / "package").glob("claude-code-linux-*/claude")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._root)

    def start(self, signs: Sequence[Callable[[bytes], bool]], *, leave: bytes) -> list[float]:
        """See `stage.until_shown`."""
        session = str(uuid.uuid4())
        launch = agents.launch("claude", session=session, prompts=False)
        home, project = self._root / session / "home", self._root / session / "project"
        for directory in (self._root / session, home, project):
            directory.mkdir()
        for file in launch.files:
            path = home / file.path
            path.parent.mkdir(exist_ok=True)
            content = json.loads(file.content.replace(WORKSPACE_DIR, str(project)))
            if path.name == ".claude.json":
                content["customApiKeyResponses"] = {"approved": [self._env["ANTHROPIC_API_KEY"][-20:]]}
            path.write_text(json.dumps(content))
        for path in (home, project, *home.rglob("*")):
            os.chown(path, _UID, _UID)
        env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm-256color", "HOME": str(home)}
        words = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", str(self._program)]
        try:
            return until_shown(
                [*words, *launch.start[1:]], signs, env={**env, **launch.env, **self._env}, cwd=project, leave=leave
            )
        finally:
            shutil.rmtree(self._root / session)
