"""The overload of `bench/faults.py`: the peak in a closed loop, five times that in an open one.

Refuses to call what came too late an answer: goodput counts what was kept within the SLO.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time

from _fault_load import OpenLoop, Sample

from bul.testing.request_load import RequestLoad

__all__ = ["TIMES", "Overload", "overload"]

TIMES = 5
PEAK_S = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Overload:
    """slo_s: from the moment a request is due to its whole answer. clients: of the closed loop
    that finds the peak. overload_s: how long; 0: as long as `requests` take. recovery_s: at half
    the peak's load afterwards.
    """

    slo_s: float
    clients: int
    max_tokens: int
    model: str
    overload_s: float = 0.0
    requests: int = 0
    recovery_s: float = 12.0


async def overload(url: str, asked: Overload) -> dict[str, object]:
    """The row of a ready region at `url`."""
    peak = await _peak_per_s(url, asked)
    lasts_s = asked.overload_s or asked.requests / (TIMES * peak)
    loop = OpenLoop(url, max_tokens=asked.max_tokens, model=asked.model)
    samples = await loop.run((TIMES * peak, lasts_s), (peak / 2, asked.recovery_s))
    loop.close()
    return _row(samples, peak, lasts_s, asked.slo_s)


async def _peak_per_s(url: str, asked: Overload) -> float:
    async with RequestLoad(
        url, clients=asked.clients, max_tokens=asked.max_tokens, model=asked.model
    ) as closed:
        await closed.more(20)
        began_s, before = time.monotonic(), closed.answers
        await asyncio.sleep(PEAK_S)
        peak = (closed.answers - before) / (time.monotonic() - began_s)
    assert peak > 0, f"nobody was answered: {closed.lost[:1]}"
    return peak


def _row(every: list[Sample], peak: float, overload_s: float, slo_s: float) -> dict[str, object]:
    """recovery_s: from the end of the overload to the last request that was not kept."""
    samples = [sample for sample in every if sample.due_s < overload_s]
    after = [sample for sample in every if sample.due_s >= overload_s]
    kept = [sample for sample in samples if sample.kept(slo_s)]
    accepted = sorted(sample.latency_s for sample in samples if sample.status == 200)
    bad = [sample.due_s - overload_s for sample in after if not sample.kept(slo_s)]
    p95_s = accepted[int(0.95 * (len(accepted) - 1))] if accepted else 0.0
    return {
        "requests": len(samples),
        "failed": sum(sample.status not in (200, 429, 503) for sample in samples),
        "slowest_ms": round(max(accepted, default=0.0) * 1000, 1),
        "goodput_share": round(len(kept) / overload_s / peak, 4),
        "slo_ms": slo_s * 1000,
        "accepted": len(accepted),
        "accepted_p95_ms": round(p95_s * 1000, 1),
        "peak_per_s": round(peak, 1),
        "overload_s": round(overload_s, 1),
        "recovery_s": round(max(bad, default=0.0), 2),
    }
