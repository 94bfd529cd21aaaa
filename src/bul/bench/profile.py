"""Measures the replica profile that the simulator and the planner work with.

Refuses to measure what a client cannot see: `chunk_tokens` and `cache_tokens` are told, not fitted.

    prompts of several lengths, alone:  ttft = overhead_s + work / prefill_tokens_per_s, with
                                        work = tokens * (1 + prefill_growth * tokens / 2)
    n replies at once, short prompts    gap  = decode_base_s + decode_each_s * n
    and long ones:                             + decode_context_s * tokens of all n together
    slots:  of many replies at once, those that began before the first one ended
    a long and a short prompt at once:  do they take turns, or is the long one served first?

Attention reads all tokens before, so the token at depth d costs (1 + prefill_growth * d) times the
first one: an engine that prefills 250 tokens/s at the start of a prompt does 170 at 2,600 deep.
For the same reason a decode call costs more the longer its sequences are: the built-in model needs
13 ms a sequence after 16 tokens and 32 after 1,500.
Fits are in relative terms, and no cost is negative: 10 % off at 64 tokens is as bad as at 2,048.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bul.bench.client import Client, Sample
from bul.bench.load import Limits, Run, run_load
from bul.bench.statistics import fit_powers, fit_terms, percentile
from bul.bench.workload import Conversation, Part, Turn
from bul.errors import BulError

__all__ = ["fit_profile", "measure_profile"]

PROMPT_TOKENS = (64, 256, 512, 1024, 2048)
TRIES = 3
SHORT_PROMPT_TOKENS, DEEP_PROMPT_TOKENS = 16, 1024
LONG_AND_SHORT = (1024, 64)
OUTPUT_TOKENS = 48
SLOTS_PROBED_MAX = 64

Point = tuple[float, float]
Batch = tuple[float, float, float]
"""Sequences at once, tokens of all of them, seconds between tokens."""


def fit_profile(
    ttft: Sequence[Point],
    gaps: Sequence[Batch],
    *,
    name: str,
    slots: int,
    chunk_tokens: int,
    cache_tokens: int,
    prefills_together: int = 1,
) -> tuple[dict[str, Any], dict[str, float]]:
    """The profile and its residuals (RMS, shares of the value), by least squares. Pure.

    ttft: (prompt tokens computed, seconds). gaps: what `Batch` says.
    Raises BulError if the points do not lie as the model needs: rising with the prompt's length.
    """
    (overhead_s, each_token_s, grows_s), ttft_residual = fit_powers(ttft, (0, 1, 2))
    if not each_token_s > 0:
        raise BulError(
            "the time to the first token does not grow with the prompt: no prefill rate",
            hint="is the endpoint idle, and its cache off for new prompts?",
        )
    if not gaps:
        raise BulError(
            "no reply had a second token while all others ran: no decode rate",
            hint="does the model end its replies at once? Measure it with another one.",
        )
    (base_s, each_s, context_s), decode_residual = fit_terms(
        [(1.0, n, tokens) for n, tokens, _ in gaps], [gap_s for *_, gap_s in gaps]
    )
    profile = {
        "name": name,
        "prefill_tokens_per_s": 1 / each_token_s,
        "prefill_growth": 2 * grows_s / each_token_s,
        "decode_base_s": max(base_s, 1e-6),
        "decode_each_s": each_s,
        "decode_context_s": context_s,
        "slots": slots,
        "chunk_tokens": chunk_tokens,
        "cache_tokens": cache_tokens,
        "overhead_s": overhead_s,
        "prefills_together": prefills_together,
        "measured": True,
    }
    return profile, {"ttft_residual": ttft_residual, "decode_residual": decode_residual}


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
        usual = sorted(_ok(run), key=lambda sample: sample.ttft_s)[TRIES // 2]
        ttft.append((float(usual.prompt_tokens - usual.cached_tokens), usual.ttft_s))
    if slots is None:
        say(f"{SLOTS_PROBED_MAX} replies at once, to see how many begin")
        slots = await _find_slots(client, seed)
    gaps: list[Batch] = []
    for n in sorted({1, max(slots // 4, 1), max(slots // 2, 1), slots}):
        say(f"{n} replies at once")
        gaps += _gap(_ok(await _together(client, stop, n, seed, SHORT_PROMPT_TOKENS)))
    n, deep = max(slots // 2, 1), list[Batch]()
    while n and not deep:
        say(f"{n} replies at once, to prompts of {DEEP_PROMPT_TOKENS} tokens")
        deep = _gap(_ok(await _together(client, stop, n, seed, DEEP_PROMPT_TOKENS)))
        n //= 2
    say("a long and a short prompt at once")
    profile, residuals = fit_profile(
        ttft,
        gaps + deep,
        name=name,
        slots=slots,
        chunk_tokens=chunk_tokens,
        cache_tokens=cache_tokens,
        prefills_together=slots if await _take_turns(client, stop, seed) else 1,
    )
    return {"profile": profile, **residuals, "ttft_points": ttft, "decode_points": gaps + deep}


def _prompts(seed: int, tokens: int, output: int) -> Iterator[Conversation]:
    for number in itertools.count():
        part = Part(name=f"{seed}/profile/{tokens}/{output}/{number}", tokens=tokens)
        yield Conversation(turns=(Turn(parts=(part,), output_tokens=output),))


async def _together(client: Client, stop: asyncio.Event, n: int, seed: int, tokens: int) -> Run:
    prompts = _prompts(seed * 1000 + 2 + n, tokens, OUTPUT_TOKENS)
    return await _at_once(client, stop, n, prompts, n)


async def _at_once(
    client: Client, stop: asyncio.Event, n: int, prompts: Iterator[Conversation], requests: int
) -> Run:
    return await run_load(client, prompts, Limits(requests=requests, concurrency=n), stop=stop)


async def _take_turns(client: Client, stop: asyncio.Event, seed: int) -> bool:
    """Whether a short prompt passes a long one that came just before."""
    long, short = (next(_prompts(seed * 1000 + 2, tokens, 2)) for tokens in LONG_AND_SHORT)
    run = await _at_once(client, stop, 2, iter((long, short)), 2)
    first, second = sorted(_ok(run), key=lambda sample: -sample.prompt_tokens)
    return second.first_s < first.first_s


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


def _gap(samples: Sequence[Sample]) -> list[Batch]:
    """By the median pause while all ran; none if they never did: an engine may have ended the first
    reply before it began the last.
    """
    begin_s, end_s = max(s.first_s for s in samples), min(s.done_s for s in samples)
    gaps = []
    for sample in samples:
        at_s = sample.first_s
        for gap_s in sample.gaps_s:
            if begin_s <= at_s and at_s + gap_s <= end_s:
                gaps.append(gap_s)
            at_s += gap_s
    tokens = sum(sample.prompt_tokens + sample.tokens / 2 for sample in samples)
    return [(float(len(samples)), tokens, percentile(gaps, 0.5))] if gaps else []
