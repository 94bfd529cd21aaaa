"""What a request's cache calls cost on its own thread, by policy and by number of resident blocks.

Chats over a full cache: half of the requests are new conversations, half continue one of the last;
each call of match, set, finish and release is on the clock, hashing is not. Requests come as fast
as they are served, or as many a second as the row says: then the learner has time of its own, as in
a service.
Payloads are one shared object, so memory is what the cache adds to them. `gc_ms_max` is the longest
garbage collection while the clock ran: a pause of the whole process. `cpu_..._us` is what the
request's own thread computed: on a machine with other work the rest of the time is its neighbours'.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.config import KVCacheConfig

__all__ = ["resident_rows"]

POLICIES = ("lru", "adaptive")
SIZES = (20_000, 300_000, 1_000_000)
SHARED_BLOCKS, FIRST_BLOCKS, TURN_BLOCKS, TURNS_MAX = 4, 12, 2, 8
LIVELY_SESSIONS = 2_000
MEASURED_S = 8.0
PAYLOAD = b"x" * 64
Row = dict[str, Any]


class Chats:
    """An endless stream of (path, cached before it if nothing was ever evicted)."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._shared = [
            hashlib.blake2b(b"%d" % at, digest_size=32).digest() for at in range(SHARED_BLOCKS)
        ]
        self._sessions: list[tuple[int, int]] = []
        self._next = 0

    def path(self) -> list[bytes]:
        if self._dice.random() < 0.5 or not self._sessions:
            session, turn = self._next, 0
            self._next += 1
        else:
            session, turn = self._sessions.pop(self._dice.randrange(len(self._sessions)))
            turn += 1
        if turn < TURNS_MAX:
            self._sessions.append((session, turn))
        if len(self._sessions) > LIVELY_SESSIONS:
            self._sessions.pop(0)
        blocks = FIRST_BLOCKS + TURN_BLOCKS * turn
        own = (b"%d %d" % (session, at) for at in range(blocks))
        return self._shared + [hashlib.blake2b(text, digest_size=32).digest() for text in own]


def serve(engine: UltraAdaptiveKVCacheEngine, path: list[bytes]) -> tuple[float, float]:
    """One request's calls; their seconds, and those of them that this thread computed."""
    cpu_started_s = time.thread_time()
    started_s = time.perf_counter()
    match = engine.match_prefix(path)
    found = len(match.blocks)
    if found < len(path):
        engine.set_blocks(path, found, [PAYLOAD] * (len(path) - found))
    engine.finish(path, 100)
    match.release()
    took_s = time.perf_counter() - started_s
    return took_s, time.thread_time() - cpu_started_s


def rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(policy: str, blocks: int, per_s: float) -> Row:
    """Fill, then measure; to be run in a process of its own."""
    pauses: list[float] = []
    begun = [0.0]

    def note(phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            begun[0] = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - begun[0])

    config = KVCacheConfig(max_tokens=blocks * 64, ram_bytes_max=1 << 40, eviction=policy)
    engine = UltraAdaptiveKVCacheEngine(config)
    before = rss_bytes()
    chats = Chats(seed=1)
    while engine.stats()["ram"]["evictions_total"] < blocks // 10:
        for _ in range(1000):
            serve(engine, chats.path())
    grown = rss_bytes() - before
    gc.callbacks.append(note)
    times: list[float] = []
    cpu_times: list[float] = []
    started_s = time.perf_counter()
    while (now_s := time.perf_counter()) < started_s + MEASURED_S:
        if per_s and (wait_s := started_s + len(times) / per_s - now_s) > 0:
            time.sleep(wait_s)
        path = chats.path()
        took_s, computed_s = serve(engine, path)
        times.append(took_s)
        cpu_times.append(computed_s)
    gc.callbacks.remove(note)
    stats = engine.stats()
    engine.close()
    order, cpu = sorted(times), sorted(cpu_times)
    return {
        "bench": "match + set + finish + release of a request",
        "resident_blocks": int(stats["ram"]["blocks"]),
        "requests_per_s": f"{per_s:.0f} asked"
        if per_s
        else f"{len(times) / sum(times):.0f} at most",
        "eviction": policy,
        "p50_us": round(order[len(order) // 2] * 1e6, 1),
        "p99_us": round(order[len(order) * 99 // 100] * 1e6, 1),
        "p999_us": round(order[len(order) * 999 // 1000] * 1e6, 1),
        "max_ms": round(order[-1] * 1e3, 2),
        "cpu_p50_us": round(cpu[len(cpu) // 2] * 1e6, 1),
        "cpu_p99_us": round(cpu[len(cpu) * 99 // 100] * 1e6, 1),
        "cpu_max_ms": round(cpu[-1] * 1e3, 2),
        "gc_ms_max": round(max(pauses, default=0.0) * 1e3, 2),
        "evicted_per_request": round(
            stats["ram"]["evictions_total"] / stats["engine"]["matches_total"], 1
        ),
        "rss_bytes_per_block": round(grown / stats["ram"]["blocks"]),
    }


def resident_rows(sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """A row for each size, policy and rate, each from a process of its own."""
    rows = []
    for blocks in sizes:
        for per_s in (0.0, 500.0):
            for policy in POLICIES:
                command = [sys.executable, __file__, policy, str(blocks), str(per_s)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append(json.loads(done.stdout))
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
