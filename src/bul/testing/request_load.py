"""Clients that ask without a pause and hold every answer against what was asked.

Refuses to forgive: there is no second try. A request is lost when its answer is not 200, is not
whole, breaks off, or has another number of tokens than asked for.

    async with RequestLoad(url, clients=8, stream_every=2) as load:
        ...  # the fault
    assert load.lost == []
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import types
from collections.abc import Callable
from typing import Any, Self

import msgspec

from bul.testing.router_net import RawClient, post
from bul.testing.waiting import eventually

__all__ = ["RequestLoad"]

PROMPTS = 64
DIAL_S = 5.0
PAUSE_AFTER_LOSS_S = 0.05
"""So that an outage is a handful of lost requests per second and client, not thousands."""


def _question(number: int) -> str:
    return f"Question {number % PROMPTS}, please?"


class RequestLoad:
    """`clients` connections in a closed loop until the block ends.

    stream_every: every n-th request is a stream, 0 for none. keep: one connection per client
    instead of one per request. pause_s: between an answer and the next request. question: the
    text of the n-th request. key: the API key.
    """

    def __init__(
        self,
        url: str,
        *,
        clients: int,
        max_tokens: int = 4,
        stream_every: int = 0,
        keep: bool = True,
        pause_s: float = 0.0,
        model: str = "bul-timed",
        question: Callable[[int], str] = _question,
        key: str = "",
    ) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._where = host, int(port)
        self._clients = clients
        self._max_tokens = max_tokens
        self._stream_every = stream_every
        self._keep = keep
        self._pause_s = pause_s
        self._model = model
        self._question = question
        self._extra = b"Authorization: Bearer %b\r\n" % key.encode() if key else b""
        self.by_replica: collections.Counter[bytes] = collections.Counter()
        """Answers by the replica that the router names."""
        self._numbers = itertools.count(1)
        self._stopping = False
        self._askers: list[asyncio.Task[None]] = []
        self.answers = 0
        self.streams = 0
        self.lost: list[str] = []
        """One line for each lost request: what came instead of its answer."""
        self.latencies_s: list[float] = []
        """Of the answered ones."""
        self.prompt_tokens = self.cached_tokens = 0
        """Of the answered ones."""

    @property
    def requests(self) -> int:
        """Ended ones, lost or not."""
        return self.answers + len(self.lost)

    async def __aenter__(self) -> Self:
        self._askers = [asyncio.create_task(self._ask_on()) for _ in range(self._clients)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Let running requests end; after an error, cancel them."""
        self._stopping = True
        if error is not None:
            for asker in self._askers:
                asker.cancel()
        outcomes = await asyncio.gather(*self._askers, return_exceptions=True)
        if error is None:
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome

    async def more(self, requests: int, deadline_s: float = 60.0) -> None:
        """Return when so many more have ended."""
        wanted = self.requests + requests
        text = f"{requests} more requests"
        await eventually(text, lambda: self.requests >= wanted, deadline_s)

    async def _ask_on(self) -> None:
        loop = asyncio.get_running_loop()
        client: RawClient | None = None
        try:
            while not self._stopping:
                number = next(self._numbers)
                began_s = loop.time()
                try:
                    if client is None:
                        async with asyncio.timeout(DIAL_S):
                            client = RawClient(*await asyncio.open_connection(*self._where))
                    await self._ask(client, number)
                except (OSError, EOFError, TimeoutError, ValueError, LookupError) as error:
                    self.lost.append(f"request {number}: {error!r}")
                    await asyncio.sleep(PAUSE_AFTER_LOSS_S)
                else:
                    self.latencies_s.append(loop.time() - began_s)
                    self.answers += 1
                    if self._keep:
                        await asyncio.sleep(self._pause_s)
                        continue
                if client is not None:
                    client.close()
                client = None
                await asyncio.sleep(self._pause_s)
        finally:
            if client is not None:
                client.close()

    async def _ask(self, client: RawClient, number: int) -> None:
        """One request. Raises one of the errors that mean "lost"."""
        stream = bool(self._stream_every) and number % self._stream_every == 0
        await client.send(post(self._body(number, stream=stream), extra=self._extra))
        status, headers, body = await client.answer()
        if status != 200:
            raise ValueError(f"status {status}: {body[:200]!r}")
        if stream:
            self._judge_stream(body)
            self.streams += 1
        else:
            answer = msgspec.json.decode(body, type=dict[str, Any])
            self._judge(answer["usage"])
        self.by_replica[headers.get(b"x-bul-replica", b"")] += 1

    def _judge(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        if usage["completion_tokens"] != self._max_tokens:
            raise ValueError(f"{usage['completion_tokens']} of {self._max_tokens} tokens came")

    def _judge_stream(self, body: bytes) -> None:
        events = [
            line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")
        ]
        if not events or events[-1].strip() != b"[DONE]":
            raise ValueError(f"the stream broke off: {body[-200:]!r}")
        usages = [event for event in events if b'"usage":{' in event]
        self._judge(msgspec.json.decode(usages[-1], type=dict[str, Any])["usage"])

    def _body(self, number: int, *, stream: bool) -> bytes:
        document: dict[str, object] = {
            "model": self._model,
            "messages": [{"role": "user", "content": self._question(number)}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }
        if stream:
            document |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(document)
