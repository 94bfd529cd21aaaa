"""A real `bul serve` with a disk tier, killed again and again while it reads and writes.

It refuses to trust a reply alone: texts are compared with those computed without the cache, and
every stored block byte for byte with what the same model computes here (`wrong_and_lost`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from bul.blocks.chain import block_keys, chain_root
from bul.blocks.prefix import Buffer
from bul.config.sections import BLOCK_TOKENS
from bul.inference.contract import ModelCore
from bul.service.auth import tenant_salt
from bul.testing.exactness import generate_greedy
from bul.testing.region_process import bul_process
from bul.testing.waiting import eventually

__all__ = ["Answer", "KilledReplica", "Reads", "computed_blocks", "prompt", "wrong_and_lost"]

SECRET = "kills"  # noqa: S105 - of a cache that lives for one test
MODEL = "SmolLM2-135M-Instruct.Q4_1"
OUTPUT_TOKENS = 6
_WORDS = [
    "harbour",
    "boats",
    "captain",
    "winter",
    "paper",
    "maps",
    "quiet",
    "rain",
    "seven",
    "gone",
    "count",
    "nobody",
    "town",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply. cached_tokens: of the prompt's, taken from the cache."""

    text: str
    prompt_tokens: int
    cached_tokens: int


class Reads(Protocol):
    """As much of a store as is judged."""

    def get(self, keys: Sequence[bytes]) -> Sequence[Buffer | None]: ...


def prompt(number: int, words: int = 200) -> str:
    """Random prose that no other number begins with; a word is one to two tokens."""
    picked = random.Random(number).choices(_WORDS, k=words)
    return f"Story {number}: " + " ".join(picked)


class KilledReplica:
    """Lives of one replica over one folder. `acknowledged`: prompts whose blocks were written."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self.acknowledged: list[str] = []
        self.texts: dict[str, set[str]] = {}
        self.from_disk_tokens = 0

    async def live(self, new: str, flying: str | None, kill_after_s: float = 0.0) -> None:
        """One life: read what earlier ones wrote, write `new`, and die with `flying` under way.

        With `flying` None it ends well, after every text was compared without the cache, too.
        """
        arguments = ["serve", "--log-format", "json", "--enable-persistence", *self._flags]
        environ = {
            "BUL_SERVE_PORT": "0",
            "BUL_SERVE_CACHE_SECRET": SECRET,
            "BUL_SERVE_SHARE_BETWEEN_TENANTS": "true",
        }
        async with bul_process(arguments, self._folder, environ) as process:
            url = (await process.wait_for("ready"))["url"]
            async with httpx.AsyncClient(base_url=url, timeout=120) as client:
                await self._read_all(client)
                await self._write(client, new)
                if flying is None:
                    await self._compare(client)
                    return
                await self._until_killed(client, flying, process.send, kill_after_s)
            assert await process.ended() == -signal.SIGKILL

    async def _read_all(self, client: httpx.AsyncClient) -> None:
        for text in self.acknowledged:
            answer = await self.ask(client, text)
            self.from_disk_tokens += answer.cached_tokens

    async def _write(self, client: httpx.AsyncClient, text: str) -> None:
        before = await _disk(client)
        answer = await self.ask(client, text)
        blocks = (answer.prompt_tokens - answer.cached_tokens) // BLOCK_TOKENS

        async def written() -> bool:
            now = await _disk(client)
            return _written(now) - _written(before) >= blocks

        await eventually(f"{blocks} blocks are on disk", written)
        self.acknowledged.append(text)

    async def _until_killed(
        self, client: httpx.AsyncClient, flying: str, send: Any, kill_after_s: float
    ) -> None:
        """The kill falls into the computing and writing of one prompt and the reading of others."""

        async def reader() -> None:
            while True:
                for text in self.acknowledged:
                    await self.ask(client, text)

        tasks = [asyncio.create_task(self.ask(client, flying)), asyncio.create_task(reader())]
        await asyncio.sleep(kill_after_s)
        send(signal.SIGKILL)
        for task in tasks:
            with contextlib.suppress(httpx.HTTPError):
                await task
        self.texts.setdefault(flying, set())

    async def _compare(self, client: httpx.AsyncClient) -> None:
        """Each prompt once more with the cache, and once without."""
        for text in list(self.texts):
            await self.ask(client, text)
            await self.ask(client, text, use_cache=False)

    async def ask(self, client: httpx.AsyncClient, text: str, *, use_cache: bool = True) -> Answer:
        """A whole reply, noted in `texts`. Raises httpx.HTTPError when the replica dies."""
        body = {"model": MODEL, "prompt": text, "max_tokens": OUTPUT_TOKENS, "temperature": 0}
        headers = {"x-bul-cache": "on" if use_cache else "off"}
        reply = await client.post("/v1/completions", json=body, headers=headers)
        reply.raise_for_status()
        document = reply.json()
        usage = document["usage"]
        answer = Answer(
            document["choices"][0]["text"],
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
        )
        self.texts.setdefault(text, set()).add(answer.text)
        return answer


async def _disk(client: httpx.AsyncClient) -> Mapping[str, float]:
    stats: dict[str, Any] = (await client.get("/cache/stats")).json()
    disk: Mapping[str, float] = stats["parts"]["disk"]
    return disk


def _written(stats: Mapping[str, float]) -> float:
    return stats["queue_written_blocks_total"]


def computed_blocks(core: ModelCore, text: str) -> dict[bytes, bytes]:
    """The blocks of a prompt by key, computed here. Uses slot 0."""
    tokens = core.tokenize(text, special=False)
    root = chain_root(core.identity.digest(), tenant_salt(SECRET, "", share=True))
    keys = block_keys(root, tokens, core.block_tokens)
    generate_greedy(core, 0, tokens, 1)
    return {
        key: bytes(block)
        for key, block in zip(keys, core.export_blocks(0, 0, len(keys)), strict=True)
    }


def wrong_and_lost(store: Reads, blocks: Mapping[bytes, bytes]) -> tuple[int, int]:
    """How many stored blocks have other bytes, and how many are not there."""
    found = store.get(list(blocks))
    wrong = sum(
        block is not None and bytes(block) != right
        for block, right in zip(found, blocks.values(), strict=True)
    )
    return wrong, sum(block is None for block in found)
