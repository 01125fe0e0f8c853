"""Files in the server's data directory: its lock, its secret key, its name, the local owner's token."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from catty.errors import ServerStartFailed

__all__ = ["DataDirectory", "disk_percent"]

_KEY_BYTES: Final = 32
_LOCK_S: Final = 3.0  # for a server before this one that is on its way out


def disk_percent(path: Path) -> float:
    """How full the disk of `path` is, as `df` counts: without what is root's alone."""
    usage = shutil.disk_usage(path)
    return 100 * usage.used / max(1, usage.used + usage.free)


class DataDirectory:
    """The directory `root` (0700), made if need be. Every file in it is for this user alone."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        self.root = root
        self._lock: int | None = None

    def lock(self) -> None:
        """Keep other servers out of this directory until this process ends. Blocks a little; raises ServerStartFailed."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pid = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
                    os.close(descriptor)
                    raise ServerStartFailed(reason=f"process {pid} already serves {self.root}") from None
            time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def key(self) -> bytes:
        """The secret from which machines' tokens are derived: 32 bytes."""
        text = self._once("server.key", lambda: secrets.token_hex(_KEY_BYTES))
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise self._damaged("server.key") from None

    def installation(self) -> str:
        """A name for all servers that share this one's key: 32 hex digits. It outlives the database, so a new one finds the machines."""
        return hashlib.sha256(b"installation:" + self.key()).hexdigest()[:32]

    def name(self) -> str:
        """This server's own name among those that share its database: the same after a restart."""
        return self._once("id", lambda: str(uuid.uuid4()))

    def token(self, make: Callable[[], str]) -> str:
        """The local owner's token, `make`d if there is none."""
        return self._once("token", make)

    def replace_token(self, token: str) -> None:
        """Write another token for the local owner."""
        self._write("token", token, replace=True)

    def _once(self, name: str, make: Callable[[], str]) -> str:
        path = self.root / name
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                self._write(name, make(), replace=False)
        if text := path.read_text("ascii", "replace").strip():
            return text
        raise self._damaged(name)

    def _damaged(self, name: str) -> ServerStartFailed:
        return ServerStartFailed(
            reason=f"{self.root / name} is damaged",
            hint="Bring it back from a backup. Without server.key, machines that still run are lost to this server.",
        )

    def _write(self, name: str, text: str, *, replace: bool) -> None:
        """Whole or not at all, also over a power cut."""
        path = self.root / name
        temporary = self.root / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        with open(temporary, "x", encoding="ascii", opener=lambda file, flags: os.open(file, flags, 0o600)) as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
