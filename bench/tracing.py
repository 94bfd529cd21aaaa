"""CPU that traces cost a router per request: not asked for, not sampled, sampled; and its sender.

    make bench-tracing                            about ten seconds; bench/out/tracing.json

The router's own code alone, from a whole request to a whole answer, without sockets: what differs
between the rows is the tracing. A sampled request leaves two spans here; what it costs to send one
is the exporter's thread's, not the request's. The least of the rounds counts.
"""

from __future__ import annotations

import asyncio
import collections
import json
import time
from pathlib import Path
from typing import Any

from bul.config import RouteConfig
from bul.metrics.otlp import encode
from bul.router.app import Router
from bul.router.http1 import Request
from bul.router.replica import READY
from bul.router.upstream import UpstreamConnection
from bul.tracing import Span, Tracer

OUT = Path(__file__).resolve().parent / "out" / "tracing.json"
ROUNDS = 15
REQUESTS = 1000
URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2")
LINES = [b"User-Agent: bench\r\n", b"Accept: */*\r\n", b"Content-Type: application/json\r\n"]
BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "hello " * 1300}]}
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class _Transport:
    """Takes what is written to a replica."""

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        pass


class _Client:
    """Takes the answers; of a connection only what a router and an exchange use."""

    write_paused = False
    deadline_s = 0.0
    exchange: Any = None

    def write(self, data: bytes) -> None:
        pass

    def answered(self, *, close: bool) -> None:
        self.exchange = None


async def _request_us(tracer: Tracer | None) -> float:
    config = RouteConfig(replicas=URLS, port=0, probe_interval_s=60.0, block_events=False)
    router = Router(config, tracer=tracer)
    await router.start()
    await asyncio.sleep(0.05)  # the probes have found nobody
    for replica in router.replicas:
        replica.set_state(READY)
        upstream = UpstreamConnection(replica)
        upstream.transport = _Transport()  # type: ignore[assignment]  # what a try uses of one
        replica.idle.append(upstream)
    known = Request(b"POST", b"/v1/chat/completions", http10=False, keep_alive=True)
    known.lines = LINES
    client, least_s = _Client(), float("inf")
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for _ in range(REQUESTS):
            router.handle(client, known.again(BODY))  # type: ignore[arg-type]  # see _Client
            client.exchange.upstream.data_received(ANSWER)
        least_s = min(least_s, time.process_time() - began_s)
    await router.stop()
    return least_s / REQUESTS * 1e6


def _encode_us() -> float:
    spans: list[Span] = []
    tracer = Tracer(spans.append, sample_share=1.0)
    asyncio.run(_request_us(tracer))
    batch, least_s = spans[:512], float("inf")
    for _ in range(ROUNDS):
        began_s = time.process_time()
        encode(batch, None, 0.0)
        least_s = min(least_s, time.process_time() - began_s)
    return least_s / len(batch) * 1e6


def main() -> None:
    kept: collections.deque[Span] = collections.deque(maxlen=64)
    rows = {
        "no tracing": asyncio.run(_request_us(None)),
        "not sampled": asyncio.run(_request_us(Tracer(kept.append, sample_share=0.0))),
        "sampled": asyncio.run(_request_us(Tracer(kept.append, sample_share=1.0))),
    }
    for name, us in rows.items():
        print(f"{name:<14} {us:6.1f} us/request")
    rows["sending, per span"] = _encode_us()
    print(f"{'sending':<14} {rows['sending, per span']:6.1f} us/span, in a thread of its own")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({name: round(us, 1) for name, us in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
