"""What `bul demo` says: one row per turn, and the figures of the turns that share 900 tokens.

Refuses to compare different turns: cold and warm are medians over the same ones. After a restart,
or on a cold replica, the headline is what was measured then; what was before has keys of its own.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

__all__ = [
    "SHARED_TOKENS_MIN",
    "ColdReplica",
    "Report",
    "Restart",
    "Turn",
    "print_table",
    "to_json",
]

SHARED_TOKENS_MIN = 900


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """shared_tokens: of the previous turn's prompt, all of which this prompt begins with; after a
    restart, or on a cold replica, of this very prompt, which was asked before.

    cached_tokens: how many of them came from the cache. ttft_*_ms: with and without the cache.
    """

    conversation: str
    turn: int
    prompt_tokens: int
    shared_tokens: int
    cached_tokens: int
    ttft_cold_ms: float
    ttft_warm_ms: float
    identical: bool
    after_restart: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """Every replica was killed. back_s: until all took requests again. disk_hit_tokens: loaded
    from disk since, by all of them.
    """

    replicas_killed: int
    back_s: float
    disk_hit_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ColdReplica:
    """Another replica was asked. blocks_at_start: in its RAM and on its disk. *_hit_tokens: loaded
    by it since, from the shared cache and from its own disk.
    """

    blocks_at_start: int
    shared_hit_tokens: int
    disk_hit_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that was measured."""

    engine: str
    model: str
    conversations: int
    turns: tuple[Turn, ...]
    seconds: float
    restart: Restart | None = None
    cold_replica: ColdReplica | None = None

    @property
    def identical(self) -> bool:
        return all(turn.identical for turn in self.turns)

    @property
    def shared(self) -> tuple[Turn, ...]:
        """The turns that share enough to be compared; those that were asked again, if any were."""
        return self._shared(after_restart=bool(self.restart or self.cold_replica))

    @property
    def shared_before(self) -> tuple[Turn, ...]:
        """Those before the restart, or of the first replica."""
        return self._shared(after_restart=False)

    def _shared(self, *, after_restart: bool) -> tuple[Turn, ...]:
        turns = (turn for turn in self.turns if turn.after_restart == after_restart)
        return tuple(turn for turn in turns if turn.shared_tokens >= SHARED_TOKENS_MIN)

    @property
    def ttft_cold_ms_p50(self) -> float | None:
        return cold_p50(self.shared)

    @property
    def ttft_warm_ms_p50(self) -> float | None:
        return warm_p50(self.shared)


def cold_p50(turns: Sequence[Turn]) -> float | None:
    return _median([turn.ttft_cold_ms for turn in turns])


def warm_p50(turns: Sequence[Turn]) -> float | None:
    return _median([turn.ttft_warm_ms for turn in turns])


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None


def to_json(report: Report) -> bytes:
    """One document; its keys stay, whatever flags are added later."""
    rows = [dataclasses.asdict(turn) for turn in report.turns]
    for row in rows:
        row["ttft_cold_ms"] = round(row["ttft_cold_ms"], 1)
        row["ttft_warm_ms"] = round(row["ttft_warm_ms"], 1)
    document = {
        "identical": report.identical,
        "conversations": report.conversations,
        "turns": len(report.turns),
        "turns_shared_900": len(report.shared),
        "ttft_cold_ms_p50": report.ttft_cold_ms_p50,
        "ttft_warm_ms_p50": report.ttft_warm_ms_p50,
        "prompt_tokens": sum(turn.prompt_tokens for turn in report.turns),
        "cached_tokens": sum(turn.cached_tokens for turn in report.turns),
        "engine": report.engine,
        "model": report.model,
        "seconds": round(report.seconds, 1),
        "rows": rows,
    }
    return msgspec.json.encode(document | _again_keys(report))


def _again_keys(report: Report) -> dict[str, object]:
    facts: Restart | ColdReplica | None = report.restart
    name, before_name = "restart", "before_restart"
    if report.cold_replica is not None:
        facts, name, before_name = report.cold_replica, "cold_replica", "first_replica"
    if facts is None:
        return {}
    cold, warm = report.ttft_cold_ms_p50, report.ttft_warm_ms_p50
    ratio = None if cold is None or warm is None else round(warm / cold, 4)
    before = report.shared_before
    return {
        name: dataclasses.asdict(facts) | {"warm_over_cold": ratio},
        before_name: {
            "ttft_cold_ms_p50": cold_p50(before),
            "ttft_warm_ms_p50": warm_p50(before),
            "turns_shared_900": len(before),
        },
    }


def print_table(report: Report) -> None:
    """The table for people, on stdout."""
    title = f"{report.model}, engine {report.engine}, greedy"
    table = Table(title=title, padding=(0, 1, 0, 0))
    table.add_column("conversation", no_wrap=True)
    # Two short lines each: the whole table fits into 80 columns, one row a turn.
    for name in ("turn", "prompt\ntokens", "from\ncache", "TTFT\nwithout", "TTFT\nwith"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("same\ntext", no_wrap=True)
    for turn in report.turns:
        table.add_row(
            turn.conversation,
            f"{turn.turn}, again" if turn.after_restart else str(turn.turn),
            str(turn.prompt_tokens),
            str(turn.cached_tokens),
            f"{turn.ttft_cold_ms / 1000:.2f} s",
            f"{turn.ttft_warm_ms / 1000:.2f} s",
            "yes" if turn.identical else "NO",
        )
    console = Console()
    console.print(table)
    console.print(_summary(report))


def _summary(report: Report) -> str:
    same = "every text is the same" if report.identical else "SOME TEXTS DIFFER"
    cold, warm = report.ttft_cold_ms_p50, report.ttft_warm_ms_p50
    if cold is None or warm is None:
        return f"{same}; no turn shared {SHARED_TOKENS_MIN} tokens with the one before"
    killed = ""
    if report.restart is not None:
        restart = report.restart
        killed = (
            f"after kill -9 of {restart.replicas_killed} replicas (back in {restart.back_s:.1f} s) "
            f"{restart.disk_hit_tokens} tokens came from disk; "
        )
    if report.cold_replica is not None:
        killed = (
            "on a replica that started with nothing "
            f"{report.cold_replica.shared_hit_tokens} tokens came from the shared cache; "
        )
    return (
        f"{same}; {killed}{len(report.shared)} turns share {SHARED_TOKENS_MIN} tokens or more: "
        f"median TTFT {cold / 1000:.2f} s without the cache, {warm / 1000:.2f} s with it "
        f"({warm / cold:.2f} x)"
    )
