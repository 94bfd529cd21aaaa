"""Load in an open loop for `bench/faults.py`: requests come when they are due, whoever is ready.

Refuses to wait for answers before it asks again, and to try twice: an overloaded service meets
everybody who comes, and who is turned away stays away.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import resource

import msgspec

from bul.testing.router_net import RawClient, post

__all__ = ["OpenLoop", "Sample", "allow_many_files"]


@dataclasses.dataclass(slots=True)
class Sample:
    """due_s: since the loop's start. latency_s: from then to the answer; status 0: none came."""

    due_s: float
    latency_s: float
    status: int

    def kept(self, slo_s: float) -> bool:
        return self.status == 200 and self.latency_s <= slo_s


class OpenLoop:
    """Requests at even distances against one URL; kept connections, one per request under way."""

    def __init__(self, url: str, *, max_tokens: int, model: str = "bul-timed") -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._where = host, int(port)
        self._max_tokens = max_tokens
        self._model = model
        self._idle: list[RawClient] = []
        self._asked = 0

    async def run(self, *phases: tuple[float, float]) -> list[Sample]:
        """All samples of the phases (requests per second, seconds), one right after the other.

        Returns once the last has its answer or its client has given up (10 s).
        """
        loop = asyncio.get_running_loop()
        began_s, phase_s = loop.time(), 0.0
        asking = []
        for rate, duration_s in phases:
            for number in range(int(rate * duration_s)):
                due_s = phase_s + number / rate
                await asyncio.sleep(began_s + due_s - loop.time())
                asking.append(asyncio.create_task(self._ask(began_s, due_s)))
            phase_s += duration_s
        return list(await asyncio.gather(*asking))

    def close(self) -> None:
        for client in self._idle:
            client.close()

    async def _ask(self, began_s: float, due_s: float) -> Sample:
        status = 0
        client: RawClient | None = None
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            if self._idle:
                client = self._idle.pop()
            else:
                client = RawClient(*await asyncio.open_connection(*self._where))
            await client.send(post(self._body()))
            status, _, _ = await client.answer()
        if status and client is not None:
            self._idle.append(client)
        elif client is not None:
            client.close()
        return Sample(due_s, asyncio.get_running_loop().time() - began_s - due_s, status)

    def _body(self) -> bytes:
        self._asked += 1
        content = f"Question {self._asked % 64}, please?"
        return msgspec.json.encode(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": self._max_tokens,
                "temperature": 0,
            }
        )


def allow_many_files() -> None:
    """Each request under way is a file; processes that are started inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
