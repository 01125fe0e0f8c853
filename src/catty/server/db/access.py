"""Users and tokens. A token is 256 random bits; the database holds its SHA-256 and finds it by that."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Executable, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from catty.server.db.engine import Database
from catty.server.db.schema import meta, tokens, users

__all__ = ["LOCAL_USER", "AccessStore", "Principal", "hash_token", "new_token"]

LOCAL_USER: Final = "local"  # the one owner, until there are accounts
_PREFIX: Final = "catty_"  # so that scanners for leaked secrets know it


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request is from, and the token that said so."""

    user: str
    token: str


def new_token() -> str:
    """A fresh access token."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What is stored of `token`. No salt: it is too long to be guessed."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class AccessStore:
    """Users, tokens and the installation's name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def installation(self, name: str) -> str:
        """The name under which engines label this installation's machines: `name` for a new database, and for ever after."""
        query = select(meta.c.value.label("value")).where(meta.c.key == "installation")
        return await self._found_or_made(query, insert(meta).values(key="installation", value=name))

    async def user(self, name: str) -> str:
        """The id of the user called `name`, made if there is none."""
        query = select(users.c.id.label("value")).where(users.c.name == name)
        made = insert(users).values(id=str(uuid.uuid4()), name=name, created_at=time.time())
        return await self._found_or_made(query, made)

    async def _found_or_made(self, query: Executable, make: Executable) -> str:
        while True:
            for row in await self._database.execute(query):
                return str(row.value)
            with contextlib.suppress(IntegrityError):  # another server made it just now
                await self._database.execute(make)

    async def add_token(self, user: str, token: str, *, lifetime: float | None = None) -> None:
        """Let `token` in as `user`, for `lifetime` seconds (None: until revoked). A known one is left as it is."""
        now = time.time()
        row = {
            "id": str(uuid.uuid4()),
            "user_id": user,
            "hash": hash_token(token),
            "kind": "access",
            "created_at": now,
            "expires_at": None if lifetime is None else now + lifetime,
        }
        with contextlib.suppress(IntegrityError):
            await self._database.execute(insert(tokens).values(row))

    async def authenticate(self, token: str) -> Principal | None:
        """Who `token` belongs to; None if it is unknown, expired or revoked."""
        query = select(tokens.c.id, tokens.c.user_id).where(tokens.c.hash == hash_token(token), _valid())
        for row in await self._database.execute(query):
            return Principal(row.user_id, row.id)
        return None

    async def valid(self, ids: Collection[str]) -> frozenset[str]:
        """Those of the tokens with these ids that still let somebody in."""
        if not ids:
            return frozenset()
        query = select(tokens.c.id).where(tokens.c.id.in_(ids), _valid())
        return frozenset(row.id for row in await self._database.execute(query))

    async def revoke(self, user: str, *, but: str = "") -> None:
        """End all tokens of `user`, or all `but` one."""
        others = and_(tokens.c.user_id == user, tokens.c.hash != hash_token(but))
        query = update(tokens).where(others, tokens.c.revoked_at.is_(None))
        await self._database.execute(query.values(revoked_at=time.time()))


def _valid() -> ColumnElement[bool]:
    return and_(tokens.c.revoked_at.is_(None), or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > time.time()))
