"""Plays the demo's conversations: every turn with the cache, then the same turn without.

Each conversation stays on one replica, replicas work side by side, and a replica has one request
at a time: so the two figures of a turn are measured under the same load. Refuses to let the two
runs mix: the next turn continues from the reply with the cache, and any difference is reported.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bul.cli.ask import Answer, Message, ask, model_id
from bul.cli.conversations import Conversation, conversations, opening
from bul.cli.demo_report import Turn

__all__ = ["Asked", "Played", "client_with", "play", "play_again"]

REPLY_TOKENS = 24
Advance = Callable[[], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A prompt that was answered: what to ask again, and what must come back."""

    title: str
    turn: int
    messages: tuple[Message, ...]
    prompt_tokens: int
    reply: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """model: its id. last: of each conversation, its longest prompt."""

    model: str
    turns: tuple[Turn, ...]
    last: tuple[Asked, ...]


async def play(urls: Sequence[str], count: int, *, key: str = "") -> Played:
    """Play everything on the replicas at `urls`. count: how many conversations. key: for their API.

    Raises BulError.
    """
    scripts = conversations()[:count]
    requests = 2 * sum(len(script.questions) for script in scripts)
    last: list[Asked] = []
    async with client_with(key) as client:
        model = await model_id(client, urls[0])
        with _progress() as progress:
            task = progress.add_task("conversations", total=requests)
            stage = _Stage(client=client, model=model, advance=lambda: progress.advance(task))
            lanes = [stage.lane(url, scripts[i :: len(urls)], last) for i, url in enumerate(urls)]
            turns = await asyncio.gather(*lanes)
    return Played(
        model=model, turns=tuple(turn for lane in turns for turn in lane), last=tuple(last)
    )


async def play_again(urls: Sequence[str], played: Played, *, key: str = "") -> tuple[Turn, ...]:
    """Ask each conversation's last prompt again, with the cache and without. Raises BulError."""
    async with client_with(key) as client:
        with _progress() as progress:
            task = progress.add_task("asked again", total=2 * len(played.last))
            stage = _Stage(
                client=client, model=played.model, advance=lambda: progress.advance(task)
            )
            lanes = [stage.again(url, played.last[i :: len(urls)]) for i, url in enumerate(urls)]
            turns = await asyncio.gather(*lanes)
    return tuple(turn for lane in turns for turn in lane)


def client_with(key: str) -> httpx.AsyncClient:
    """One that shows this API key, if there is one."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(trust_env=False, headers=headers)


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

    async def lane(
        self, url: str, scripts: Sequence[Conversation], last: list[Asked]
    ) -> list[Turn]:
        """One replica's conversations, one after the other; `last` gets their last prompts."""
        return [turn for script in scripts for turn in await self._conversation(url, script, last)]

    async def again(self, url: str, prompts: Sequence[Asked]) -> list[Turn]:
        """One replica's prompts, after the restart."""
        turns = []
        for asked in prompts:
            warm, cold = await self._pair(url, asked.messages)
            turn = _turn(asked.title, asked.turn, asked.prompt_tokens, warm, cold)
            same = turn.identical and warm.text == asked.reply
            turns.append(dataclasses.replace(turn, identical=same, after_restart=True))
        return turns

    async def _conversation(self, url: str, script: Conversation, last: list[Asked]) -> list[Turn]:
        messages: list[Message] = [*opening(script)]
        turns: list[Turn] = []
        for number, following in enumerate([*script.questions[1:], ""], 1):
            before = turns[-1].prompt_tokens if turns else 0
            warm, cold = await self._pair(url, messages)
            turns.append(_turn(script.title, number, before, warm, cold))
            if not following:
                last.append(_asked(turns[-1], messages, warm.text))
            messages.append({"role": "assistant", "content": warm.text})
            messages.append({"role": "user", "content": following})
        return turns

    async def _pair(self, url: str, messages: Sequence[Message]) -> tuple[Answer, Answer]:
        """With the cache, then without."""
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
        return answers[0], answers[1]


def _turn(title: str, number: int, shared_tokens: int, warm: Answer, cold: Answer) -> Turn:
    return Turn(
        conversation=title,
        turn=number,
        prompt_tokens=warm.prompt_tokens,
        shared_tokens=shared_tokens,
        cached_tokens=warm.cached_tokens,
        ttft_warm_ms=warm.ttft_ms,
        ttft_cold_ms=cold.ttft_ms,
        identical=warm.text == cold.text,
    )


def _asked(turn: Turn, messages: Sequence[Message], reply: str) -> Asked:
    return Asked(
        title=turn.conversation,
        turn=turn.turn,
        messages=tuple(messages),
        prompt_tokens=turn.prompt_tokens,
        reply=reply,
    )
