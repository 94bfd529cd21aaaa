"""Runs one checked request on the runner and writes its answer, whole or as server-sent events.

Refuses to begin an answer before there is a first piece of it: until then every failure still has
its own status code. After that a failure is an explicit error event, and `[DONE]` is never sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

from bul.blocks.prefix import RequestFacts
from bul.clock import Clock
from bul.config import PRIORITIES
from bul.inference.contract import Delta, GenerateRequest, Runner
from bul.inference.resume import HEADER, Sent
from bul.inference.resumed import ended_with
from bul.service import replies
from bul.service.asgi import Exchange
from bul.service.openai import Job
from bul.service.replies import Choice, Reply, Timing
from bul.tracing import Span

__all__ = ["Generation", "Observer", "requests_of"]

QUEUE_PIECES_MAX = 64


class Observer(Protocol):
    """Who counts pieces of text. Seconds."""

    def first_text(self, seconds: float) -> None: ...
    def next_text(self, seconds: float) -> None: ...


def requests_of(
    job: Job, prompts: Sequence[Sequence[int]], *, request_id: str, tenant: str, salt: bytes,
    use_cache: bool, context_tokens: int, resumed: Sequence[int] = (),
    priority: str = PRIORITIES[0], span: Span | None = None,
) -> list[GenerateRequest]:  # fmt: skip
    """One request per choice, prompt by prompt; choices of one prompt get seeds of their own.

    resumed: what another replica has generated of the only choice. span: of all of them.
    """
    found: list[GenerateRequest] = []
    for prompt in prompts:
        room = context_tokens - len(prompt)
        max_tokens = room if job.max_tokens is None else job.max_tokens
        facts = RequestFacts(
            tenant=tenant,
            prompt_tokens=len(prompt),
            output_tokens_max=max_tokens,
            session=job.session,
            priority=priority,
            span=span if span is not None and span.sampled else None,
        )
        for choice in range(job.n):
            seed = job.sampling.seed
            sampling = dataclasses.replace(
                job.sampling,
                max_tokens=max_tokens,
                seed=None if seed is None else (seed + choice) % (1 << 63),
            )
            found.append(
                GenerateRequest(
                    request_id=f"{request_id}-{len(found)}",
                    tokens=prompt,
                    sampling=sampling,
                    salt=salt,
                    use_cache=use_cache,
                    facts=facts,
                    resumed=resumed,
                )
            )
    return found


class Generation:
    """One answer in the making. `choices` and `ttft_s` hold what has been generated so far."""

    def __init__(
        self,
        runner: Runner,
        requests: Sequence[GenerateRequest],
        *,
        job: Job,
        reply: Reply,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._runner = runner
        self._requests = requests
        self._job = job
        self._reply = reply
        self._clock = clock
        self._observer = observer
        self._started_s = clock.now_s()
        self._last_text_s = [self._started_s] * len(requests)
        self.choices = [Choice(output_tokens=len(request.resumed)) for request in requests]
        self.ttft_s: float | None = None
        self.prompt_tokens = sum(len(request.tokens) for request in requests[:: job.n])

    @property
    def cached_tokens(self) -> int:
        """Of all prompts; a prompt's first choice tells, the others share its blocks anyway."""
        return sum(choice.cached_tokens for choice in self.choices[:: self._job.n])

    @property
    def output_tokens(self) -> int:
        return sum(choice.output_tokens for choice in self.choices)

    @property
    def generated_tokens(self) -> int:
        """Output tokens but for those of another replica."""
        return self.output_tokens - sum(len(request.resumed) for request in self._requests)

    async def answer_whole(self, exchange: Exchange) -> None:
        """Generate everything, then answer."""
        texts: list[list[str]] = [[] for _ in self._requests]
        async with contextlib.aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                self._note(index, delta)
                texts[index].append(delta.text)
        for choice, pieces in zip(self.choices, texts, strict=True):
            choice.text = "".join(pieces)
        body = replies.whole(
            self._reply, self.choices, self.prompt_tokens, self.cached_tokens, self._timing()
        )
        await exchange.respond(200, body, headers=self._headers())

    async def answer_streamed(self, exchange: Exchange) -> None:
        """Generate and send piece by piece; the answer begins with the first piece."""
        sent = self._reply.sent
        if sent is not None and (ending := self._ending(sent)) is not None:
            await exchange.start_stream(self._headers())
            await exchange.end(ending + self._last_events())
            return
        begun = [bool(sent and sent.id)] * len(self._requests)
        async with contextlib.aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                self._note(index, delta)
                piece = self._events(index, delta, first=not begun[index])
                begun[index] = True
                if exchange.status == 0:
                    await exchange.start_stream(self._headers())
                await exchange.write(piece)
        await exchange.end(self._last_events())

    def _ending(self, sent: Sent) -> bytes | None:
        """What is left of a choice that had ended elsewhere; None if it had not."""
        if sent.finish_reason is not None:
            return b""
        reason = ended_with(self._requests[0], self._runner.core)
        return None if reason is None else replies.finish_chunk(self._reply, 0, reason)

    def _events(self, index: int, delta: Delta, *, first: bool) -> bytes:
        piece, tokens = b"", delta.tokens
        if delta.text or first:
            piece = replies.chunk(self._reply, index, delta.text, first=first, tokens=tokens)
            tokens = ()
        if delta.finish_reason is not None:
            piece += replies.finish_chunk(self._reply, index, delta.finish_reason, tokens)
        return piece

    def _last_events(self) -> bytes:
        if not self._job.include_usage:
            return replies.DONE
        usage = replies.usage_chunk(
            self._reply, self.prompt_tokens, self.cached_tokens, self.output_tokens, self._timing()
        )
        return usage + replies.DONE

    def _note(self, index: int, delta: Delta) -> None:
        choice = self.choices[index]
        if delta.text:
            now_s = self._clock.now_s()
            if self.ttft_s is None:
                self.ttft_s = now_s - self._started_s
                self._observer.first_text(self.ttft_s)
            elif choice.output_tokens:
                self._observer.next_text(now_s - self._last_text_s[index])
            self._last_text_s[index] = now_s
        choice.output_tokens = delta.output_tokens
        choice.cached_tokens = delta.cached_tokens
        choice.finish_reason = delta.finish_reason

    def _timing(self) -> Timing:
        ttft_ms = None if self.ttft_s is None else self.ttft_s * 1000.0
        return Timing(ttft_ms=ttft_ms, e2e_ms=(self._clock.now_s() - self._started_s) * 1000.0)

    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        request_id = (b"x-request-id", self._reply.request_id.encode())
        return (request_id, (HEADER, b"tokens")) if self._reply.shows_tokens else (request_id,)

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(choice, delta) of all choices as they come; closing it cancels them all."""
        if len(self._requests) == 1:
            async with _closing(self._runner.generate(self._requests[0])) as deltas:
                async for delta in deltas:
                    yield 0, delta
            return
        async with contextlib.aclosing(self._merged()) as merged:
            async for item in merged:
                yield item

    async def _merged(self) -> AsyncGenerator[tuple[int, Delta], None]:
        queue: asyncio.Queue[tuple[int, Delta | BaseException]] = asyncio.Queue(QUEUE_PIECES_MAX)
        tasks = [
            asyncio.create_task(self._pump(index, request, queue))
            for index, request in enumerate(self._requests)
        ]
        try:
            open_choices = len(tasks)
            while open_choices:
                index, item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                open_choices -= item.finish_reason is not None
                yield index, item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self,
        index: int,
        request: GenerateRequest,
        queue: asyncio.Queue[tuple[int, Delta | BaseException]],
    ) -> None:
        try:
            async with _closing(self._runner.generate(request)) as deltas:
                async for delta in deltas:
                    await queue.put((index, delta))
        except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
            await queue.put((index, error))


@contextlib.asynccontextmanager
async def _closing(deltas: AsyncIterator[Delta]) -> AsyncIterator[AsyncIterator[Delta]]:
    """Close at the end, whatever kind of iterator the runner returned."""
    try:
        yield deltas
    finally:
        if isinstance(deltas, AsyncGenerator):
            await deltas.aclose()
