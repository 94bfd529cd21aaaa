"""Reads and writes the accounts' tables; one function a question.

Refuses to run on a request's path: each call is a round trip to a database.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from bul.accounts.keys import Key
from bul.accounts.schema import api_keys, batches, usage
from bul.accounts.usage import DEFAULT_REGION, Spent, UsageKey
from bul.errors import ConfigError

__all__ = [
    "UsageDay",
    "UsageRow",
    "add_usage",
    "claim_batch",
    "create_key",
    "has_keys",
    "insert_into",
    "list_keys",
    "read_usage",
    "read_usage_days",
    "revoke_key",
    "valid_digests",
]

MARKS_KEPT_S = 7 * 86400.0
"""Of processes that ended: none of them will offer a batch again after a week."""
DAY_S = 86_400
SUMMED = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UsageRow:
    """One key's use of one model between two times."""

    name: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UsageDay:
    """What a region's callers used on one UTC day. day_s: its start."""

    day_s: int
    region: str
    spent: Spent


def create_key(engine: sa.Engine, key: Key) -> None:
    """Raises ConfigError if a valid key has that name."""
    with engine.begin() as connection:
        found = connection.execute(
            sa.select(api_keys.c.revoked_s).where(api_keys.c.name == key.name)
        ).first()
        if found is not None and found.revoked_s is None:
            raise ConfigError(
                f"there is a key named {key.name!r} already", hint=f"bul keys revoke {key.name}"
            )
        connection.execute(api_keys.delete().where(api_keys.c.name == key.name))
        connection.execute(api_keys.insert().values(**dataclasses.asdict(key)))


def revoke_key(engine: sa.Engine, name: str, now_s: float) -> bool:
    """False if no valid key has that name."""
    statement = (
        api_keys.update()
        .where(api_keys.c.name == name, api_keys.c.revoked_s.is_(None))
        .values(revoked_s=now_s)
    )
    with engine.begin() as connection:
        return bool(connection.execute(statement).rowcount)


def list_keys(engine: sa.Engine) -> list[Key]:
    """All, revoked ones too, by name."""
    with engine.connect() as connection:
        rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.name))
        return [Key(**row) for row in rows.mappings()]


def valid_digests(engine: sa.Engine) -> Mapping[str, str]:
    """Names and SHA-256 of every key that is not revoked."""
    statement = sa.select(api_keys.c.name, api_keys.c.digest).where(api_keys.c.revoked_s.is_(None))
    with engine.connect() as connection:
        return {row.name: row.digest for row in connection.execute(statement)}


def has_keys(engine: sa.Engine) -> bool:
    """Whether there is or was any key, revoked ones too."""
    with engine.connect() as connection:
        return connection.execute(sa.select(api_keys.c.name).limit(1)).first() is not None


def add_usage(
    engine: sa.Engine,
    writer: str,
    number: int,
    sums: Mapping[UsageKey, Spent],
    now_s: float,
    *,
    region: str = DEFAULT_REGION,
) -> bool:
    """One batch, whole or not at all; False if it is in there already."""
    with engine.begin() as connection:
        if not claim_batch(connection, writer, number, now_s):
            return False
        for (hour_s, name, model), spent in sorted(sums.items()):
            values = {"hour_s": hour_s, "region": region, "name": name, "model": model}
            statement = insert_into(connection, usage).values(**values, **dataclasses.asdict(spent))
            summed = {field: usage.c[field] + statement.excluded[field] for field in SUMMED}
            connection.execute(
                statement.on_conflict_do_update(index_elements=list(values), set_=summed)
            )
    return True


def claim_batch(connection: sa.Connection, writer: str, number: int, now_s: float) -> bool:
    """Whether this batch is new; marks it so in the same transaction, and forgets older marks."""
    mark = insert_into(connection, batches).values(writer=writer, number=number, written_s=now_s)
    # What comes back says whether it was new: drivers do not agree on the count of rows.
    new = mark.on_conflict_do_nothing().returning(batches.c.number)
    if connection.execute(new).first() is None:
        return False
    connection.execute(
        batches.delete().where(
            sa.or_(
                sa.and_(batches.c.writer == writer, batches.c.number < number),
                batches.c.written_s < now_s - MARKS_KEPT_S,
            )
        )
    )
    return True


def read_usage(
    engine: sa.Engine, *, since_s: float = 0.0, until_s: float = float("inf"), name: str = ""
) -> list[UsageRow]:
    """Sums of the hours that begin in [since_s, until_s), most tokens first. name: "" for all."""
    statement = sa.select(
        usage.c.name,
        usage.c.model,
        *(sa.func.sum(usage.c[field]).label(field) for field in SUMMED),
    ).where(usage.c.hour_s >= int(since_s))
    if until_s != float("inf"):
        statement = statement.where(usage.c.hour_s < int(until_s))
    if name:
        statement = statement.where(usage.c.name == name)
    statement = statement.group_by(usage.c.name, usage.c.model)
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    found = [
        UsageRow(
            name=row.name, model=row.model, **{field: int(getattr(row, field)) for field in SUMMED}
        )
        for row in rows
    ]
    return sorted(found, key=lambda row: -(row.prompt_tokens + row.output_tokens))


def read_usage_days(engine: sa.Engine, *, since_s: float = 0.0) -> list[UsageDay]:
    """Sums of all keys by UTC day and region, of the hours from since_s on."""
    day_s = usage.c.hour_s - usage.c.hour_s % DAY_S
    statement = (
        sa.select(
            day_s.label("day_s"),
            usage.c.region,
            *(sa.func.sum(usage.c[field]).label(field) for field in SUMMED),
        )
        .where(usage.c.hour_s >= int(since_s))
        .group_by(day_s, usage.c.region)
    )
    with engine.connect() as connection:
        return [
            UsageDay(
                day_s=int(row.day_s),
                region=row.region,
                spent=Spent(**{field: int(getattr(row, field)) for field in SUMMED}),
            )
            for row in connection.execute(statement)
        ]


def insert_into(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Both dialects have ON CONFLICT, each with an insert of its own."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
