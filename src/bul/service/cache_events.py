"""The replica's side of block events: which texts' KV lies in RAM, numbered, for whoever follows.

Refuses to keep a text: it knows hints (`blocks/text_chain.py`) and block keys. Refuses to queue for
a slow follower too: each has a position in one bounded log, and gets a snapshot when it is too far
behind.

    note(text's hints, its block keys)   the service, when a prompt is tokenised
    stored / gone (block key)            the cache, under its lock, from any thread
    follow(...)                          one per router, as server-sent events

A hint covers the text's first bytes; which block completes them is taken in proportion, since a
chat template spreads evenly enough. Being one block off costs a router one wrong guess. Only RAM
counts: a disk folder is shared by a host's replicas, and so tells no difference between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import urllib.parse
from collections.abc import Sequence

from bul.blocks.block_events import BEAT_S, EventLine, OpsLog, encode_line
from bul.blocks.chain import block_keys, chain_root
from bul.blocks.text_chain import (
    FIRST_BYTES,
    chat_text,
    hinted_bytes,
    text_hints,
    text_root,
)
from bul.errors import InvalidRequest, Overloaded
from bul.inference.contract import ModelCore
from bul.service.asgi import Exchange
from bul.service.openai import Job

__all__ = ["FOLLOWERS_MAX", "HINTS_MAX", "BlockEvents"]

HINTS_MAX = 65_536
"""Hints of texts that are or may come into RAM; at a kilobyte each, 64 MB of text."""
FOLLOWERS_MAX = 32
DIGITS_MAX = 18
GATHER_S = 0.01
"""Operations of so long go into one line."""


class BlockEvents:
    """One per replica. `stored` and `gone` may come from any thread, the rest from the loop.

    secret: the key of the region's hints. hints_max: beyond it the oldest are not told about.
    """

    def __init__(self, *, secret: bytes = b"", hints_max: int = HINTS_MAX) -> None:
        self._secret = secret
        self._hints_max = hints_max
        self._lock = threading.Lock()
        self._log = OpsLog(secrets.token_hex(8))
        self._held_keys: set[bytes] = set()
        self._hints_of: dict[bytes, list[int]] = {}
        self._block_of: dict[int, tuple[bytes, int]] = {}  # the oldest first
        self.told: dict[int, int] = {}
        """What followers believe when they have read everything: hint -> cached tokens."""
        self._wakers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._closed = False
        self._root: bytes | None = None

    # What the service says.

    def note_job(
        self,
        job: Job,
        prompts: Sequence[Sequence[int]],
        *,
        core: ModelCore,
        salt: bytes,
        authorization: bytes,
    ) -> None:
        """A request's prompt was tokenised. Only a single text has hints."""
        if len(prompts) != 1:
            return
        text = chat_text([(message.role, message.content) for message in job.messages])
        if job.kind != "chat":
            text = job.prompts[0] if isinstance(job.prompts[0], str) else ""
        data = text.encode()
        if len(data) < FIRST_BYTES:
            return
        if self._root is None:
            self._root = core.identity.digest()
        hints = text_hints(text_root(job.model, authorization, self._secret), data)
        keys = block_keys(chain_root(self._root, salt), prompts[0], core.block_tokens)
        tokens = len(prompts[0])
        self.note(hints, len(data), tokens=tokens, keys=keys, block_tokens=core.block_tokens)

    def note(
        self,
        hints: Sequence[int],
        text_bytes: int,
        *,
        tokens: int,
        keys: Sequence[bytes],
        block_tokens: int,
    ) -> None:
        """A prompt of so many bytes and tokens has these hints, and its full blocks these keys.
        What of it is in RAM is told at once.
        """
        with self._lock:
            for count, hint in enumerate(hints, 1):
                covered = -(-tokens * hinted_bytes(count) // text_bytes)
                block = -(-covered // block_tokens) - 1
                if block >= len(keys):
                    break
                self._assign(hint, keys[block], covered)
            self._forget_oldest()
        self._wake()

    # What the cache says.

    def changed(self, key: bytes, stored: bool) -> None:
        """A block came into RAM or left it. Takes note and nothing else: a lock is held."""
        with self._lock:
            if stored:
                self._held_keys.add(key)
            else:
                self._held_keys.discard(key)
            hints = self._hints_of.get(key)
            if hints is None:
                return
            for hint in hints:
                if stored:
                    self._tell(hint, self._block_of[hint][1])
                else:
                    self._tell(hint, 0)
        self._wake()

    # What followers get.

    async def follow(self, exchange: Exchange) -> None:
        """Stream until the client leaves or `close`. Raises Overloaded beyond FOLLOWERS_MAX."""
        if len(self._wakers) >= FOLLOWERS_MAX or self._closed:
            raise Overloaded("too many follow this replica's events", retry_after_s=5.0)
        position = self._position(exchange.query)
        await exchange.while_connected(self._follow(exchange, position))

    async def _follow(self, exchange: Exchange, position: int) -> None:
        waker = asyncio.Event()
        self._wakers[waker] = asyncio.get_running_loop()
        try:
            await exchange.start_stream()
            while not self._closed:
                waker.clear()
                for line in self._lines(position):
                    await exchange.write(encode_line(line))
                    position = line.seq
                if position < self._log.seq:
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waker.wait(), BEAT_S)
                    await asyncio.sleep(GATHER_S)
            await exchange.end()
        finally:
            del self._wakers[waker]

    def close(self) -> None:
        """End all followers; they go elsewhere."""
        self._closed = True
        for waker in self._wakers:
            waker.set()

    def _position(self, query: bytes) -> int:
        """What the follower has seen of this life's numbers, -1 for nothing."""
        given = urllib.parse.parse_qs(query)
        epoch, after = given.get(b"epoch", [b""])[0], given.get(b"after", [b"0"])[0]
        if not after.isdigit() or len(after) > DIGITS_MAX:
            raise InvalidRequest("after must be a number", param="after", code="invalid_value")
        return int(after) if epoch == self._log.epoch.encode() else -1

    def _lines(self, position: int) -> list[EventLine]:
        with self._lock:
            line = self._log.line_after(position)
            return self._log.snapshot(self.told) if line is None else [line]

    # Under the lock.

    def _assign(self, hint: int, key: bytes, tokens: int) -> None:
        known = self._block_of.pop(hint, None)
        if known is not None and (known[0] == key or known[0] in self._held_keys):
            self._block_of[hint] = known  # now the youngest
            return
        if known is not None:
            self._unassign(hint, known[0])
        self._block_of[hint] = key, tokens
        self._hints_of.setdefault(key, []).append(hint)
        if key in self._held_keys:
            self._tell(hint, tokens)

    def _forget_oldest(self) -> None:
        while len(self._block_of) > self._hints_max:
            hint = next(iter(self._block_of))
            key, _ = self._block_of.pop(hint)
            self._unassign(hint, key)
            self._tell(hint, 0)

    def _unassign(self, hint: int, key: bytes) -> None:
        hints = self._hints_of[key]
        hints.remove(hint)
        if not hints:
            del self._hints_of[key]

    def _tell(self, hint: int, tokens: int) -> None:
        if self.told.get(hint, 0) == tokens:
            return
        if tokens:
            self.told[hint] = tokens
        else:
            del self.told[hint]
        self._log.add(hint, tokens)

    def _wake(self) -> None:
        for waker, loop in list(self._wakers.items()):
            if not waker.is_set():
                with contextlib.suppress(RuntimeError):  # the loop is closed: so is the follower
                    loop.call_soon_threadsafe(waker.set)
