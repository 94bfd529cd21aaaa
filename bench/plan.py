"""What the planner says against what `bul bench` then measures: p95 of the time to first token.

    make bench-plan                         some 13 minutes; bench/out/plan.json
    python bench/plan.py --minutes 2        a smoke run

One `bul serve` with one thread and the real model. Its profile is measured; the planner is asked
what p95 one replica has at a rate that keeps it busy for three tenths of the time; that load runs,
open loop; the profile is measured again. If the two profiles differ by more than a tenth the run is
void. The control asks the planner about twice the prompt: it must miss by more than a quarter.

Gaps and lengths are the planner's distributions, cut into as many equal parts as there are requests
and shuffled. What is left to chance is the order: of 60 such runs simulated, 60 have a p95 within
a quarter of the planner's; with independent draws at half the load, 47 had.
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
from statistics import NormalDist
from typing import Any

import numpy as np
from sim import DRIFT_MAX, drift, mean_of, profile_of, serving

from bul.bench.client import Client, parse_target
from bul.bench.load import Limits, run_load
from bul.bench.workload import Conversation, Part, Turn
from bul.planner.predict import Workload, predict
from bul.simulator.replica import ReplicaProfile

OUT = Path(__file__).resolve().parent / "out" / "plan.json"
PROMPT_TOKENS, OUTPUT_TOKENS, LENGTH_CV = 90, 8, 0.7
"""Short, so that eight minutes hold some 250 requests: the 95th percentile of fewer is chance.
The chat template's tokens are part of the prompt."""
BUSY = 0.3
ERROR_MAX = 0.25


def workload_for(profile: ReplicaProfile) -> Workload:
    """A rate at which one replica computes for BUSY of the time."""
    decoded_per_s = profile.output_tokens_per_s(PROMPT_TOKENS + OUTPUT_TOKENS / 2)
    work_s = profile.idle_ttft_s(PROMPT_TOKENS) + OUTPUT_TOKENS / decoded_per_s
    return Workload(
        requests_per_second=BUSY / work_s,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        length_cv=LENGTH_CV,
    )


def lengths(mean: int, count: int) -> list[int]:
    """Log-normal, as the planner assumes: the middles of `count` equally likely parts."""
    sigma2 = math.log1p(LENGTH_CV**2)
    usual = NormalDist(math.log(mean) - sigma2 / 2, math.sqrt(sigma2))
    return [max(1, round(math.exp(usual.inv_cdf((k + 0.5) / count)))) for k in range(count)]


def conversations(
    workload: Workload, minutes: float, template_tokens: int, seed: int
) -> Iterator[Conversation]:
    """Poisson arrivals of prompts that share nothing, each `template_tokens` longer when sent."""
    dice, count = random.Random(seed), round(workload.requests_per_second * minutes * 60.0)
    gaps = [-math.log(1.0 - (k + 0.5) / count) for k in range(count)]
    prompts, replies = lengths(PROMPT_TOKENS, count), lengths(OUTPUT_TOKENS, count)
    for drawn in (gaps, prompts, replies):
        dice.shuffle(drawn)
    at_s = 0.0
    for number, gap in enumerate(gaps):
        at_s += gap / workload.requests_per_second
        words = max(prompts[number] - template_tokens, 1)
        part = Part(name=f"{seed}/plan/{number}", tokens=words)
        yield Conversation(at_s=at_s, turns=(Turn(parts=(part,), output_tokens=replies[number]),))


async def template_tokens_of(client: Client, seed: int) -> int:
    """What the chat template adds to one message."""
    part = Part(name=f"{seed}/template", tokens=1)
    turn = Turn(parts=(part,), output_tokens=1)
    run = await run_load(client, iter([Conversation(turns=(turn,))]), Limits(requests=1))
    return run.samples[0].prompt_tokens - 1


def predicted_ms(workload: Workload, profile: ReplicaProfile, seed: int) -> float:
    return predict(workload, profile, replicas=1, cache=False, seed=seed).ttft_p95_ms


async def measure(url: str, model: str, minutes: float, seed: int) -> dict[str, Any]:
    client = Client(parse_target(url), model=model, timeout_s=300.0)
    before = await profile_of(client, seed)
    asked = workload_for(before)
    template = await template_tokens_of(client, seed)
    limits = Limits(duration_s=2 * minutes * 60.0, drain_s=120.0)
    run = await run_load(client, conversations(asked, minutes, template, seed), limits)
    after = await profile_of(client, seed + 1)
    client.close()
    good = [sample for sample in run.samples if not sample.error]
    if len(good) < len(run.samples):
        raise SystemExit(f"{len(run.samples) - len(good)} requests failed")
    profile = mean_of(before, after)
    # A word may be two tokens, and a reply may end early: the planner is told the means that came.
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
