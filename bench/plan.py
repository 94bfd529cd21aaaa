"""What the planner says against what `bul bench` then measures: p95 of the time to first token.

    make bench-plan                         some 13 minutes; bench/out/plan.json
    python bench/plan.py --minutes 2        a smoke run

One `bul serve` with one thread and the real model. Its profile is measured; the planner is asked
what p95 one replica has at a rate that keeps it half busy; that load runs, open loop; the profile
is measured again. If the two profiles differ by more than a tenth the run is void. The control
asks the planner about twice the prompt: it must miss by more than a quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import random
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sim import DRIFT_MAX, drift, mean_of, profile_of, serving

from bul.bench.client import Client, parse_target
from bul.bench.load import Limits, run_load
from bul.bench.workload import Conversation, Part, Turn
from bul.planner.predict import Workload, predict
from bul.simulator.replica import ReplicaProfile

OUT = Path(__file__).resolve().parent / "out" / "plan.json"
PROMPT_TOKENS, OUTPUT_TOKENS, LENGTH_CV = 120, 12, 0.7
"""Short, so that eight minutes hold some 150 requests: the 95th percentile of fewer is chance."""
BUSY = 0.5
ERROR_MAX = 0.25


def workload_for(profile: ReplicaProfile) -> Workload:
    """A rate at which one replica computes half of the time."""
    work_s = profile.idle_ttft_s(PROMPT_TOKENS) + OUTPUT_TOKENS / profile.output_tokens_per_s
    return Workload(
        requests_per_second=BUSY / work_s,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        length_cv=LENGTH_CV,
    )


def drawn(mean: int, dice: random.Random) -> int:
    """Log-normal, as the planner assumes."""
    sigma2 = math.log1p(LENGTH_CV**2)
    return max(1, round(dice.lognormvariate(math.log(mean) - sigma2 / 2, math.sqrt(sigma2))))


def conversations(workload: Workload, seed: int) -> Iterator[Conversation]:
    """Independent arrivals of prompts that share nothing."""
    dice, at_s, number = random.Random(seed), 0.0, 0
    while True:
        at_s += dice.expovariate(workload.requests_per_second)
        part = Part(name=f"{seed}/plan/{number}", tokens=drawn(PROMPT_TOKENS, dice))
        turn = Turn(parts=(part,), output_tokens=drawn(OUTPUT_TOKENS, dice))
        yield Conversation(at_s=at_s, turns=(turn,))
        number += 1


def predicted_ms(workload: Workload, profile: ReplicaProfile, seed: int) -> float:
    return predict(workload, profile, replicas=1, cache=False, seed=seed).ttft_p95_ms


async def measure(url: str, model: str, minutes: float, seed: int) -> dict[str, Any]:
    client = Client(parse_target(url), model=model, timeout_s=300.0)
    before = await profile_of(client, seed)
    asked = workload_for(before)
    limits = Limits(duration_s=minutes * 60.0, drain_s=120.0)
    run = await run_load(client, conversations(asked, seed), limits)
    after = await profile_of(client, seed + 1)
    client.close()
    good = [sample for sample in run.samples if not sample.error]
    if len(good) < len(run.samples):
        raise SystemExit(f"{len(run.samples) - len(good)} requests failed")
    profile = mean_of(before, after)
    # The template around a message adds tokens that the planner cannot know: it is told the mean.
    told = dataclasses.replace(
        asked,
        prompt_tokens=round(float(np.mean([sample.prompt_tokens for sample in good]))),
        output_tokens=round(float(np.mean([sample.tokens for sample in good]))),
    )
    live_ms = float(np.quantile([sample.ttft_s for sample in good], 0.95)) * 1000.0
    double = dataclasses.replace(told, prompt_tokens=2 * told.prompt_tokens)
    planned_ms = predicted_ms(told, profile, seed)
    control_ms = predicted_ms(double, profile, seed)
    return {
        "requests": len(good),
        "minutes": minutes,
        "seed": seed,
        "workload": dataclasses.asdict(told),
        "profile": dataclasses.asdict(profile),
        "drift": round(drift(before, after, told.prompt_tokens), 4),
        "measured_p95_ms": round(live_ms, 1),
        "planned_p95_ms": round(planned_ms, 1),
        "error": round(planned_ms / live_ms - 1.0, 4),
        "control_p95_ms": round(control_ms, 1),
        "control_error": round(control_ms / live_ms - 1.0, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    with serving(["--threads", "1"]) as url:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
            model = json.load(answer)["data"][0]["id"]
        found = asyncio.run(measure(url, model, given.minutes, given.seed))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1))
    print(
        f"{found['requests']} requests in {given.minutes:g} min, drift {found['drift']:.1%}\n"
        f"p95 measured {found['measured_p95_ms']:,.0f} ms, planned {found['planned_p95_ms']:,.0f} "
        f"({found['error']:+.1%}), control {found['control_p95_ms']:,.0f} "
        f"({found['control_error']:+.1%})"
    )
    if found["drift"] > DRIFT_MAX:
        print("void: the profile before and after differs by more than 10 %")
        return 1
    good = abs(found["error"]) <= ERROR_MAX < abs(found["control_error"])
    print("within 25 %" if good else "not within 25 %, or the control is")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
