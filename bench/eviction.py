"""Every eviction policy on block traces, against leaf-only LRU and the clairvoyant.

Reads the traces of ../shared/data, or those named on the command line; prints a table of points of
token hit ratio (and of saved prefill seconds) above LRU, writes bench/out/eviction.json.

    make bench-eviction
    .venv/bin/python bench/eviction.py my-trace.jsonl.gz other.jsonl
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

from bul.cache.replay import COST_MODEL, REPLAY_NAMES, capacity_blocks, make_replayed, replay
from bul.cache.replay_trace import Trace, read_trace

ROOT = pathlib.Path(__file__).parents[1]
TRACES = ("moon_conv", "moon_synth", "lmc_swe", "weka_a")
SHARES = ("0.01", "0.05", "0.1", "0.25", "0.5")
OUT = ROOT / "bench" / "out" / "eviction.json"
Row = dict[str, object]


def replayed(trace: Trace, policy: str, share: str) -> Row:
    capacity = capacity_blocks(share, trace.unique_blocks)
    started_s = time.perf_counter()
    result = replay(trace, make_replayed(policy, capacity, trace))
    return {
        "trace": trace.name,
        "policy": policy,
        "capacity_share": float(share),
        "capacity_blocks": capacity,
        "token_hit_ratio": result.token_hit_ratio,
        "saved_prefill_share": result.saved_prefill_s / result.prefill_s,
        "seconds": time.perf_counter() - started_s,
    }


def points(row: Row, base: Row, what: str) -> float:
    return 100.0 * (float(str(row[what])) - float(str(base[what])))


def show(name: str, policy: str, rows: list[Row], bases: list[Row]) -> None:
    hits = " ".join(
        f"{points(row, base, 'token_hit_ratio'):+7.2f}"
        for row, base in zip(rows, bases, strict=True)
    )
    saved = " ".join(
        f"{points(row, base, 'saved_prefill_share'):+7.2f}"
        for row, base in zip(rows, bases, strict=True)
    )
    seconds = sum(float(str(row["seconds"])) for row in rows)
    print(f"{name:12} {policy:9} {hits}   {saved}   {seconds:6.1f}", flush=True)


def main() -> None:
    named = [pathlib.Path(argument) for argument in sys.argv[1:]]
    paths = named or [ROOT / f"../shared/data/{name}.jsonl.gz" for name in TRACES]
    print("points above leaf-only LRU of token hit ratio, then of saved prefill time")
    print(f"({COST_MODEL})\n{'trace':12} {'policy':9} " + " ".join(f"{s:>7}" for s in SHARES))
    every: list[Row] = []
    for path in paths:
        trace = read_trace(path)
        bases = [replayed(trace, "lru", share) for share in SHARES]
        every.extend(bases)
        for policy in REPLAY_NAMES:
            if policy != "lru":
                rows = [replayed(trace, policy, share) for share in SHARES]
                every.extend(rows)
                show(trace.name, policy, rows, bases)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"cost_model": COST_MODEL, "rows": every}, indent=1) + "\n")


if __name__ == "__main__":
    main()
