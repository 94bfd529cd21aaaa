"""One streamed question to a region, timed: what `bul up` and `bul demo` say about TTFT.

Refuses to retry: a figure that hides a failed attempt is no figure.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import httpx
import msgspec

from bul.errors import BulError

__all__ = ["Answer", "Message", "ask", "cache_stats", "model_id"]

TIMEOUT_S = 240.0
CONNECT_TIMEOUT_S = 5.0
Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole reply. ttft_ms: from the request to its first piece of text."""

    text: str
    ttft_ms: float
    prompt_tokens: int
    cached_tokens: int


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Stats(msgspec.Struct):
    parts: dict[str, dict[str, float]]


async def model_id(client: httpx.AsyncClient, url: str) -> str:
    """The first model served at the base `url`. Raises BulError."""
    try:
        response = await client.get(f"{url}/v1/models", timeout=CONNECT_TIMEOUT_S)
        return msgspec.json.decode(response.content, type=_Models).data[0].id
    except (httpx.HTTPError, msgspec.MsgspecError, IndexError) as error:
        raise BulError(f"{url} does not say which model it has: {error}") from error


async def cache_stats(client: httpx.AsyncClient, url: str) -> dict[str, dict[str, float]]:
    """The figures of each part of the cache of the replica at `url`. Raises BulError."""
    try:
        response = await client.get(f"{url}/cache/stats", timeout=CONNECT_TIMEOUT_S)
        return msgspec.json.decode(response.content, type=_Stats).parts
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        raise BulError(f"{url} does not show its cache: {error}") from error


async def ask(
    client: httpx.AsyncClient,
    url: str,
    messages: Sequence[Message],
    *,
    model: str,
    max_tokens: int,
    use_cache: bool = True,
) -> Answer:
    """Greedy chat completion at the base `url`. Raises BulError for any failure."""
    body = {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"content-type": "application/json", "x-bul-cache": "on" if use_cache else "off"}
    request = client.build_request(
        "POST",
        f"{url}/v1/chat/completions",
        content=msgspec.json.encode(body),
        headers=headers,
        timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
    )
    try:
        return await _read_answer(client, request)
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        raise BulError(f"{url} did not answer: {type(error).__name__}: {error}") from error


async def _read_answer(client: httpx.AsyncClient, request: httpx.Request) -> Answer:
    start_s = time.perf_counter()
    first_s = 0.0
    text: list[str] = []
    usage = _Usage(prompt_tokens=0)
    response = await client.send(request, stream=True)
    try:
        if response.status_code != httpx.codes.OK:
            said = (await response.aread()).decode(errors="replace")[:300]
            raise BulError(f"{request.url} answered {response.status_code}: {said}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = msgspec.json.decode(line.removeprefix("data: "), type=_Chunk)
            for choice in chunk.choices:
                if choice.delta.content:
                    first_s = first_s or time.perf_counter()
                    text.append(choice.delta.content)
            usage = chunk.usage or usage
    finally:
        await response.aclose()
    details = usage.prompt_tokens_details or _Details()
    return Answer(
        text="".join(text),
        ttft_ms=((first_s or time.perf_counter()) - start_s) * 1000,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=details.cached_tokens,
    )
