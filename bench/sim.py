"""Simulated against live: TTFT of a ten-minute replay on the real model, and of its simulation.

    make bench-sim                          some 16 minutes; bench/out/sim.json
    python bench/sim.py --minutes 1         a smoke run
    python bench/sim.py --minutes 2 --timed the timed engine, ten times as fast: does the model
                                            queue as the runner does? Needs no quiet machine

One `bul serve` with one thread. Its profile is measured, the replay runs, the profile is measured
again: if the two differ by more than a tenth, the machine was not the same one and the run is void.
The simulation gets the mean of both profiles, and of the replay only when requests were due and how
many tokens they had. The control repeats it with a prefill rate 1.5 times too high: its error must
be over the limit, or the comparison could not tell.

The trace is azure2023_conv (no blocks: nothing is cached), its prompts and replies shortened and
its gaps stretched to what one thread can carry.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bul.bench.client import Client, Sample, parse_target
from bul.bench.load import Limits, run_load
from bul.bench.profile import measure_profile
from bul.bench.traces import read_any_trace
from bul.bench.workload import from_trace
from bul.scaling.bounds import Bounds
from bul.scaling.rules import Fixed, RuleState
from bul.simulator.arrivals import Arrivals
from bul.simulator.cluster import Region
from bul.simulator.replica import ReplicaProfile

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT.parent / "shared" / "data" / "azure2023_conv.csv.gz"
OUT = ROOT / "bench" / "out" / "sim.json"
TIME_SCALE, LENGTH_SCALE = 12.0, 0.15
CHUNK_TOKENS, CACHE_TOKENS = 64, 16_384
TIMED_FASTER = 10.0
TIMED_FLAGS = [
    "--engine", "timed", "--prefill-tokens-per-s", "2500", "--decode-tokens-per-s", "500",
    "--block-bytes", "256",
]  # fmt: skip
DRIFT_MAX, ERROR_MAX = 0.10, 0.20
AVERAGED = (
    "prefill_tokens_per_s", "prefill_growth", "decode_base_s", "decode_each_s", "decode_context_s",
    "overhead_s",
)  # fmt: skip


@contextlib.contextmanager
def serving(flags: list[str]) -> Iterator[str]:
    command = [str(Path(sys.executable).with_name("bul")), "serve", "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready on "):
                yield line.split()[2]
                break
        else:
            raise SystemExit("bul serve did not become ready")
    finally:
        process.terminate()
        process.communicate(timeout=60)


async def profile_of(client: Client, seed: int) -> ReplicaProfile:
    found = await measure_profile(
        client,
        name="embedded",
        slots=None,
        chunk_tokens=CHUNK_TOKENS,
        cache_tokens=CACHE_TOKENS,
        seed=seed,
        stop=asyncio.Event(),
        say=lambda text: print(f"  {text}", file=sys.stderr),
    )
    print(f"  residuals {found['ttft_residual']:.1%}, {found['decode_residual']:.1%}")
    for name in ("ttft_points", "decode_points"):
        print(f"  {name}:", *(" ".join(f"{x:.4g}" for x in point) + ";" for point in found[name]))
    return ReplicaProfile(**found["profile"])


async def replay(client: Client, minutes: float, time_scale: float, seed: int) -> list[Sample]:
    conversations = from_trace(
        read_any_trace(TRACE), seed=seed, time_scale=time_scale, length_scale=LENGTH_SCALE
    )
    limits = Limits(duration_s=minutes * 60.0, drain_s=120.0)
    run = await run_load(client, conversations, limits)
    failed = [sample.error for sample in run.samples if sample.error]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return run.samples


def drift(one: ReplicaProfile, two: ReplicaProfile, prompt_tokens: float) -> float:
    """The larger of the differences in prefill of a usual prompt, and in a decode call of two."""
    pairs = [
        (one.idle_ttft_s(prompt_tokens), two.idle_ttft_s(prompt_tokens)),
        tuple(p.decode_s(2, 2 * prompt_tokens) for p in (one, two)),
    ]
    return max(abs(a - b) / ((a + b) / 2) for a, b in pairs)


def mean_of(one: ReplicaProfile, two: ReplicaProfile) -> ReplicaProfile:
    values = {name: (getattr(one, name) + getattr(two, name)) / 2 for name in AVERAGED}
    return dataclasses.replace(one, **values)


def simulated(profile: ReplicaProfile, samples: list[Sample]) -> np.ndarray[Any, Any]:
    """TTFT in seconds of the same requests on one simulated replica."""
    order = sorted(samples, key=lambda sample: sample.intended_s)
    start_s = order[0].intended_s
    arrivals = Arrivals(
        at_s=np.array([sample.intended_s - start_s for sample in order]),
        prompt_tokens=np.array([sample.prompt_tokens for sample in order]),
        output_tokens=np.array([max(sample.tokens, 1) for sample in order]),
    )
    fixed = Fixed(bounds=Bounds(min_replicas=1, max_replicas=1), replicas=1)
    region = Region(profile, fixed, RuleState(), replicas=1, cold_start_s=0.0)
    return region.run(arrivals).ttft_s


def quantiles(ttft_s: np.ndarray[Any, Any]) -> dict[str, float]:
    p50, p95 = np.quantile(ttft_s, (0.5, 0.95)) * 1000.0
    return {"ttft_p50_ms": round(float(p50), 1), "ttft_p95_ms": round(float(p95), 1)}


def errors(live: dict[str, float], made: dict[str, float]) -> dict[str, float]:
    return {name: round(made[name] / live[name] - 1.0, 4) for name in live}


async def measure(
    url: str, model: str, minutes: float, time_scale: float, seed: int
) -> dict[str, Any]:
    client = Client(parse_target(url), model=model, timeout_s=300.0)
    before = await profile_of(client, seed)
    samples = await replay(client, minutes, time_scale, seed)
    after = await profile_of(client, seed + 1)
    client.close()
    prompts = [sample.prompt_tokens for sample in samples]
    live_s = np.array([sample.ttft_s for sample in samples])
    profile = mean_of(before, after)
    fast = dataclasses.replace(profile, prefill_tokens_per_s=1.5 * profile.prefill_tokens_per_s)
    live, made = quantiles(live_s), quantiles(simulated(profile, samples))
    control = quantiles(simulated(fast, samples))
    return {
        "requests": len(samples),
        "minutes": minutes,
        "prompt_tokens_mean": round(float(np.mean(prompts)), 1),
        "output_tokens_mean": round(float(np.mean([s.tokens for s in samples])), 1),
        "cached_token_share": sum(s.cached_tokens for s in samples) / sum(prompts),
        "idle_ttft_ms": round(1000.0 * profile.idle_ttft_s(float(np.mean(prompts))), 1),
        "profile": dataclasses.asdict(profile),
        "profile_before": dataclasses.asdict(before),
        "profile_after": dataclasses.asdict(after),
        "drift": round(drift(before, after, float(np.mean(prompts))), 4),
        "live": live,
        "simulated": made,
        "error": errors(live, made),
        "control": control,
        "control_error": errors(live, control),
        "samples": [
            (round(s.intended_s - samples[0].intended_s, 4), s.prompt_tokens, s.tokens,
             round(s.ttft_s, 4), round(s.e2e_s, 4)) for s in samples
        ],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    flags = TIMED_FLAGS if given.timed else ["--threads", str(given.threads)]
    time_scale = TIME_SCALE / TIMED_FASTER if given.timed else TIME_SCALE
    with serving(flags) as url:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
            model = json.load(answer)["data"][0]["id"]
        found = asyncio.run(measure(url, model, given.minutes, time_scale, given.seed))
    OUT.parent.mkdir(exist_ok=True)
    out = OUT.with_stem("sim_timed") if given.timed else OUT
    out.write_text(json.dumps({**found, "flags": flags, "seed": given.seed}, indent=1))
    print(f"{found['requests']} requests in {given.minutes:g} min, drift {found['drift']:.1%}")
    print(f"{'':12}{'live':>10}{'simulated':>12}{'error':>8}{'control':>10}{'error':>8}")
    for name, live_ms in found["live"].items():
        print(
            f"{name:12}{live_ms:10.0f}{found['simulated'][name]:12.0f}{found['error'][name]:8.1%}"
            f"{found['control'][name]:10.0f}{found['control_error'][name]:8.1%}"
        )
    if found["drift"] > DRIFT_MAX:
        print("void: the profile before and after differs by more than 10 %")
        return 1
    good = all(abs(error) <= ERROR_MAX for error in found["error"].values())
    blind = all(abs(error) <= ERROR_MAX for error in found["control_error"].values())
    print("within 20 %" if good and not blind else "not within 20 %, or the control is")
    return 0 if good and not blind else 1


if __name__ == "__main__":
    sys.exit(main())
