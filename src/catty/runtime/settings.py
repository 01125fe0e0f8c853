"""What a machine is told at its creation, by environment variables; nothing of it is secret.

    CATTY_MACHINE         the machine's name (a UUID); the claim must name it
    CATTY_PUBLIC_KEY      Ed25519 key, hex: the claim must be signed with its private half ("": no signature is asked for)
    CATTY_CLOSED          CIDRs, comma-separated, that the machine must not reach
    CATTY_CA              file with CA certificates of the host, laid over the machine's own
    CATTY_SALVAGE         1: the machine saves an old volume; no agent ever starts

For tests, on the host and as any user:

    CATTY_ENDPOINT        directory of the two sockets
    CATTY_WORKSPACE_DIR   in place of /workspace
    CATTY_AGENT_HOME      in place of /home/agent
    CATTY_AGENT_UID       in place of 1000
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from catty import constants

__all__ = ["Settings"]


class Settings(NamedTuple):
    """See the module's text."""

    machine: str
    public_key: str
    closed: tuple[str, ...]
    ca: str
    salvage: bool
    endpoint: str
    workspace: str
    home: str
    agent_uid: int

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Raises ValueError if CATTY_AGENT_UID is no number."""
        return cls(
            machine=environ.get("CATTY_MACHINE", ""),
            public_key=environ.get("CATTY_PUBLIC_KEY", ""),
            closed=tuple(cidr.strip() for cidr in environ.get("CATTY_CLOSED", "").split(",") if cidr.strip()),
            ca=environ.get("CATTY_CA", ""),
            salvage=environ.get("CATTY_SALVAGE", "") == "1",
            endpoint=environ.get("CATTY_ENDPOINT", constants.ENDPOINT_DIR),
            workspace=environ.get("CATTY_WORKSPACE_DIR", constants.WORKSPACE_DIR),
            home=environ.get("CATTY_AGENT_HOME", constants.AGENT_HOME),
            agent_uid=int(environ.get("CATTY_AGENT_UID", constants.AGENT_UID)),
        )
