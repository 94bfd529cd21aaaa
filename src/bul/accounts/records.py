"""A region's book in the database: decisions and replica time, written whole or not at all.

Refuses to run where something waits: each call is a round trip to a database.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sqlalchemy as sa

from bul.accounts.book import DecisionRow, Records
from bul.accounts.schema import decisions, replica_hours
from bul.accounts.store import claim_batch, insert_into

__all__ = ["ReplicaHour", "add_records", "read_decisions", "read_replica_hours", "trim"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaHour:
    """One region's hour. seconds: of it, those in which somebody counted."""

    hour_s: int
    region: str
    replica_seconds: float
    seconds: float


def add_records(
    engine: sa.Engine, region: str, writer: str, number: int, records: Records, now_s: float
) -> bool:
    """One batch; False if it is in there already."""
    with engine.begin() as connection:
        if not claim_batch(connection, writer, number, now_s):
            return False
        if records.decisions:
            rows = [{"region": region, **dataclasses.asdict(row)} for row in records.decisions]
            connection.execute(decisions.insert(), rows)
        for hour_s, watched in sorted(records.hours.items()):
            key = {"hour_s": hour_s, "region": region}
            statement = insert_into(connection, replica_hours).values(
                **key, **dataclasses.asdict(watched)
            )
            summed = {
                name: replica_hours.c[name] + statement.excluded[name]
                for name in ("replica_seconds", "seconds")
            }
            connection.execute(
                statement.on_conflict_do_update(index_elements=list(key), set_=summed)
            )
    return True


def read_decisions(
    engine: sa.Engine, *, limit: int = 100, region: str = ""
) -> Sequence[tuple[str, DecisionRow]]:
    """(region, decision), the newest first. region: "" for all."""
    fields = [field.name for field in dataclasses.fields(DecisionRow)]
    statement = sa.select(decisions).order_by(decisions.c.at_s.desc()).limit(limit)
    if region:
        statement = statement.where(decisions.c.region == region)
    with engine.connect() as connection:
        rows = connection.execute(statement).mappings()
        return [
            (row["region"], DecisionRow(**{name: row[name] for name in fields})) for row in rows
        ]


def read_replica_hours(
    engine: sa.Engine, *, since_s: float = 0.0, region: str = ""
) -> list[ReplicaHour]:
    """Hours that begin at since_s or later, oldest first. region: "" for all."""
    statement = sa.select(replica_hours).where(replica_hours.c.hour_s >= int(since_s))
    if region:
        statement = statement.where(replica_hours.c.region == region)
    statement = statement.order_by(replica_hours.c.hour_s, replica_hours.c.region)
    with engine.connect() as connection:
        return [ReplicaHour(**row) for row in connection.execute(statement).mappings()]


def trim(engine: sa.Engine, region: str, before_s: float) -> int:
    """Remove what is older of that region; how many rows."""
    with engine.begin() as connection:
        return sum(
            connection.execute(
                table.delete().where(table.c.region == region, column < before_s)
            ).rowcount
            for table, column in (
                (decisions, decisions.c.at_s),
                (replica_hours, replica_hours.c.hour_s),
            )
        )
