"""Users and tokens. A token is 256 random bits; the database holds its SHA-256 and finds it by that."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

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

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def installation(self) -> str:
        """The name under which engines label this installation's machines: random, made once per database."""
        query = select(meta.c.value).where(meta.c.key == "installation")
        async with self._engine.begin() as connection:
            value: str | None = (await connection.execute(query)).scalar_one_or_none()
            if value is None:
                value = uuid.uuid4().hex
                await connection.execute(insert(meta).values(key="installation", value=value))
        return value

    async def user(self, name: str) -> str:
        """The id of the user called `name`, made if there is none."""
        query = select(users.c.id).where(users.c.name == name)
        async with self._engine.begin() as connection:
            found: str | None = (await connection.execute(query)).scalar_one_or_none()
            if found is None:
                found = str(uuid.uuid4())
                await connection.execute(insert(users).values(id=found, name=name, created_at=time.time()))
        return found

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
        try:
            async with self._engine.begin() as connection:
                await connection.execute(insert(tokens).values(row))
        except IntegrityError:
            pass

    async def authenticate(self, token: str) -> Principal | None:
        """Who `token` belongs to; None if it is unknown, expired or revoked."""
        query = select(tokens.c.id, tokens.c.user_id).where(tokens.c.hash == hash_token(token), _valid())
        async with self._engine.begin() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Principal(row.user_id, row.id)

    async def valid(self, ids: Collection[str]) -> frozenset[str]:
        """Those of the tokens with these ids that still let somebody in."""
        if not ids:
            return frozenset()
        query = select(tokens.c.id).where(tokens.c.id.in_(ids), _valid())
        async with self._engine.begin() as connection:
            return frozenset(row.id for row in await connection.execute(query))

    async def revoke(self, user: str) -> None:
        """End all tokens of `user`."""
        query = update(tokens).where(tokens.c.user_id == user, tokens.c.revoked_at.is_(None))
        async with self._engine.begin() as connection:
            await connection.execute(query.values(revoked_at=time.time()))


def _valid() -> ColumnElement[bool]:
    return and_(tokens.c.revoked_at.is_(None), or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > time.time()))
