"""The host's CA certificates: a machine behind a corporate proxy needs them too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["SYSTEM_BUNDLES", "host_ca_bundle"]

SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS
)


def host_ca_bundle() -> Path | None:
    """The file with all CA certificates that this host trusts: SSL_CERT_FILE, else the system's; None if there is none."""
    named = os.environ.get("SSL_CERT_FILE", "")
    candidates = (Path(path) for path in (named, *SYSTEM_BUNDLES) if path)
    return next((path.resolve() for path in candidates if path.is_file() and os.access(path, os.R_OK)), None)
