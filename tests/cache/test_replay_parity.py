"""The replay means what the reference rules mean: same token hit ratios on four real traces."""

from __future__ import annotations

import functools
import pathlib

import pytest

from bul.cache.replay import capacity_blocks, make_replayed, replay
from bul.cache.replay_trace import Trace, read_trace

pytestmark = pytest.mark.steady

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"
SHARES = ("0.01", "0.05", "0.1", "0.25", "0.5")
LRU = {
    "moon_conv": (0.053, 0.198, 0.282, 0.360, 0.370),
    "moon_synth": (0.036, 0.153, 0.254, 0.443, 0.593),
    "lmc_swe": (0.220, 0.663, 0.791, 0.936, 0.936),
    "weka_a": (0.233, 0.781, 0.929, 0.955, 0.956),
}
BELADY = {
    "moon_conv": (0.244, 0.373, 0.373, 0.373, 0.373),
    "moon_synth": (0.180, 0.387, 0.503, 0.629, 0.650),
    "lmc_swe": (0.228, 0.664, 0.792, 0.936, 0.936),
    "weka_a": (0.391, 0.858, 0.946, 0.957, 0.957),
}
ROUNDING = 0.001  # the published figures have three digits; 0.0005 of it is theirs


@functools.cache
def _trace(name: str) -> Trace:
    return read_trace(DATA / f"{name}.jsonl.gz")


def _ratio(trace: Trace, policy: str, share: str) -> float:
    capacity = capacity_blocks(share, trace.unique_blocks)
    return replay(trace, make_replayed(policy, capacity, trace)).token_hit_ratio


@pytest.mark.parametrize("name", LRU)
@pytest.mark.parametrize("column", range(len(SHARES)), ids=SHARES)
def test_lru_has_the_reference_token_hit_ratio(name: str, column: int) -> None:
    ratio = _ratio(_trace(name), "lru", SHARES[column])
    assert ratio == pytest.approx(LRU[name][column], abs=ROUNDING)


@pytest.mark.parametrize("name", ["moon_synth", "lmc_swe"])
@pytest.mark.parametrize("column", range(len(SHARES)), ids=SHARES)
def test_belady_has_the_reference_token_hit_ratio(name: str, column: int) -> None:
    ratio = _ratio(_trace(name), "belady", SHARES[column])
    assert ratio == pytest.approx(BELADY[name][column], abs=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moon_conv", "weka_a"])
@pytest.mark.parametrize("column", range(len(SHARES)), ids=SHARES)
def test_belady_has_the_reference_ratio_on_the_large_traces(name: str, column: int) -> None:
    ratio = _ratio(_trace(name), "belady", SHARES[column])
    assert ratio == pytest.approx(BELADY[name][column], abs=ROUNDING)


def test_the_comparison_would_notice_another_policy() -> None:
    assert _ratio(_trace("moon_synth"), "fifo", "0.05") != pytest.approx(0.153, abs=ROUNDING)


def test_capacities_beyond_the_footprint_all_give_the_infinite_ratio() -> None:
    trace = _trace("moon_synth")
    infinite = _ratio(trace, "infinite", "1")
    assert _ratio(trace, "lru", "1.0") == infinite
    assert _ratio(trace, "belady", "1.0") == infinite
    assert infinite == pytest.approx(0.6504, abs=0.0001)
