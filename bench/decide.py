"""What one decision costs: `decide` for every policy, after a day of made ticks.

    make bench-decide        seconds; bench/out/decide.json

Microseconds of CPU a call, the median of hundreds, state carried on as in a running region. The
promise is 50 us for each.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from bul.scaling.adaptive import Capacity
from bul.scaling.bounds import Bounds
from bul.scaling.decide import decide
from bul.scaling.registry import POLICY_NAMES, make_policy, make_state
from bul.testing.signals import signals_at

OUT = Path(__file__).resolve().parent / "out" / "decide.json"
TICKS, TICK_S, PROMISE_US = 5760, 15.0, 50.0
CAPACITY = Capacity(prefill_tokens_per_s=15_000.0, output_tokens_per_s=390.0, slots=16)


def microseconds(name: str) -> tuple[float, float]:
    """Median and 99th percentile of a call."""
    extra: dict[str, Any] = {"capacity": CAPACITY} if name == "adaptive" else {}
    policy = make_policy(name, bounds=Bounds(min_replicas=1, max_replicas=60), **extra)
    state, replicas, rng, spent = make_state(name), 6, random.Random(1), []
    for tick in range(TICKS):
        now_s = tick * TICK_S
        load = rng.uniform(0.5, 12.0)
        signals = signals_at(
            now_s,
            replicas,
            requests_per_second=3.0 * load,
            in_flight=8.0 * load,
            waiting=max(load - replicas, 0.0),
            prefill_tokens_per_s=3000.0 * load,
            output_tokens_per_s=330.0 * load,
            ttft_p95_ms=100.0 * load,
            slow_share=0.01,
        )
        started_ns = time.perf_counter_ns()
        decision, state = decide(policy, state, signals, now_s)
        spent.append((time.perf_counter_ns() - started_ns) / 1000.0)
        replicas = decision.replicas
    spent.sort()
    return spent[len(spent) // 2], spent[len(spent) * 99 // 100]


def main() -> int:
    found = {name: microseconds(name) for name in POLICY_NAMES}
    for name, (median, p99) in found.items():
        print(f"{name:10}{median:8.1f} us, p99 {p99:.1f}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({name: {"us": us, "p99": p99} for name, (us, p99) in found.items()}))
    return 0 if all(median <= PROMISE_US for median, _ in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
