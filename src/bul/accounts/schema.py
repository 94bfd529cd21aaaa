"""The tables, as the newest migration leaves them; a test compares the two.

Refuses time zones and floats for money or tokens: times are seconds since the epoch.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["api_keys", "batches", "decisions", "metadata", "replica_hours", "usage"]

metadata = sa.MetaData()

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("revoked_s", sa.Float),
)
"""One row a name; a name that was revoked can be made anew, with another key."""

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("hour_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("region", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
)

batches = sa.Table(
    "usage_batches",
    metadata,
    sa.Column("writer", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("written_s", sa.Float, nullable=False),
)
"""Which batch of which process is in already, of usage or of a region's book: a commit whose answer
was lost is not counted twice when it is tried again."""

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_s", sa.Float, nullable=False, index=True),
    sa.Column("region", sa.String(64), nullable=False),
    sa.Column("direction", sa.String(16), nullable=False),
    sa.Column("replicas_before", sa.Integer, nullable=False),
    sa.Column("replicas", sa.Integer, nullable=False),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("policy", sa.String(16), nullable=False),
    sa.Column("acted", sa.Boolean, nullable=False),
    sa.Column("advisory", sa.Boolean, nullable=False),
    sa.Column("alert", sa.String(500), nullable=False),
    sa.Column("finding", sa.String(500), nullable=False),
)

replica_hours = sa.Table(
    "replica_hours",
    metadata,
    sa.Column("hour_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("region", sa.String(64), primary_key=True),
    sa.Column("replica_seconds", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
)
"""What a region costs, before it is multiplied by a price. seconds: of the hour, those in which
somebody counted."""
