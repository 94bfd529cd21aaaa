"""Each item against evidence that has exactly one fault: that item fails, and no other."""

from __future__ import annotations

import dataclasses
import random

import pytest

from bul.doctor.checks import CHECKS, mann_whitney_p, run_checks
from bul.doctor.findings import Baseline, Coherency, Evidence, Monitor, ReplicaEvidence

ONE, TWO = "http://127.0.0.1:8002", "http://127.0.0.1:8003"
SEVEN = {
    "requests_per_second": 2.0,
    "p95_latency": 80.0,
    "cpu_utilization": 0.4,
    "memory_utilization": 0.2,
    "cache_hit_rate": 0.5,
    "error_rate": 0.0,
    "active_connections": 3.0,
}
FAST = [10.0 + n % 5 for n in range(30)]


def replica(url: str) -> ReplicaEvidence:
    return ReplicaEvidence(
        url=url,
        live=True,
        ready=True,
        deep="ok",
        signals=SEVEN,
        tiers={"ram": {}, "disk": {}, "shared": {"read_breaker_open": 0.0}},
        series={"bul_database_away": 0.0},
    )


WATCHED = Monitor(
    up=3,
    targets=3,
    alerts=frozenset({"HighLoadRequiresScaling", "LowUtilizationScaleDown"}),
)
READ = Coherency(written_on=ONE, read_on=TWO, cached_tokens=128, same_text=True)
GOOD = Evidence(
    url="http://127.0.0.1:8000",
    now_s=86_400.0,
    policy="session",
    replicas=[replica(ONE), replica(TWO)],
    answered={ONE: 16, TWO: 14},
    sessions=[frozenset({ONE}), frozenset({TWO})],
    limits=(2, 10),
    baseline=Baseline(at_s=0.0, ttft_ms=FAST),
    ttft_ms=FAST,
    monitor=WATCHED,
    coherency=READ,
    cost_per_day=96.0,
    budget_per_day=100.0,
)


def second(**changes: object) -> list[ReplicaEvidence]:
    changed = dataclasses.replace(replica(TWO), **changes)  # type: ignore[arg-type]  # by name
    return [replica(ONE), changed]


FAULTS: dict[str, dict[str, object]] = {
    "baseline": {"baseline": Baseline(at_s=-40 * 86_400.0, ttft_ms=FAST)},
    "limits": {"limits": (3, 10)},
    "balancer": {"failed": 1},
    "health": {"replicas": second(deep="stuck")},
    "monitoring": {
        "monitor": Monitor(up=3, targets=3, alerts=frozenset({"HighLoadRequiresScaling"}))
    },
    "database": {"replicas": second(series={"bul_database_away": 1.0})},
    "redis": {"replicas": second(tiers={"ram": {}, "disk": {}})},
    "session": {"sessions": [frozenset({ONE, TWO})]},
    "coherency": {
        "coherency": Coherency(written_on=ONE, read_on=TWO, cached_tokens=0, same_text=True)
    },
    "metrics": {"replicas": second(signals=SEVEN | {"error_rate": float("nan")})},
    "load": {"answered": {ONE: 26, TWO: 4}},
    "degradation": {"ttft_ms": [value * 1.3 for value in FAST]},
    "costs": {"cost_per_day": 100.01},
}


def test_a_good_region_has_thirteen_passes() -> None:
    found = run_checks(GOOD)
    assert len(found) == 13
    assert [(f.id, f.evidence) for f in found if f.verdict != "pass"] == []


def test_every_item_has_its_fault_here() -> None:
    assert list(FAULTS) == [name for name, *_ in CHECKS]


@pytest.mark.parametrize("item", list(FAULTS))
def test_a_fault_fails_its_own_item_only(item: str) -> None:
    evidence = dataclasses.replace(GOOD, **FAULTS[item])  # type: ignore[arg-type]  # by name
    failed = [finding for finding in run_checks(evidence) if finding.verdict != "pass"]
    assert [finding.id for finding in failed] == [item]
    assert failed[0].verdict == "fail"
    assert failed[0].next


def test_what_was_not_seen_is_unknown_with_its_reason_and_never_a_pass() -> None:
    blind = Evidence(url="u", now_s=0.0, reasons={"costs": "no price was given"})
    found = {finding.id: finding for finding in run_checks(blind)}
    assert found["costs"].verdict == "unknown"
    assert found["session"].evidence == "no replica is known: see balancer"
    assert found["costs"].evidence == "no price was given"
    assert {f.verdict for f in found.values()} == {"unknown", "fail"}
    assert [f.id for f in found.values() if f.verdict == "fail"] == ["baseline", "balancer"]


def test_different_texts_fail_coherency_even_when_blocks_were_loaded() -> None:
    bad = Coherency(written_on=ONE, read_on=TWO, cached_tokens=128, same_text=False)
    found = run_checks(dataclasses.replace(GOOD, coherency=bad), ["horizontal"])
    assert [f.id for f in found if f.verdict == "fail"] == ["coherency"]


def test_one_host_shares_its_disk_folder_and_two_hosts_do_not() -> None:
    apart = [
        dataclasses.replace(r, tiers={"ram": {}, "disk": {}}) for r in (replica(ONE), replica(TWO))
    ]
    one_host = run_checks(dataclasses.replace(GOOD, replicas=apart), ["horizontal"])
    assert {f.id: f.verdict for f in one_host}["redis"] == "pass"
    elsewhere = dataclasses.replace(apart[1], url="http://10.0.0.2:8003")
    two = run_checks(dataclasses.replace(GOOD, replicas=[apart[0], elsewhere]), ["horizontal"])
    assert {f.id: f.verdict for f in two}["redis"] == "fail"


@pytest.mark.parametrize(("spread", "verdict"), [((15, 5), "pass"), ((76, 24), "fail")])
def test_the_spread_may_be_just_one_and_a_half(spread: tuple[int, int], verdict: str) -> None:
    answered = {ONE: spread[0], TWO: spread[1]}
    found = run_checks(dataclasses.replace(GOOD, answered=answered), ["post"])
    assert {f.id: f.verdict for f in found}["load"] == verdict


def test_slower_by_chance_is_no_degradation_and_slower_for_real_is() -> None:
    dice = random.Random(7)
    false_alarms = 0
    for _ in range(300):
        before = [dice.lognormvariate(3, 0.4) for _ in range(30)]
        now = [dice.lognormvariate(3, 0.4) for _ in range(30)]
        false_alarms += mann_whitney_p(before, now) < 0.01
    assert false_alarms <= 9
    slower = [dice.lognormvariate(3.5, 0.4) for _ in range(30)]
    assert mann_whitney_p([dice.lognormvariate(3, 0.4) for _ in range(30)], slower) < 0.01
    assert mann_whitney_p([1.0] * 20, [1.0] * 20) == 1.0


def test_the_test_agrees_with_a_published_example() -> None:
    """Hollander and Wolfe 1973, p. 69: permeability at term and earlier; exact p is 0.1272."""
    term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
    weeks = [1.15, 0.88, 0.90, 0.74, 1.21]
    assert mann_whitney_p(weeks, term) == pytest.approx(0.1272, abs=0.01)


SILENT = ReplicaEvidence(url=TWO, reason="ReadTimeout")


def test_a_replica_that_says_nothing_is_named_by_health_alone() -> None:
    """It answers no probe, has no pages, is a target that is down, and made the others slow."""
    monitor = dataclasses.replace(WATCHED, up=2, down=frozenset({TWO.partition("://")[2]}))
    ill = dataclasses.replace(
        GOOD,
        replicas=[replica(ONE), SILENT],
        answered={ONE: 30},
        monitor=monitor,
        ttft_ms=[value * 2 for value in FAST],
    )
    found = {f.id: f for f in run_checks(ill)}
    assert [name for name, f in found.items() if f.verdict == "fail"] == ["health"]
    assert "see health" in found["degradation"].evidence
    # The control: the same of a replica that is well is the balancer's, the load's, ...
    well = dataclasses.replace(ill, replicas=[replica(ONE), replica(TWO)])
    failed = [f.id for f in run_checks(well) if f.verdict == "fail"]
    assert failed == ["balancer", "monitoring", "load", "degradation"]


def test_where_nobody_is_well_the_others_send_to_health() -> None:
    nobody = dataclasses.replace(
        GOOD, replicas=[SILENT], answered={}, failed=20, ttft_ms=[], limits=(1, 10)
    )
    found = {f.id: f for f in run_checks(nobody)}
    assert [name for name, f in found.items() if f.verdict == "fail"] == ["health"]
    for name in ("balancer", "database", "redis", "metrics"):
        assert "see health" in found[name].evidence
    assert found["load"].verdict == "unknown"


def test_a_probe_that_is_still_there_fails_coherency_and_one_that_was_kept_does_not() -> None:
    left = dataclasses.replace(READ, left=[f"disk of {TWO}"])
    [found] = [f for f in run_checks(dataclasses.replace(GOOD, coherency=left)) if f.next]
    assert (found.id, found.verdict) == ("coherency", "fail")
    assert f"STILL in disk of {TWO}" in found.evidence
    kept = dataclasses.replace(READ, kept_because="it has no such page")
    told = {f.id: f for f in run_checks(dataclasses.replace(GOOD, coherency=kept))}["coherency"]
    assert (told.verdict, "left to age out" in told.evidence) == ("pass", True)


def test_a_region_that_wants_a_key_says_how_to_give_it() -> None:
    why = {"balancer": "answers 401: give the operator's key"}
    closed = Evidence(url="http://r:8000", now_s=0.0, closed=True, limits=(1, 10), reasons=why)
    found = {f.id: f for f in run_checks(closed)}
    assert [name for name, f in found.items() if f.verdict == "fail"] == ["baseline", "balancer"]
    assert found["balancer"].next == "bul check pre --url http://r:8000 --key-file FILE"
    assert found["limits"].evidence == "no replica is known: see balancer"


def test_what_was_not_given_is_named_with_a_command_that_gives_it() -> None:
    bare = dataclasses.replace(GOOD, baseline=None, monitor=None, cost_per_day=None)
    found = {f.id: f for f in run_checks(bare)}
    assert found["degradation"].next == f"bul check baseline --url {GOOD.url}"
    assert found["costs"].evidence == "no price was given"
    for name in ("costs", "monitoring"):
        assert f"--url {GOOD.url}" in found[name].next
