"""Measures the replica profile that the simulator and the planner work with.

Refuses to measure what a client cannot see: `chunk_tokens` and `cache_tokens` are told, not fitted.

    prompts of several lengths, alone:  ttft = overhead_s + tokens / prefill_tokens_per_s
    n replies at once, short prompts:   gap  = decode_base_s + decode_each_s * n
    slots:  of many replies at once, those that began before the first one ended
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bul.bench.client import Client, Sample
from bul.bench.load import Limits, Run, run_load
from bul.bench.statistics import fit_line, percentile
from bul.bench.workload import Conversation, Part, Turn
from bul.errors import BulError

__all__ = ["fit_profile", "measure_profile"]

PROMPT_TOKENS = (64, 256, 512, 1024, 2048)
TRIES = 3
SHORT_PROMPT_TOKENS = 16
OUTPUT_TOKENS = 48
SLOTS_PROBED_MAX = 64

Point = tuple[float, float]


def fit_profile(
    ttft: Sequence[Point],
    gaps: Sequence[Point],
    *,
    name: str,
    slots: int,
    chunk_tokens: int,
    cache_tokens: int,
) -> tuple[dict[str, Any], dict[str, float]]:
    """The profile and its residuals (RMS, seconds), by least squares. Pure.

    ttft: (prompt tokens computed, seconds). gaps: (sequences at once, seconds between tokens).
    Raises BulError if the points do not lie as the model needs: rising with the prompt's length.
    """
    prefill = fit_line(*zip(*ttft, strict=True))
    if not prefill.slope > 0:
        raise BulError(
            "the time to the first token does not grow with the prompt: no prefill rate",
            hint="is the endpoint idle, and its cache off for new prompts?",
        )
    decode = fit_line(*zip(*gaps, strict=True))
    each_s = max(decode.slope, 0.0) if decode.slope == decode.slope else 0.0
    base_s = sum(gap_s - each_s * n for n, gap_s in gaps) / len(gaps)
    profile = {
        "name": name,
        "prefill_tokens_per_s": 1 / prefill.slope,
        "decode_base_s": max(base_s, 1e-6),
        "decode_each_s": each_s,
        "slots": slots,
        "chunk_tokens": chunk_tokens,
        "cache_tokens": cache_tokens,
        "overhead_s": max(prefill.intercept, 0.0),
        "measured": True,
    }
    errors = [gap_s - base_s - each_s * n for n, gap_s in gaps]
    decode_residual_s = (sum(error * error for error in errors) / len(errors)) ** 0.5
    return profile, {"ttft_residual_s": prefill.residual, "decode_residual_s": decode_residual_s}


async def measure_profile(
    client: Client,
    *,
    name: str,
    slots: int | None,
    chunk_tokens: int,
    cache_tokens: int,
    seed: int,
    stop: asyncio.Event,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Ask an otherwise idle endpoint; slots None: find them. Raises BulError."""
    ttft: list[Point] = []
    for tokens in PROMPT_TOKENS:
        say(f"prompts of {tokens} tokens, one after the other")
        run = await _at_once(client, stop, 1, _prompts(seed, tokens, 2), TRIES)
        best_s = min(_ok(run), key=lambda sample: sample.ttft_s)
        ttft.append((float(best_s.prompt_tokens - best_s.cached_tokens), best_s.ttft_s))
    if slots is None:
        say(f"{SLOTS_PROBED_MAX} replies at once, to see how many begin")
        slots = await _find_slots(client, seed)
    gaps: list[Point] = []
    for n in sorted({1, max(slots // 4, 1), max(slots // 2, 1), slots}):
        say(f"{n} replies at once")
        gaps.append((float(n), _gap_s(_ok(await _together(client, stop, n, seed, 2 + n)))))
    profile, residuals = fit_profile(
        ttft, gaps, name=name, slots=slots, chunk_tokens=chunk_tokens, cache_tokens=cache_tokens
    )
    return {"profile": profile, **residuals, "ttft_points": ttft, "decode_points": gaps}


def _prompts(seed: int, tokens: int, output: int) -> Iterator[Conversation]:
    for number in itertools.count():
        part = Part(name=f"{seed}/profile/{tokens}/{output}/{number}", tokens=tokens)
        yield Conversation(turns=(Turn(parts=(part,), output_tokens=output),))


async def _together(client: Client, stop: asyncio.Event, n: int, seed: int, salt: int) -> Run:
    prompts = _prompts(seed * 1000 + salt, SHORT_PROMPT_TOKENS, OUTPUT_TOKENS)
    return await _at_once(client, stop, n, prompts, n)


async def _at_once(
    client: Client, stop: asyncio.Event, n: int, prompts: Iterator[Conversation], requests: int
) -> Run:
    return await run_load(client, prompts, Limits(requests=requests, concurrency=n), stop=stop)


def _ok(run: Run) -> list[Sample]:
    if run.interrupted:
        raise BulError("interrupted: a profile needs all its runs")
    for sample in run.samples:
        if sample.error:
            raise BulError(f"a profile needs every reply, one failed: {sample.error} {sample.said}")
    return run.samples


async def _find_slots(client: Client, seed: int) -> int:
    """How many of many replies have begun when the first one ends; the rest is cut off."""
    ended = asyncio.Event()
    prompts = _prompts(seed * 1000 + 1, SHORT_PROMPT_TOKENS, OUTPUT_TOKENS)
    limits = Limits(requests=SLOTS_PROBED_MAX, concurrency=SLOTS_PROBED_MAX)
    run = await run_load(client, prompts, limits, stop=ended, on_done=lambda _: ended.set())
    found = [sample for sample in run.samples + run.cut_off if sample.first_s > 0.0]
    if not found:
        raise BulError("no reply began: the slots cannot be counted", hint="name them with --slots")
    return len(found)


def _gap_s(samples: Sequence[Sample]) -> float:
    """The median pause between tokens while all replies run: from the last first token on."""
    gaps = [gap_s for sample in samples for gap_s in sample.gaps_s[len(sample.gaps_s) // 4 :]]
    return percentile(gaps, 0.5)
