"""Users, tokens, sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "meta",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float()),
        sa.Column("revoked_at", sa.Float()),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_tokens_user_id", ondelete="CASCADE"),
        sa.UniqueConstraint("hash", name="uq_tokens_hash"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("owner", sa.String(36), nullable=False),
        sa.Column("label", sa.String(63), nullable=False),
        sa.Column("request_id", sa.String(64)),
        sa.Column("agent", sa.String(32), nullable=False),
        sa.Column("prompts", sa.Boolean(), nullable=False),
        sa.Column("upload", sa.Boolean(), nullable=False),
        sa.Column("cols", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("cpus", sa.Float(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column("ttl_sec", sa.Integer(), nullable=False),
        sa.Column("has_env", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16)),
        sa.Column("step", sa.String(32), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("machine_id", sa.String(36), nullable=False),
        sa.Column("has_machine", sa.Boolean(), nullable=False),
        sa.Column("uploaded", sa.Boolean(), nullable=False),
        sa.Column("restored", sa.Boolean(), nullable=False),
        sa.Column("stop_requested", sa.Boolean(), nullable=False),
        sa.Column("delete_requested", sa.Boolean(), nullable=False),
        sa.Column("tombstone", sa.String(36), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("last_activity_at", sa.Float(), nullable=False),
        sa.Column("last_saved_at", sa.Float()),
        sa.Column("stopped_at", sa.Float()),
        sa.Column("lease_holder", sa.String(36)),
        sa.Column("lease_generation", sa.Integer(), nullable=False),
        sa.Column("lease_expires", sa.Float()),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.ForeignKeyConstraint(["owner"], ["users.id"], name="fk_sessions_owner"),
        sa.UniqueConstraint("machine_id", name="uq_sessions_machine_id"),
        sa.UniqueConstraint("owner", "label", "tombstone", name="uq_sessions_owner_label_tombstone"),
        sa.UniqueConstraint("owner", "request_id", name="uq_sessions_owner_request_id"),
    )
    op.create_index("ix_sessions_state", "sessions", ["state"])
