"""One probe prompt: computed on one replica, read on every other one, deleted on all of them.

Refuses to leave it behind: where it cannot be deleted (no BUL replica, an older one, no operator's
key) that is said. Whether it is gone is not asked by asking for an answer, which would compute and
store it again, but by each replica's own word about its tiers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from bul.doctor.findings import Coherency

__all__ = ["probe_coherency"]

REACHED_S = 10.0
POLL_S = 0.2

Body = Mapping[str, object]
_AWAY = (
    *(httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError),
    *(ValueError, KeyError, IndexError, TypeError, AttributeError),
)


async def probe_coherency(
    client: httpx.AsyncClient, urls: Sequence[str], body: Body
) -> tuple[Coherency | None, str]:
    """What was found at the first replica that lacks it, else at the last; or None and why not.

    body: of a chat that nobody asked before, of many blocks. It is deleted whatever was found.
    """
    if len(urls) < 2:
        return None, f"it takes two replicas that are well, there are {len(urls)}"
    asked, found = urls[0], None
    try:
        text, _ = await _answer(client, urls[0], body)
        for asked in urls[1:]:
            await _reached(client, asked, body)
            other, cached_tokens = await _answer(client, asked, body)
            found = Coherency(
                written_on=urls[0],
                read_on=asked,
                cached_tokens=cached_tokens,
                same_text=text == other,
            )
            if not (cached_tokens and text == other):
                break
    except _AWAY as error:
        await _delete(client, urls, body)
        return None, f"{urls[0]} or {asked} did not answer: {type(error).__name__}"
    left, kept_because = await _delete(client, urls, body)
    assert found is not None, "there was another replica"
    return dataclasses.replace(found, left=left, kept_because=kept_because), ""


async def _answer(client: httpx.AsyncClient, url: str, body: Body) -> tuple[str, int]:
    """(text, cached tokens)."""
    response = await client.post(f"{url}/v1/chat/completions", json=body)
    page = msgspec.json.decode(response.content, type=dict[str, Any])
    details = page["usage"].get("prompt_tokens_details") or {}
    return page["choices"][0]["message"]["content"], int(details.get("cached_tokens", 0))


async def _reached(client: httpx.AsyncClient, url: str, body: Body) -> None:
    """Until the prompt's full blocks have reached `url`, by its own word; asking for the answer
    itself would compute and keep them there.
    """
    end_s = time.monotonic() + REACHED_S
    while time.monotonic() < end_s:
        page = (await client.post(f"{url}/cache/explain", json=body)).json()
        if 0 < page["blocks"] <= page["cached"]:
            return
        await asyncio.sleep(POLL_S)


async def _delete(
    client: httpx.AsyncClient, urls: Sequence[str], body: Body
) -> tuple[list[str], str]:
    """(where it still lies, why it could not be deleted or looked for, "" if it could).

    Each replica deletes behind its own queued writes, so all of them are asked before any is looked
    at: what one wrote into a shared tier meanwhile, its own deletion has caught.
    """
    left, unsure = list[str](), list[str]()
    for url in urls:
        said, why = await _post(client, f"{url}/cache/delete", body)
        unsure += [why] if why else []
        for tier, blocks in said.get("left", {}).items():
            if blocks is None:
                unsure.append(f"{tier} of {url} did not answer")
            elif blocks:
                left.append(f"{tier} of {url}")
    if not unsure:
        for url in urls:
            said, why = await _post(client, f"{url}/cache/explain", body)
            unsure += [why] if why else []
            seen = [f"{tier} of {url}" for tier, n in said.get("tiers", {}).items() if n]
            left += [place for place in seen if place not in left]
    return left, "; ".join(unsure)


async def _post(client: httpx.AsyncClient, url: str, body: Body) -> tuple[dict[str, Any], str]:
    try:
        response = await client.post(url, json=body)
        if response.status_code == httpx.codes.OK:
            return msgspec.json.decode(response.content, type=dict[str, Any]), ""
    except _AWAY as error:
        return {}, f"{url}: {type(error).__name__}"
    known: dict[int, str] = {
        httpx.codes.UNAUTHORIZED: "give the operator's key",
        httpx.codes.FORBIDDEN: "give the operator's key",
        httpx.codes.NOT_FOUND: "it has no such page",
    }
    code = response.status_code
    return {}, f"{url} answers {code}" + (f": {known[code]}" if code in known else "")
