"""What a check looks at and what it says, as data.

Refuses to turn "could not look" into a verdict: that is `unknown`, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

__all__ = [
    "Baseline",
    "Coherency",
    "Evidence",
    "Finding",
    "Monitor",
    "ReplicaEvidence",
    "Verdict",
]

Verdict = Literal["pass", "fail", "unknown"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One item's verdict. next: what to do, "" for nothing."""

    id: str
    group: str
    title: str
    verdict: Verdict
    evidence: str
    next: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaEvidence:
    """What one replica said. reason: why the rest is missing, "" if it is not.

    deep: "ok" once it has generated a token. signals: the guide's seven. tiers: name -> figures.
    series: metric name -> sum over its labels.
    """

    url: str
    live: bool = False
    ready: bool = False
    deep: str = ""
    signals: Mapping[str, float | None] | None = None
    tiers: Mapping[str, Mapping[str, float]] | None = None
    series: Mapping[str, float] | None = None
    reason: str = ""

    @property
    def silent(self) -> bool:
        """Nothing at all came from it: what other items would say of it is the item health's."""
        pages = (self.signals, self.tiers, self.series)
        return not (self.live or self.ready) and all(page is None for page in pages)

    @property
    def well(self) -> bool:
        return self.live and self.ready and self.deep == "ok"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Times to the first token of the same probe, in milliseconds, and when they were taken."""

    at_s: float
    ttft_ms: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Coherency:
    """A prompt asked on one replica, then on the others, then deleted on all.

    read_on: one of the others. cached_tokens: what it loaded. left: where blocks of it
    still lay after that. kept_because: why it could not be deleted or looked for, else "".
    """

    written_on: str
    read_on: str
    cached_tokens: int
    same_text: bool
    left: Sequence[str] = ()
    kept_because: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """What a Prometheus has: targets of ours that are up, of how many; the names of its alerts.

    down: host:port of those that are not up.
    """

    up: int
    targets: int
    alerts: frozenset[str]
    down: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything that was seen; None where nothing was, with the reason in `reasons` by item.

    closed: the router wants a key that was not given.

    answered: replica -> probes that it answered through the router. sessions: for each probed
    session the replicas that answered it. limits: (least, most) replicas. hosts: of replicas.
    cost_basis: what the cost of a day was reckoned from.
    """

    url: str
    now_s: float
    closed: bool = False
    policy: str | None = None
    replicas: Sequence[ReplicaEvidence] = ()
    answered: Mapping[str, int] = dataclasses.field(default_factory=dict)
    failed: int = 0
    sessions: Sequence[frozenset[str]] | None = None
    limits: tuple[int, int] | None = None
    baseline: Baseline | None = None
    ttft_ms: Sequence[float] = ()
    monitor: Monitor | None = None
    coherency: Coherency | None = None
    cost_per_day: float | None = None
    cost_basis: str = ""
    budget_per_day: float | None = None
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def heard(self) -> Sequence[ReplicaEvidence]:
        """Those that said anything."""
        return [replica for replica in self.replicas if not replica.silent]

    @property
    def well(self) -> Sequence[ReplicaEvidence]:
        return [replica for replica in self.replicas if replica.well]

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(r.url.removeprefix("http://").rpartition(":")[0] for r in self.replicas)
