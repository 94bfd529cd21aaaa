"""Reads and writes the accounts' tables; one function a question.

Refuses to run on a request's path: each call is a round trip to a database.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from bul.accounts.keys import Key
from bul.accounts.schema import api_keys, batches, decisions, replica_hours, usage
from bul.accounts.usage import Spent, UsageKey
from bul.errors import ConfigError

__all__ = [
    "UsageRow",
    "add_decision",
    "add_replica_seconds",
    "add_usage",
    "create_key",
    "has_keys",
    "list_keys",
    "read_decisions",
    "read_replica_seconds",
    "read_usage",
    "revoke_key",
    "valid_digests",
]

MARKS_KEPT_S = 7 * 86400.0
"""Of processes that ended: none of them will offer a batch again after a week."""
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
    engine: sa.Engine, writer: str, number: int, sums: Mapping[UsageKey, Spent], now_s: float
) -> bool:
    """One batch, whole or not at all; False if it is in there already."""
    mark = _insert(engine)(batches).values(writer=writer, number=number, written_s=now_s)
    # What comes back says whether it was new: drivers do not agree on the count of rows.
    new = mark.on_conflict_do_nothing().returning(batches.c.number)
    with engine.begin() as connection:
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
        for (hour_s, name, model), spent in sorted(sums.items()):
            values = {"hour_s": hour_s, "name": name, "model": model}
            statement = _insert(engine)(usage).values(**values, **dataclasses.asdict(spent))
            summed = {field: usage.c[field] + statement.excluded[field] for field in SUMMED}
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["hour_s", "name", "model"], set_=summed
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


def add_decision(engine: sa.Engine, **values: object) -> None:
    """Columns of `decisions` by name; the reason is cut at its length."""
    values["reason"] = str(values["reason"])[:500]
    with engine.begin() as connection:
        connection.execute(decisions.insert().values(**values))


def read_decisions(engine: sa.Engine, *, limit: int = 100) -> Sequence[Mapping[str, object]]:
    """The newest first."""
    statement = sa.select(decisions).order_by(decisions.c.at_s.desc()).limit(limit)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(statement).mappings()]


def add_replica_seconds(engine: sa.Engine, hour_s: int, region: str, seconds: float) -> None:
    """On top of what that hour has."""
    statement = _insert(engine)(replica_hours).values(
        hour_s=hour_s, region=region, replica_seconds=seconds
    )
    summed = replica_hours.c.replica_seconds + statement.excluded.replica_seconds
    with engine.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["hour_s", "region"], set_={"replica_seconds": summed}
            )
        )


def read_replica_seconds(engine: sa.Engine, *, since_s: float = 0.0) -> Mapping[str, float]:
    """Region -> seconds of replicas since then."""
    statement = (
        sa.select(replica_hours.c.region, sa.func.sum(replica_hours.c.replica_seconds))
        .where(replica_hours.c.hour_s >= int(since_s))
        .group_by(replica_hours.c.region)
    )
    with engine.connect() as connection:
        return {region: float(seconds) for region, seconds in connection.execute(statement)}


def _insert(engine: sa.Engine) -> type[sqlite.Insert | postgresql.Insert]:
    """Both dialects have ON CONFLICT, each with an insert of its own."""
    return sqlite.Insert if engine.dialect.name == "sqlite" else postgresql.Insert
