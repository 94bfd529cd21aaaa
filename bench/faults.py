"""What users lose when replicas die, restart, freeze or drown: lost requests and the slowest one.

    make bench-faults                             twelve minutes, 13 at most; bench/out/faults.json
    .venv/bin/python bench/faults.py --quick      shorter timed rows, ten minutes
    .venv/bin/python bench/faults.py --only kill --only sigstop

Real `bul up` and `bul serve` processes on the timed engine, real nginx. Rows:

    kill               kill -9 of a replica, again and again, under whole (non-streamed) requests
    control_no_retry   the same with the router's retries off: must lose some
    rolling_restart    `bul restart` under load, half of it streams
    kill_streams       the same load, each replica killed, not drained: streams go on elsewhere
    control_no_drain   the same with that off: must lose streams
    sigstop            a replica is frozen (SIGSTOP) for four seconds, six times
    control_no_hedging the same without a second replica: the slowest waits for the thaw
    nginx_front        nginx with our configuration; replicas restart in place, one is added and
                       one removed with a reload
    control_guide_nginx  the scaling guide's snippet; replicas restart in place: must lose some
    overload_5x        five times what the replicas can do, in an open loop
    overload_5x_no_hint  the same, but nobody believes what replicas say of their slots
    overload_5x_limit_set  the same with route.in_flight_max = 12, instead of a limit that is found
    control_no_shedding  the same without limits and queues: must collapse
    kill_real, rolling_restart_real, sigstop_real  200 requests of each on the real model
    nginx_front_real   200 requests on the real model, half of them streams: nginx in front of three
                       replicas, each restarts in place, one is added and one removed
    control_guide_nginx_real  the guide's snippet, each restarts in place: must lose some
    overload_5x_real   some 200 requests on the real model, five times what two replicas of one
                       thread can do, held against an SLO of 1.5 s
    control_no_shedding_real  the same without limits and queues: must collapse
    herd_real          200 equal cold prompts at once on the real model: `computed_times` is how
                       often a full block was computed, 1.05 at most
    control_herd_least_conn_real  the same by `least_conn`: each replica computes it

`failed` counts answers that were not whole or not 200. With overload_5x being turned away is the
service's duty, so there `failed` counts what got neither an answer nor a 429 or 503.
`goodput_share`: of the requests, those answered within `slo_ms`; with overload, answers within
`slo_ms` per second, as a share of the peak that the same replicas reach without overload.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from _fault_load import allow_many_files
from _fault_nginx import Behind, behind_nginx
from _fault_overload import Overload, overload
from _fault_real import (
    kill_one,
    real_herd,
    real_kill,
    real_nginx,
    real_overload,
    real_rolling_restart,
    real_sigstop,
)

from bul.testing.region_process import BulProcess, bul_process, region_process
from bul.testing.request_load import RequestLoad

HERE = Path(__file__).resolve().parent
SLO_S = 1.0
REAL_SLO_S = 4.0
"""Of the real model on two shared cores."""
HERD_SLO_S = 45.0
"""200 tails one after the other on one thread."""
FAST = {"BUL_TIMED_DECODE_TOKENS_PER_S": "200"}
NO_RETRY = {"BUL_ROUTE_RETRY_SHARE": "0", "BUL_ROUTE_RETRIES_AT_LEAST": "0"}
SHEDDING = {"BUL_ROUTE_FIRST_BYTE_TARGET_S": "0.5", "BUL_ROUTE_QUEUE_DEADLINE_S": "0.3"}
SHEDDING_REAL = {"BUL_ROUTE_FIRST_BYTE_TARGET_S": "1.0", "BUL_ROUTE_QUEUE_DEADLINE_S": "0.4"}
LIMIT_SET = {"BUL_ROUTE_IN_FLIGHT_MAX": "12"}
NO_SHEDDING = {
    "BUL_ROUTE_IN_FLIGHT_MAX": "1000000",
    "BUL_ROUTE_QUEUE_DEADLINE_S": "3600",
    "BUL_SERVE_WAITING_MAX": "1000000",
}
NO_HINT = {"BUL_ROUTE_IN_FLIGHT_PER_SLOT": "0"}
NO_RESUME = {"BUL_ROUTE_RESUME_STREAMS": "false"}
NO_HEDGING = {"BUL_ROUTE_HEDGE_DELAY_MIN_S": "0"}
FROZEN_S = 4.0
THAW_S = 3.0
ROW_S_MAX = 150.0
BENCH_S_MAX = 780.0
SAY_EVERY_S = 10.0

Row = dict[str, object]
Bench = Callable[[Path, bool], Awaitable[Row]]


@contextlib.asynccontextmanager
async def region(
    folder: Path, replicas: int, environ: dict[str, str]
) -> AsyncIterator[tuple[BulProcess, str]]:
    """A ready `bul up` and its router's URL."""
    flags = ("--replicas", str(replicas))
    async with region_process(folder, *flags, environ=FAST | environ) as running:
        url = (await running.wait_for("ready"))["url"]
        await running.wait_for("opening_answered")
        yield running, str(url)


def row(load: RequestLoad, slo_s: float = SLO_S, **more: object) -> Row:
    """Of a closed loop."""
    kept = sum(latency_s <= slo_s for latency_s in load.latencies_s)
    return {
        "requests": load.requests,
        "failed": len(load.lost),
        "slowest_ms": round(max(load.latencies_s, default=0.0) * 1000, 1),
        "goodput_share": round(kept / max(load.requests, 1), 4),
        "slo_ms": slo_s * 1000,
        "streams": load.streams,
        **more,
    }


async def killing(folder: Path, environ: dict[str, str], kills: int, requests: int) -> Row:
    replicas, every_s = 5, 2.4
    async with (
        region(folder, replicas, environ) as (running, url),
        RequestLoad(url, clients=12, pause_s=0.01) as load,
    ):
        await load.more(100)
        for number in range(kills):
            began_s = time.monotonic()
            await kill_one(running, f"replica-{number % replicas}")
            await asyncio.sleep(every_s - (time.monotonic() - began_s))
        if load.requests < requests:
            await load.more(requests - load.requests, 60)
    return row(load, kills=kills)


async def kill(folder: Path, quick: bool) -> Row:
    return await killing(folder, {}, *((3, 300) if quick else (20, 10_000)))


async def control_no_retry(folder: Path, quick: bool) -> Row:
    return await killing(folder, NO_RETRY, *((3, 300) if quick else (5, 1000)))


async def rolling_restart(folder: Path, quick: bool) -> Row:
    async with (
        region(folder, 3, {}) as (_, url),
        RequestLoad(url, clients=8, max_tokens=32, stream_every=2) as load,
    ):
        await load.more(50)
        for _ in range(1 if quick else 3):
            async with bul_process(["restart"], folder) as command:
                assert await command.ended() == 0, command.errors
        await load.more(50)
    return row(load)


async def killing_streams(folder: Path, environ: dict[str, str], kills: int) -> Row:
    async with (
        region(folder, 3, environ) as (running, url),
        RequestLoad(url, clients=8, max_tokens=32, stream_every=2) as load,
    ):
        await load.more(50)
        for number in range(kills):
            await kill_one(running, f"replica-{number % 3}")
        await load.more(50)
    return row(load, kills=kills)


async def kill_streams(folder: Path, quick: bool) -> Row:
    return await killing_streams(folder, {}, 1 if quick else 12)


async def control_no_drain(folder: Path, quick: bool) -> Row:
    return await killing_streams(folder, NO_RESUME, 4 if quick else 6)


async def freezing(folder: Path, environ: dict[str, str], times: int) -> Row:
    """One replica after the other stands still for FROZEN_S, half of the load being streams."""
    each_ms = []
    async with (
        region(folder, 3, environ) as (running, url),
        RequestLoad(url, clients=8, max_tokens=8, stream_every=2) as load,
    ):
        await load.more(200)
        for number in range(times):
            before = len(load.latencies_s)
            pid = running.replica_pids()[f"replica-{number % 3}"]
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(FROZEN_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            await load.more(100)
            each_ms.append(round(max(load.latencies_s[before:]) * 1000, 1))
            await asyncio.sleep(THAW_S)  # until it is used again
    service_ms = sorted(load.latencies_s)[len(load.latencies_s) // 2] * 1000
    frozen = {"frozen_ms": FROZEN_S * 1000, "service_ms": round(service_ms, 1)}
    return row(load, times=times, slowest_each_ms=each_ms, **frozen)


async def sigstop(folder: Path, quick: bool) -> Row:
    return await freezing(folder, {}, 1 if quick else 6)


async def control_no_hedging(folder: Path, quick: bool) -> Row:
    return await freezing(folder, NO_HEDGING, 1 if quick else 2)


TIMED_BEHIND = Behind(
    engine="timed",
    environ=FAST,
    model="bul-timed",
    clients=8,
    max_tokens=16,
    restarts=("a", "b", "c"),
    between=100,
    in_all=0,
)


async def nginx_front(folder: Path, _quick: bool) -> Row:
    return row(await behind_nginx(folder, TIMED_BEHIND, ours=True))


async def control_guide_nginx(folder: Path, _quick: bool) -> Row:
    return row(await behind_nginx(folder, TIMED_BEHIND, ours=False))


async def overloading(folder: Path, environ: dict[str, str], overload_s: float) -> Row:
    """Two replicas of four slots; an answer takes some 0.16 s without a queue. The peak is what
    16 users get in a closed loop.
    """
    environ = {"BUL_TIMED_DECODE_TOKENS_PER_S": "50"} | environ
    asked = Overload(
        slo_s=SLO_S, clients=16, max_tokens=8, model="bul-timed", overload_s=overload_s
    )
    async with region(folder, 2, environ) as (_, url):
        return await overload(url, asked)


async def overload_5x(folder: Path, quick: bool) -> Row:
    return await overloading(folder, SHEDDING, 8.0 if quick else 60.0)


async def overload_5x_no_hint(folder: Path, quick: bool) -> Row:
    return await overloading(folder, SHEDDING | NO_HINT, 8.0 if quick else 15.0)


async def overload_5x_limit_set(folder: Path, quick: bool) -> Row:
    return await overloading(folder, SHEDDING | LIMIT_SET, 8.0 if quick else 12.0)


async def control_no_shedding(folder: Path, quick: bool) -> Row:
    return await overloading(folder, NO_SHEDDING, 8.0 if quick else 15.0)


async def kill_real(folder: Path, _quick: bool) -> Row:
    return row(await real_kill(folder), REAL_SLO_S)


async def rolling_restart_real(folder: Path, _quick: bool) -> Row:
    return row(await real_rolling_restart(folder), REAL_SLO_S)


async def sigstop_real(folder: Path, _quick: bool) -> Row:
    return row(await real_sigstop(folder), REAL_SLO_S)


async def nginx_front_real(folder: Path, _quick: bool) -> Row:
    return row(await real_nginx(folder, ours=True), REAL_SLO_S)


async def control_guide_nginx_real(folder: Path, _quick: bool) -> Row:
    return row(await real_nginx(folder, ours=False), REAL_SLO_S)


async def overload_5x_real(folder: Path, _quick: bool) -> Row:
    return await real_overload(folder, SHEDDING_REAL)


async def control_no_shedding_real(folder: Path, _quick: bool) -> Row:
    return await real_overload(folder, NO_SHEDDING)


async def herd_real(folder: Path, _quick: bool) -> Row:
    return await real_herd(folder, {}, HERD_SLO_S)


async def control_herd_least_conn_real(folder: Path, _quick: bool) -> Row:
    return await real_herd(folder, {"BUL_ROUTE_POLICY": "least_conn"}, HERD_SLO_S)


BENCHES: tuple[Bench, ...] = (
    kill,
    control_no_retry,
    rolling_restart,
    kill_streams,
    control_no_drain,
    sigstop,
    control_no_hedging,
    nginx_front,
    control_guide_nginx,
    overload_5x,
    overload_5x_no_hint,
    overload_5x_limit_set,
    control_no_shedding,
    kill_real,
    rolling_restart_real,
    sigstop_real,
    nginx_front_real,
    control_guide_nginx_real,
    overload_5x_real,
    control_no_shedding_real,
    herd_real,
    control_herd_least_conn_real,
)


def measure(bench: Bench, quick: bool, left_s: float) -> Row:
    """One row, by a fresh event loop in a fresh folder; a bench that cannot run says so."""
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="bul-faults-") as folder:
            running = shown(bench.__name__, bench(Path(folder), quick))
            found = asyncio.run(asyncio.wait_for(running, min(left_s, ROW_S_MAX)))
    except (AssertionError, OSError, TimeoutError) as error:
        found = {"error": f"{error!r}"[:500]}
    return {"name": bench.__name__, **found, "seconds": round(time.monotonic() - began_s, 1)}


async def shown(name: str, running: Awaitable[Row]) -> Row:
    """The same, with a line on stderr at the start, at the end, and now and then between."""
    began_s = time.monotonic()

    async def tell() -> None:
        while True:
            say(f"{name}: {time.monotonic() - began_s:.0f} s")
            await asyncio.sleep(SAY_EVERY_S)

    telling = asyncio.create_task(tell())
    try:
        found = await running
        say(f"{name}: {found['failed']} of {found['requests']} failed")
        return found
    finally:
        telling.cancel()


def say(text: str) -> None:
    print(f"[faults] {text}", file=sys.stderr, flush=True)


def measure_all(benches: Sequence[Bench], quick: bool) -> list[Row]:
    """A row each. Rows whose turn comes too late are not begun, and say so."""
    end_s = time.monotonic() + BENCH_S_MAX
    rows: list[Row] = []
    for bench in benches:
        left_s = end_s - time.monotonic()
        late = {"name": bench.__name__, "error": "its turn came too late", "seconds": 0.0}
        rows.append(measure(bench, quick, left_s) if left_s > 0 else late)
    return rows


def show(rows: list[Row]) -> None:
    head = ("requests", "failed", "slowest_ms", "goodput_share", "seconds")
    print(f"{'':31}" + "".join(f"{name:>14}" for name in head))
    for found in rows:
        if "error" in found:
            print(f"{found['name']:31}could not run: {found['error']}")
        else:
            print(f"{found['name']:31}" + "".join(f"{found[name]:>14}" for name in head))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    names = [bench.__name__ for bench in BENCHES]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="ROW", help="a row's name; repeatable"
    )
    options = parser.parse_args()
    allow_many_files()
    wanted = [b for b in BENCHES if not options.only or b.__name__ in options.only]
    rows = measure_all(wanted, options.quick)
    show(rows)
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "quick": options.quick}
    (out / "faults.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
