"""Usage by region; the whole of a decision; how much of an hour somebody counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["downgrade", "upgrade"]

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SUMS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
KEYS = ("hour_s", "name", "model")
ADDED = (
    ("policy", sa.String(16), ""),
    ("acted", sa.Boolean, sa.true()),
    ("advisory", sa.Boolean, sa.false()),
    ("alert", sa.String(500), ""),
    ("finding", sa.String(500), ""),
)


def upgrade() -> None:
    region = sa.Column("region", sa.String(64), primary_key=True)
    _make_usage_anew((region,), "region, ", "'default', ")
    for name, kind, default in ADDED:
        op.add_column("decisions", sa.Column(name, kind, nullable=False, server_default=default))
    seconds = sa.Column("seconds", sa.Float, nullable=False, server_default="0")
    op.add_column("replica_hours", seconds)


def downgrade() -> None:
    """Regions are added up again."""
    _make_usage_anew((), "", "")
    for table, names in (
        ("decisions", [name for name, _, _ in ADDED]),
        ("replica_hours", ["seconds"]),
    ):
        with op.batch_alter_table(table) as batch:
            for name in names:
                batch.drop_column(name)


def _make_usage_anew(more: tuple[sa.Column[str], ...], columns: str, values: str) -> None:
    """Copied, since SQLite cannot change a primary key."""
    op.create_table(
        "usage_anew",
        sa.Column("hour_s", sa.BigInteger, primary_key=True, autoincrement=False),
        *more,
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
    )
    keys = ", ".join(KEYS)
    sums, summed = ", ".join(SUMS), ", ".join(f"sum({name})" for name in SUMS)
    op.execute(
        f"INSERT INTO usage_anew ({columns}{keys}, {sums}) "  # noqa: S608 - names from above
        f"SELECT {values}{keys}, {summed} FROM usage GROUP BY {keys}"
    )
    op.drop_table("usage")
    op.rename_table("usage_anew", "usage")
