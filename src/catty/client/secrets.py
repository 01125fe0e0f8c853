"""The user's secrets, kept on their own machine: in the OS keyring where one works, else encrypted in `~/.catty/secrets.json`.

The store is chosen at the first write and stays: `secrets.json` says which it is, so a keyring that is locked later is an error
instead of an empty list. In the file they lie under AES-256-GCM with a random key in `secrets.key` (both 0600): whoever can read
both reads the secrets, but a copy of one file alone tells nothing.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from catty import constants
from catty.client.config import Home, read_json, write_private
from catty.errors import InvalidName, ReservedName, SecretNotFound, SecretsLocked

__all__ = ["GITHUB_NAMES", "Secrets", "check_github", "check_name"]

GITHUB_NAMES: Final = ("GITHUB_TOKEN", "GH_TOKEN")
_GITHUB_API: Final = "api.github.com"
_GITHUB_TIMEOUT_S: Final = 10.0
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SERVICE: Final = "catty"
_BOUND_TO: Final = b"catty secrets v1"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


class Secrets:
    """The secrets in `home`. Raises SecretsLocked where they exist but cannot be read now."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def all(self) -> dict[str, str]:
        """Every secret, by name."""
        document = read_json(self._home.secrets)
        if not document:
            return {}
        return self._from_keyring() if document.get("store") == "keyring" else self._from_file(document)

    def set(self, values: dict[str, str]) -> None:
        """Add or replace secrets. Raises InvalidName, ReservedName."""
        for name in values:
            check_name(name)
        with self._changing() as secrets:
            secrets.update(values)

    def remove(self, name: str) -> None:
        """Forget one; `github` stands for both its names. Raises SecretNotFound."""
        with self._changing() as secrets:
            names = [n for n in (GITHUB_NAMES if name == "github" else (name,)) if n in secrets]
            if not names:
                raise SecretNotFound(name=name)
            for each in names:
                del secrets[each]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, str]]:
        """All secrets, stored again afterwards; one process at a time."""
        with self._home.secrets.with_name("secrets.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            secrets = self.all()
            yield secrets
            self._store(secrets)

    def _store(self, secrets: dict[str, str]) -> None:
        kept = read_json(self._home.secrets).get("store") or ("keyring" if _keyring_works() else "file")
        text = json.dumps(secrets)
        if kept == "keyring":
            import keyring

            try:
                keyring.set_password(_SERVICE, str(self._home.root), text)
            except Exception as error:
                raise SecretsLocked(reason=str(error) or type(error).__name__) from None
            write_private(self._home.secrets, json.dumps({"version": 1, "store": "keyring"}).encode())
            return
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _cipher(self._key(make=True)).encrypt(nonce, text.encode(), _BOUND_TO)
        document = {"version": 1, "store": "file", "nonce": _text(nonce), "data": _text(sealed)}
        write_private(self._home.secrets, json.dumps(document).encode())

    def _from_keyring(self) -> dict[str, str]:
        import keyring

        try:
            text = keyring.get_password(_SERVICE, str(self._home.root))
        except Exception as error:  # each backend has its own
            raise SecretsLocked(reason=str(error) or type(error).__name__) from None
        if text is None:
            raise SecretsLocked(reason="the OS keyring does not have them any more")
        return dict(json.loads(text))

    def _from_file(self, document: dict[str, Any]) -> dict[str, str]:
        from cryptography.exceptions import InvalidTag

        try:
            nonce, sealed = (base64.b64decode(document[name], validate=True) for name in ("nonce", "data"))
            return dict(json.loads(_cipher(self._key()).decrypt(nonce, sealed, _BOUND_TO)))
        except (InvalidTag, KeyError, TypeError, ValueError):
            raise SecretsLocked(reason=f"{self._home.secrets} does not fit {self._home.secrets_key.name}") from None

    def _key(self, *, make: bool = False) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return self._home.secrets_key.read_bytes()
        if not make:
            raise SecretsLocked(reason=f"{self._home.secrets_key} is missing")
        key = os.urandom(_KEY_BYTES)
        write_private(self._home.secrets_key, key)
        return key


def check_name(name: str) -> None:
    """Raises InvalidName or ReservedName unless `name` may be an environment variable of a session."""
    if not _NAME.fullmatch(name):
        raise InvalidName(name=name)
    if name in constants.RESERVED_NAMES or name.startswith(constants.RESERVED_PREFIXES):
        raise ReservedName(name=name)


def check_github(token: str) -> str:
    """Ask GitHub whose token it is: returns the login. Raises GitHubRefused, GitHubUnreachable."""
    import http.client

    from catty import __version__
    from catty.errors import GitHubRefused, GitHubUnreachable

    connection = http.client.HTTPSConnection(_GITHUB_API, timeout=_GITHUB_TIMEOUT_S)
    headers = {
        "Authorization": f"Bearer {token}",
        "User-Agent": f"catty/{__version__}",
        "Accept": "application/vnd.github+json",
    }
    try:
        connection.request("GET", "/user", headers=headers)
        response = connection.getresponse()
        body = response.read(constants.MIB)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise GitHubUnreachable(reason=reason) from None
    finally:
        connection.close()
    if response.status != 200:
        raise GitHubRefused(status=response.status)
    try:
        return str(json.loads(body)["login"])
    except (ValueError, KeyError, TypeError):
        raise GitHubRefused(status="no user") from None


def _keyring_works() -> bool:
    """Whether the OS has a keyring that takes and gives back something (a headless one may exist and fail)."""
    try:
        import keyring

        backend = keyring.get_keyring()
        if backend.priority <= 0 or type(backend).__module__.startswith("keyring.backends.chainer"):
            return False
        keyring.set_password(_SERVICE, "probe", "probe")
        return keyring.get_password(_SERVICE, "probe") == "probe"
    except Exception:  # each backend has its own; without a keyring there is the file
        return False


def _cipher(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
