"""Tokens: hashed, expiring, revocable."""

from __future__ import annotations

from pathlib import Path

from catty.server.db.access import AccessStore, new_token
from catty.server.db.engine import Database
from server.support import everything_in


async def test_a_token_lets_its_user_in_until_it_is_revoked(database: Database) -> None:
    access, token = AccessStore(database), new_token()
    user = await access.user("local")
    assert await access.authenticate(token) is None
    await access.add_token(user, token)
    await access.add_token(user, token)
    who = await access.authenticate(token)
    assert who is not None
    assert who.user == user
    assert await access.valid([who.token, "other"]) == {who.token}
    await access.revoke(user)
    assert await access.authenticate(token) is None
    assert await access.valid([who.token]) == frozenset()


async def test_a_token_expires(database: Database) -> None:
    access = AccessStore(database)
    user = await access.user("local")
    await access.add_token(user, "old", lifetime=-1)
    await access.add_token(user, "new", lifetime=60)
    assert await access.authenticate("old") is None
    assert await access.authenticate("new") is not None


async def test_the_database_does_not_hold_the_token(database: Database, tmp_path: Path) -> None:
    access, token = AccessStore(database), new_token()
    await access.add_token(await access.user("local"), token)
    await database.close()
    stored = everything_in(tmp_path)
    assert b"tokens" in stored
    assert token.encode() not in stored


async def test_the_installation_has_one_name(database: Database) -> None:
    assert await AccessStore(database).installation("one") == "one"
    assert await AccessStore(database).installation("two") == "one"


async def test_tokens_of_any_form_are_looked_up(database: Database) -> None:
    for token in ("", "\udcff", "x" * 100_000, "' OR 1=1 --"):
        assert await AccessStore(database).authenticate(token) is None
