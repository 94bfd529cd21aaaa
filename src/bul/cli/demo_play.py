"""Plays the demo's conversations: every turn with the cache, then the same turn without.

Each conversation stays on one replica, replicas work side by side, and a replica has one request
at a time: so the two figures of a turn are measured under the same load. Refuses to let the two
runs mix: the next turn continues from the reply with the cache, and any difference is reported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bul.cli.ask import ask, model_id
from bul.cli.conversations import Conversation, conversations, opening
from bul.cli.demo_report import Report, Turn
from bul.config import Settings

__all__ = ["play"]

REPLY_TOKENS = 24
Advance = Callable[[], None]


async def play(urls: Sequence[str], settings: Settings, count: int) -> Report:
    """Play everything on the replicas at `urls`. count: how many conversations.

    Raises BulError.
    """
    scripts = conversations()[:count]
    requests = 2 * sum(len(script.questions) for script in scripts)
    start_s = time.monotonic()
    async with httpx.AsyncClient(trust_env=False) as client:
        model = await model_id(client, urls[0])
        with _progress() as progress:
            task = progress.add_task("conversations", total=requests)
            stage = _Stage(client=client, model=model, advance=lambda: progress.advance(task))
            lanes = [stage.lane(url, scripts[i :: len(urls)]) for i, url in enumerate(urls)]
            turns = await asyncio.gather(*lanes)
    return Report(
        engine=settings.serve.engine,
        model=model,
        conversations=len(scripts),
        turns=tuple(turn for lane in turns for turn in lane),
        seconds=time.monotonic() - start_s,
    )


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    client: httpx.AsyncClient
    model: str
    advance: Advance

    async def lane(self, url: str, scripts: Sequence[Conversation]) -> list[Turn]:
        """One replica's conversations, one after the other."""
        return [turn for script in scripts for turn in await self._conversation(url, script)]

    async def _conversation(self, url: str, script: Conversation) -> list[Turn]:
        messages = opening(script)
        turns: list[Turn] = []
        for number in range(1, len(script.questions) + 1):
            before = turns[-1].prompt_tokens if turns else 0
            turn, reply = await self._turn(url, script.title, messages, number, before)
            turns.append(turn)
            messages.append({"role": "assistant", "content": reply})
            if number < len(script.questions):
                messages.append({"role": "user", "content": script.questions[number]})
        return turns

    async def _turn(
        self,
        url: str,
        title: str,
        messages: list[dict[str, str]],
        number: int,
        before: int,
    ) -> tuple[Turn, str]:
        answers = []
        for use_cache in (True, False):
            answers.append(
                await ask(
                    self.client,
                    url,
                    messages,
                    model=self.model,
                    max_tokens=REPLY_TOKENS,
                    use_cache=use_cache,
                )
            )
            self.advance()
        warm, cold = answers
        turn = Turn(
            conversation=title,
            turn=number,
            prompt_tokens=warm.prompt_tokens,
            shared_tokens=before,
            cached_tokens=warm.cached_tokens,
            ttft_warm_ms=warm.ttft_ms,
            ttft_cold_ms=cold.ttft_ms,
            identical=warm.text == cold.text,
        )
        return turn, warm.text
