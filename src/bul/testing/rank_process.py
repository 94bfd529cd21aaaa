"""A rank of the distributed tier as a process of its own, told what to do over its stdin.

Refuses to stay when its parent is gone: the end of stdin is its end. One JSON line per command:

    {"do": "set" | "get" | "match" | "stats", "first": 0, "blocks": 64}
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bul.cache.tiers.distributed import DistributedTier
from bul.cache.tiers.distributed.link import Links
from bul.cache.tiers.distributed.tier import World
from bul.testing.nginx import free_port
from bul.testing.tier_contract import chain_of_records

__all__ = ["RankProcess", "addresses_for", "running_ranks"]

IDENTITY = b"r" * 32
READY_S = 60.0
TIMEOUT_S = 0.5


def addresses_for(ranks: int) -> tuple[tuple[str, int], ...]:
    """Free ports of loopback."""
    return tuple(("127.0.0.1", free_port()) for _ in range(ranks))


class RankProcess:
    """One rank. backend: "memory" (its host's alone), "gloo" or "nccl" for all payloads."""

    def __init__(
        self,
        rank: int,
        addresses: Sequence[tuple[str, int]],
        backend: str = "memory",
        *,
        bytes_max: int = 64 << 20,
        secret: str = "",
    ) -> None:
        told = {
            "rank": rank,
            "addresses": addresses,
            "backend": backend,
            "bytes_max": bytes_max,
            "secret": secret,
        }
        self.rank = rank
        self.process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "bul.testing.rank_process", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def wait_ready(self) -> None:
        """Until it listens."""
        assert self.read() == {"ready": True}

    def tell(self, do: str, **how: int) -> None:
        """A command; `read` has the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **how}).encode() + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """The answer to the oldest command. Raises AssertionError if the rank has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"rank {self.rank} has died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **how: int) -> dict[str, Any]:
        """Tell and read."""
        self.tell(do, **how)
        return self.read()

    def kill(self) -> None:
        """SIGKILL, and gone. Idempotent."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_ranks(
    ranks: int, backend: str = "memory", **how: Any
) -> Iterator[tuple[list[RankProcess], tuple[tuple[str, int], ...]]]:
    """So many ranks, ready, and their addresses."""
    addresses = addresses_for(ranks)
    processes = [RankProcess(rank, addresses, backend, **how) for rank in range(ranks)]
    try:
        for process in processes:
            process.wait_ready()
        yield processes, addresses
    finally:
        for process in processes:
            process.kill()


def _main(told: dict[str, Any]) -> None:
    addresses = tuple((host, port) for host, port in told["addresses"])
    world = World(
        rank=told["rank"],
        addresses=addresses,
        bytes_max=told["bytes_max"],
        secret=told["secret"],
        timeout_s=TIMEOUT_S,
        use_memory=told["backend"] == "memory",
    )
    host = addresses[world.rank][0]
    links = None if world.use_memory else Links(told["backend"], host, TIMEOUT_S, world.rank)
    tier = DistributedTier(world, IDENTITY, links=links)
    _say({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        began_s = time.perf_counter()
        answer = _do(
            tier,
            command["do"],
            command.get("first", 0),
            command.get("blocks", 0),
            command.get("size", 4096),
        )
        _say(answer | {"seconds": time.perf_counter() - began_s})


def _do(tier: DistributedTier, do: str, first: int, blocks: int, size: int) -> dict[str, Any]:
    if do == "stats":
        return {"stats": dict(tier.stats())}
    records = chain_of_records(blocks, first_token=first, block_bytes=size)
    keys = [record.key for record in records]
    if do == "set":
        return {"set": tier.set(records)}
    if do == "match":
        return {"match": tier.match(keys)}
    began_s = time.perf_counter()
    found = tier.get(keys)
    seconds = time.perf_counter() - began_s
    right = sum(
        block is not None and bytes(block) == record.payload
        for block, record in zip(found, records, strict=True)
    )
    return {"found": sum(b is not None for b in found), "right": right, "get_s": seconds}


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
