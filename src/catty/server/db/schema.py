"""Tables. Times are Unix seconds (UTC). What is secret is stored hashed or not at all.

A change here needs a new file in `migrations/versions/` (tests/server/db/test_migrate.py compares the two).
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = ["meta", "metadata", "sessions", "tokens", "users"]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Facts about this installation, such as the name under which its machines are labelled.
meta = Table("meta", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False))

users = Table(
    "users",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256, hex, of a random token of 256 bits
    Column("kind", String(16), nullable=False),  # "access"
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),  # null: until revoked
    Column("revoked_at", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner", String(36), ForeignKey("users.id"), nullable=False),
    Column("label", String(63), nullable=False),
    Column("request_id", String(64)),
    # What was asked for.
    Column("agent", String(32), nullable=False),
    Column("prompts", Boolean, nullable=False),
    Column("upload", Boolean, nullable=False),
    Column("cols", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("cpus", Float, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("ttl_sec", Integer, nullable=False),
    Column(
        "has_env", Boolean, nullable=False
    ),  # its values are in the memory of the server that was asked, until the claim
    # Where it stands.
    Column("state", String(16), nullable=False),
    Column("reason", String(16)),
    Column("step", String(32), nullable=False),
    Column("error", Text),  # JSON, see CattyError.to_json
    Column("version", Integer, nullable=False),
    # Its machine: `has_machine` is set before the engine is asked to make it and cleared after it was destroyed.
    Column("machine_id", String(36), nullable=False, unique=True),
    Column("has_machine", Boolean, nullable=False),
    Column("uploaded", Boolean, nullable=False),
    Column("restored", Boolean, nullable=False),  # the workspace is in place: from here on there is something to save
    # What was asked of it since.
    Column("stop_requested", Boolean, nullable=False),
    Column("delete_requested", Boolean, nullable=False),
    # "" while it lives, its id once deleted: the label is free again, and deleting twice finds what it means.
    Column("tombstone", String(36), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_activity_at", Float, nullable=False),
    Column("last_saved_at", Float),
    Column("stopped_at", Float),
    # Who drives it: a holder that lost the lease finds its generation gone (db/sessions.py).
    Column("lease_holder", String(36)),
    Column("lease_generation", Integer, nullable=False),
    Column("lease_expires", Float),
    UniqueConstraint("owner", "label", "tombstone"),
    UniqueConstraint("owner", "request_id"),
    Index(None, "state"),
)
