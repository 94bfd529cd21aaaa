"""The guide's thirteen items: check(evidence) -> finding. Pure; `evidence.py` looks.

Refuses to pass what it could not see. Thresholds have names, and stand here:

    a baseline is at most BASELINE_AGE_DAYS old and has SAMPLES_MIN probes
    no replica answers more than SPREAD_MAX times the mean
    slower means: the median rose by more than SLOWER_MIN and a one-sided Mann-Whitney test of the
    two samples says p < P_MAX, so that one slow probe is no degradation

One cause fails one item: a replica that is ill is named by `health`, and the others judge those
that are well; if nothing is left to judge, they are unknown and say where to look.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from bul.doctor.findings import Evidence, Finding, ReplicaEvidence, Verdict

__all__ = ["CHECKS", "GROUPS", "mann_whitney_p", "run_checks"]

GROUPS = ("pre", "horizontal", "post")
BASELINE_AGE_DAYS = 30.0
SAMPLES_MIN = 10
SPREAD_MAX = 1.5
SLOWER_MIN = 1.10
P_MAX = 0.01
SEE_HEALTH = "no replica is well: see health"
SIGNALS = (
    "requests_per_second",
    "p95_latency",
    "cpu_utilization",
    "memory_utilization",
    "cache_hit_rate",
    "error_rate",
    "active_connections",
)
GUIDE_ALERTS = frozenset(("HighLoadRequiresScaling", "LowUtilizationScaleDown"))

Said = tuple[Verdict, str, str]
"""(verdict, evidence, next step)."""


def run_checks(evidence: Evidence, groups: Sequence[str] = GROUPS) -> list[Finding]:
    """One finding an item of `groups`, in the guide's order."""
    found = []
    for name, group, title, check in CHECKS:
        if group in groups:
            verdict, said, following = check(evidence)
            found.append(
                Finding(
                    id=name,
                    group=group,
                    title=title,
                    verdict=verdict,
                    evidence=said,
                    next="" if verdict == "pass" else following,
                )
            )
    return found


def _unknown(evidence: Evidence, item: str, following: str) -> Said:
    reason = evidence.reasons.get(item)
    if reason is None and not evidence.replicas:
        return "unknown", "no replica is known: see balancer", following
    return "unknown", reason or "nothing was seen", following


def _mute(evidence: Evidence, what: Callable[[ReplicaEvidence], bool]) -> list[str]:
    return [f"{r.url} ({r.reason or 'no answer'})" for r in evidence.heard if what(r)]


def _baseline(evidence: Evidence) -> Said:
    following = f"bul check baseline --url {evidence.url}"
    if evidence.baseline is None:
        return "fail", evidence.reasons.get("baseline", "none was recorded"), following
    age_days = (evidence.now_s - evidence.baseline.at_s) / 86_400.0
    samples = len(evidence.baseline.ttft_ms)
    said = f"{samples} probes, {age_days:.1f} days old"
    good = samples >= SAMPLES_MIN and age_days <= BASELINE_AGE_DAYS
    return ("pass" if good else "fail"), said, following


def _limits(evidence: Evidence) -> Said:
    following = "bul up --min-replicas 2 --max-replicas 10"
    if evidence.limits is None:
        return _unknown(evidence, "limits", "run it on the region's host, with --state-dir")
    if not evidence.replicas:
        return _unknown(evidence, "replicas", following)
    low, high = evidence.limits
    now = len(evidence.replicas)
    said = f"{low} to {high}, {now} now"
    return ("pass" if 1 <= low <= now <= high else "fail"), said, following


def _balancer(evidence: Evidence) -> Said:
    following = "bul route --replica URL ..., and point --url at it"
    if evidence.policy is None:
        if evidence.closed:
            following = f"bul check pre --url {evidence.url} --key-file FILE"
        return "fail", evidence.reasons.get("balancer", "no router answers here"), following
    if evidence.replicas and not evidence.well:
        return "unknown", SEE_HEALTH, following
    silent = sorted({r.url for r in evidence.well} - set(evidence.answered))
    counts = ", ".join(f"{url}: {n}" for url, n in sorted(evidence.answered.items()))
    said = f"{evidence.policy}; probes answered by {counts or 'nobody'}"
    if silent:
        said += f"; none by {', '.join(silent)}"
    if evidence.failed:
        said += f"; {evidence.failed} probes failed"
    good = evidence.replicas and not silent and not evidence.failed
    return ("pass" if good else "fail"), said, following


def _health(evidence: Evidence) -> Said:
    following = "look at its log; a supervisor restarts what /health calls stuck"
    if not evidence.replicas:
        return _unknown(evidence, "health", following)
    ill = [
        f"{r.url}: live {r.live}, ready {r.ready}, one token {r.deep or r.reason or 'no answer'}"
        for r in evidence.replicas
        if not (r.live and r.ready and r.deep == "ok")
    ]
    if ill:
        return "fail", "; ".join(ill), following
    return "pass", f"{len(evidence.replicas)} replicas live, ready, and made a token", ""


def _monitoring(evidence: Evidence) -> Said:
    following = (
        "bul plan --rps 10 --out DIR writes prometheus.yml and alerts.yml; then "
        f"bul check pre --url {evidence.url} --prometheus URL"
    )
    closed = _mute(evidence, lambda replica: replica.series is None)
    if closed:
        following = f"bul check pre --url {evidence.url} --key-file FILE"
        return "fail", f"no metrics from {', '.join(closed)}", following
    if evidence.monitor is None:
        return _unknown(evidence, "monitoring", following)
    monitor = evidence.monitor
    missing = sorted(GUIDE_ALERTS - monitor.alerts)
    said = f"{monitor.up} of {monitor.targets} targets up, {len(monitor.alerts)} alerts loaded"
    if missing:
        said += f"; missing: {', '.join(missing)}"
    ill = {r.url.partition("://")[2] for r in evidence.replicas if not r.well}
    down = sorted(monitor.down - ill)
    if down:
        said += f"; down: {', '.join(down)}"
    good = not missing and monitor.targets and not down
    return ("pass" if good else "fail"), said, following


def _database(evidence: Evidence) -> Said:
    following = "is it running? accounts.database_url must be the same on every host"
    if evidence.replicas and not evidence.heard:
        return "unknown", SEE_HEALTH, following
    series = [(r.url, (r.series or {}).get("bul_database_away")) for r in evidence.heard]
    if not series or all(away is None for _, away in series):
        return _unknown(evidence, "database", "set accounts.database_url")
    away = [f"{url} ({'none' if value is None else 'away'})" for url, value in series if value != 0]
    if away:
        return "fail", f"not reached from {', '.join(away)}", following
    return "pass", f"reached from {len(series)} replicas", ""


def _redis(evidence: Evidence) -> Said:
    following = "bul serve --shared-url redis://HOST, the same on every host"
    if evidence.replicas and not evidence.heard:
        return "unknown", SEE_HEALTH, following
    if not evidence.replicas:
        return _unknown(evidence, "redis", following)
    told = [(r.url, (r.tiers or {}).get("shared")) for r in evidence.heard]
    if all(shared is None for _, shared in told):
        disk = all("disk" in (r.tiers or {}) for r in evidence.heard)
        if len(evidence.hosts) == 1 and disk:
            return "pass", "one host: its replicas share a disk folder", ""
        where = f"{len(evidence.hosts)} hosts" if disk else "no tier under RAM"
        return "fail", f"no shared tier: {where}", following
    bad = [
        f"{url} ({'not used' if shared is None else 'shut off'})"
        for url, shared in told
        if shared is None or shared.get("read_breaker_open") or shared.get("write_breaker_open")
    ]
    if bad:
        return "fail", f"not reached from {', '.join(bad)}", following
    return "pass", f"reached from {len(told)} replicas", ""


def _session(evidence: Evidence) -> Said:
    following = "bul route --policy session, and clients that send the header or cookie"
    if evidence.policy is None:
        return _unknown(evidence, "session", following)
    if evidence.policy != "session":
        return "pass", f"not asked for: the policy is {evidence.policy}", ""
    if not evidence.sessions:
        return _unknown(evidence, "session", following)
    split = [sorted(seen) for seen in evidence.sessions if len(seen) > 1]
    if split:
        return "fail", f"{len(split)} of {len(evidence.sessions)} sessions were split", following
    return "pass", f"{len(evidence.sessions)} sessions stayed where they were", ""


def _coherency(evidence: Evidence) -> Said:
    following = "bul cache explain PROMPT --url REPLICA says what keeps the blocks apart"
    found = evidence.coherency
    if found is None:
        return _unknown(evidence, "coherency", following)
    said = (
        f"written on {found.written_on}, {found.cached_tokens} tokens loaded on {found.read_on}, "
        f"texts {'equal' if found.same_text else 'DIFFER'}"
    )
    if found.left:
        said += f"; deleted, but STILL in {', '.join(found.left)}"
        following = "bul cache check of that folder, or that tier's log: deletions are not kept"
    elif found.kept_because:
        said += f"; left to age out, since {found.kept_because}"
    else:
        said += "; deleted everywhere"
    good = found.cached_tokens and found.same_text and not found.left
    return ("pass" if good else "fail"), said, following


def _metrics(evidence: Evidence) -> Said:
    following = "compare GET /signals of that replica with its /metrics"
    if evidence.replicas and not evidence.heard:
        return "unknown", SEE_HEALTH, following
    if not evidence.replicas:
        return _unknown(evidence, "metrics", following)
    unread = _mute(evidence, lambda replica: replica.signals is None)
    if len(unread) == len(evidence.heard):
        following = f"bul check post --url {evidence.url} --key-file FILE"
        return "unknown", f"not read from {', '.join(unread)}", following
    wrong = []
    for replica in evidence.heard:
        signals = replica.signals or {}
        bad = [name for name in SIGNALS if not _plausible(name, signals.get(name))]
        if bad:
            wrong.append(f"{replica.url}: {', '.join(bad)}")
    if wrong:
        return "fail", f"missing or impossible at {'; '.join(wrong)}", following
    return "pass", f"all seven, at {len(evidence.heard)} replicas", ""


def _plausible(name: str, value: float | None) -> bool:
    if value is None or not math.isfinite(value) or value < 0:
        return False
    share = name.endswith(("utilization", "rate"))
    return not share or value <= 1


def _load(evidence: Evidence) -> Said:
    following = "bul scale history, and the router's /replicas: is one of them slow or full?"
    if not evidence.answered or not evidence.replicas:
        return _unknown(evidence, "load", following)
    counts = [evidence.answered.get(r.url, 0) for r in evidence.well]
    if not sum(counts):
        return "unknown", SEE_HEALTH, following
    spread = max(counts) / (sum(counts) / len(counts))
    said = f"most over mean {spread:.2f} of {sum(counts)} probes"
    return ("pass" if spread <= SPREAD_MAX else "fail"), said, following


def _degradation(evidence: Evidence) -> Said:
    following = "bul bench against the region, and what changed since the baseline"
    if evidence.baseline is None:
        following = f"bul check baseline --url {evidence.url}"
        return "unknown", "there is no baseline to compare with", following
    if len(evidence.ttft_ms) < SAMPLES_MIN:
        seen = f"{len(evidence.ttft_ms)} probes were answered, {SAMPLES_MIN} are needed"
        return "unknown", seen, f"bul check pre --url {evidence.url}"
    before, now = evidence.baseline.ttft_ms, evidence.ttft_ms
    ratio = statistics.median(now) / max(statistics.median(before), 1e-9)
    p = mann_whitney_p(before, now)
    said = (
        f"median {statistics.median(before):.1f} -> {statistics.median(now):.1f} ms "
        f"({ratio:.2f} x), p {p:.3f}"
    )
    slower = ratio > SLOWER_MIN and p < P_MAX
    if slower and len(evidence.well) < len(evidence.replicas):
        return "unknown", f"{said}; a replica is ill: see health first", following
    return ("fail" if slower else "pass"), said, following


def _costs(evidence: Evidence) -> Said:
    following = "bul plan --price-per-replica-hour shows what would be cheaper"
    if evidence.cost_per_day is None or evidence.budget_per_day is None:
        missing = "price" if evidence.cost_per_day is None else "budget"
        flags = "--price-per-replica-hour 2 --budget-per-day 100"
        following = f"bul check post --url {evidence.url} {flags}, with yours"
        return "unknown", evidence.reasons.get("costs", f"no {missing} was given"), following
    said = f"{evidence.cost_per_day:,.2f} of {evidence.budget_per_day:,.2f} a day"
    if evidence.cost_basis:
        said += f": {evidence.cost_basis}"
    return ("pass" if evidence.cost_per_day <= evidence.budget_per_day else "fail"), said, following


def mann_whitney_p(before: Sequence[float], now: Sequence[float]) -> float:
    """One-sided: how likely `now` would be so much larger if nothing had changed.

    Mann and Whitney 1947, with the normal approximation and mid-ranks for ties.
    """
    ranked = sorted([(value, 0) for value in before] + [(value, 1) for value in now])
    values = [value for value, _ in ranked]
    ranks_now, ties, at = 0.0, 0.0, 0
    while at < len(values):
        end = at
        while end < len(values) and values[end] == values[at]:
            end += 1
        count = end - at
        ranks_now += (at + end + 1) / 2 * sum(side for _, side in ranked[at:end])
        ties += count**3 - count
        at = end
    n, m = len(before), len(now)
    u = ranks_now - m * (m + 1) / 2
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    return 0.5 * math.erfc((u - n * m / 2 - 0.5) / math.sqrt(2 * variance))


CHECKS: tuple[tuple[str, str, str, Callable[[Evidence], Said]], ...] = (
    ("baseline", "pre", "Baseline metrics recorded", _baseline),
    ("limits", "pre", "Limits of replicas defined", _limits),
    ("balancer", "pre", "Load balancer configured", _balancer),
    ("health", "pre", "Health checks answer", _health),
    ("monitoring", "pre", "Monitoring configured", _monitoring),
    ("database", "horizontal", "Shared database reached", _database),
    ("redis", "horizontal", "Shared cache reached", _redis),
    ("session", "horizontal", "Sessions kept together", _session),
    ("coherency", "horizontal", "Cache coherent between replicas", _coherency),
    ("metrics", "post", "Metrics verified", _metrics),
    ("load", "post", "Load spread evenly", _load),
    ("degradation", "post", "No degradation against the baseline", _degradation),
    ("costs", "post", "Costs within the budget", _costs),
)
