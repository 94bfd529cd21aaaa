"""The slots of one core and the requests in them: load, prefill in canonical cuts, decode, store.

Refuses to mix: a prefill call holds one block or tail of one request; decode tokens of all
generating requests share one call. An exception of the core ends the requests of that call only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from bul.blocks.chain import block_keys, chain_root
from bul.clock import Clock
from bul.errors import EngineFailed
from bul.inference.active import ActiveRequest
from bul.inference.batching import importable_blocks, next_in_turn, prefill_end
from bul.inference.contract import Delta, FinishReason, ModelCore
from bul.inference.counters import RunnerCounters, TokenRate
from bul.inference.fail_open import FailOpenCache
from bul.inference.outbox import Postman

__all__ = ["Batch"]


class Batch:
    """Works in the runner's thread. `retire` is called once for each request that ends here."""

    def __init__(
        self,
        core: ModelCore,
        cache: FailOpenCache,
        postman: Postman,
        counters: RunnerCounters,
        clock: Clock,
        *,
        cache_generated: bool,
        retire: Callable[[ActiveRequest], None],
    ) -> None:
        self._core: Final = core
        self._cache: Final = cache
        self._postman: Final = postman
        self._counters: Final = counters
        self._clock: Final = clock
        self._cache_generated: Final = cache_generated
        self._retire: Final = retire
        self._identity_digest = core.identity.digest()
        self._free = list(reversed(range(core.slots)))
        self._last_prefilled = -1
        self.running: dict[int, ActiveRequest] = {}
        self.prefill_rate = TokenRate()
        self.decode_rate = TokenRate()

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free)

    def keys(self, active: ActiveRequest, tokens: Sequence[int]) -> list[bytes]:
        """Keys of the full blocks of `tokens`, as this core and the request's salt make them."""
        root = chain_root(self._identity_digest, active.request.salt)
        return block_keys(root, tokens, self._core.block_tokens)

    def admit(self, active: ActiveRequest) -> None:
        """Give the request a slot and load what was matched. Needs a free slot."""
        slot = active.slot = self._free.pop()
        self.running[slot] = active
        active.admitted_s = self._clock.now_s()
        try:
            self._core.clear(slot)
            self._load(active, slot)
            active.imported_s = self._clock.now_s()
        except Exception as error:  # noqa: BLE001 - the loop outlives any fault of the core
            self.fail((active,), error)

    def leave(self, active: ActiveRequest) -> None:
        """Free the request's slot, if it has one."""
        if active.slot is None:
            return
        slot, active.slot = active.slot, None
        del self.running[slot]
        self._free.append(slot)
        try:
            self._core.clear(slot)
        except Exception:  # noqa: BLE001 - `admit` clears again, and fails its own request
            self._counters.core_errors_total += 1

    def keep_computed(self, active: ActiveRequest) -> None:
        """Store what a request that is given up has computed so far.

        Else a client that times out and asks again would start from nothing each time.
        """
        if active.slot is not None and active.is_prefilling and active.request.use_cache:
            computed = active.position // self._core.block_tokens
            self._set_blocks(active, active.slot, active.keys[:computed], active.stored_blocks)

    def prefill_one(self) -> None:
        """One call for the next prefilling request in turn; its first token when that was all."""
        slots = sorted(slot for slot, active in self.running.items() if active.is_prefilling)
        if not slots:
            return
        slot = self._last_prefilled = next_in_turn(slots, self._last_prefilled)
        active = self.running[slot]
        try:
            self._prefill(active, slot)
            if not active.is_prefilling:
                sampling, drawn = active.request.sampling, active.resumed_tokens
                self._core.start_sampling(slot, sampling, drawn)
                token = self._core.sample(slot)
                active.first_token_s = self._clock.now_s()
                self._step(active, slot, token, before_retiring=self._store_prompt)
        except Exception as error:  # noqa: BLE001 - the loop outlives any fault of the core
            self.fail((active,), error)

    def decode_all(self) -> None:
        """One token for each generating request, all in one call."""
        batch = [(slot, a) for slot, a in self.running.items() if not a.is_prefilling]
        if not batch:
            return
        started_s = self._clock.now_s()
        try:
            self._core.decode(
                [(slot, active.tokens[-1], active.position) for slot, active in batch]
            )
            # All are sampled before anything else happens in the core: logits live until then.
            tokens = [self._core.sample(slot) for slot, _ in batch]
            for (slot, active), token in zip(batch, tokens, strict=True):
                active.position += 1
                self._step(active, slot, token, before_retiring=self._store_generated)
        except Exception as error:  # noqa: BLE001 - the loop outlives any fault of the core
            self.fail([active for _, active in batch], error)
        self._counters.decode_steps_total += 1
        self.decode_rate.add(len(batch), self._clock.now_s() - started_s)

    def fail(self, requests: Iterable[ActiveRequest], error: Exception) -> None:
        """End the requests with an error that says what the core said."""
        self._counters.core_errors_total += 1
        for active in requests:
            if not active.done:
                failure = EngineFailed(
                    f"the {self._core.engine_name} engine failed: {error!r}",
                    hint="the request may be sent again; other requests were not affected",
                )
                failure.__cause__ = error
                self._postman.post(active.outbox, failure)
                self._retire(active)

    def _load(self, active: ActiveRequest, slot: int) -> None:
        """Import [0, cached); on any doubt import nothing and recompute."""
        if active.match is None:
            return
        blocks = self._cache.blocks(active.match)
        block_tokens = self._core.block_tokens
        cached = importable_blocks(active.prompt_tokens, block_tokens, len(blocks))
        cached_tokens = cached * block_tokens
        try:
            if cached:
                self._core.import_blocks(slot, blocks[:cached], active.tokens[:cached_tokens])
        except Exception:  # noqa: BLE001 - blocks that cannot be imported are a miss
            self._counters.cache_errors_total += 1
            self._core.clear(slot)
            return
        active.position = active.cached_tokens = cached_tokens
        active.stored_blocks = len(blocks)
        self._counters.cached_tokens_total += cached_tokens

    def _prefill(self, active: ActiveRequest, slot: int) -> None:
        start = active.position
        end = prefill_end(start, active.prompt_tokens, self._core.block_tokens)
        started_s = self._clock.now_s()
        self._core.prefill(slot, active.tokens[start:end], start)
        seconds = self._clock.now_s() - started_s
        active.position = end
        active.prefill_s += seconds
        self.prefill_rate.add(end - start, seconds)
        self._counters.prefill_tokens_total += end - start

    def _step(
        self,
        active: ActiveRequest,
        slot: int,
        token: int,
        *,
        before_retiring: Callable[[ActiveRequest, int, FinishReason | None], None],
    ) -> None:
        """Take the next token, send what can be sent, store, and let a finished request go."""
        delta = self._delta(active, token)
        if delta.text or delta.finish_reason:
            self._postman.post(active.outbox, delta)
        before_retiring(active, slot, delta.finish_reason)
        if delta.finish_reason:
            self._retire(active)

    def _delta(self, active: ActiveRequest, token: int) -> Delta:
        text, reason = "", None
        if self._core.is_end(token):
            reason, text = _STOP, active.text.finish()
        else:
            active.tokens.append(token)
            self._counters.output_tokens_total += 1
            text = active.text.push(self._core.token_bytes(token))
            if active.text.stopped:
                reason = _STOP
            elif active.output_tokens >= active.max_tokens:
                reason, text = _LENGTH, text + active.text.finish()
        tokens: tuple[int, ...] = ()
        if text or reason:
            tokens, active.posted = tuple(active.tokens[active.posted :]), len(active.tokens)
        return Delta(
            text=text,
            output_tokens=active.output_tokens,
            cached_tokens=min(active.cached_tokens, active.prompt_tokens - active.resumed_tokens),
            finish_reason=reason,
            tokens=tokens,
        )

    def _store_prompt(self, active: ActiveRequest, slot: int, reason: FinishReason | None) -> None:
        """Keep the prompt's new full blocks.

        The first token leaves before: on a real model this may take a tenth of a second.
        """
        self._postman.flush()
        if not active.request.use_cache:
            return
        computed = active.prompt_tokens - active.cached_tokens
        self._cache.observe_prefill(computed, active.prefill_s)
        self._set_blocks(active, slot, active.keys, active.stored_blocks)
        if active.match is not None:
            self._cache.release(active.match)
            active.match = None
        self._store_generated(active, slot, reason)

    def _store_generated(
        self, active: ActiveRequest, slot: int, reason: FinishReason | None
    ) -> None:
        """At the end, and if asked for, keep the blocks that decoded tokens completed."""
        if reason is None or not self._cache_generated or not active.request.use_cache:
            return
        keys = self.keys(active, active.tokens[: active.position])
        self._set_blocks(active, slot, keys, len(active.keys))

    def _set_blocks(
        self, active: ActiveRequest, slot: int, keys: Sequence[bytes], first: int
    ) -> None:
        if first >= len(keys):
            return
        span = active.request.facts.span
        started_s = self._clock.now_s() if span is not None else 0.0
        try:
            blocks = self._core.export_blocks(slot, first, len(keys))
        except Exception:  # noqa: BLE001 - a reply does not depend on keeping its blocks
            self._counters.core_errors_total += 1
            return
        self._cache.set_blocks(keys, first, blocks, active.request.facts)
        self._counters.blocks_stored_total += len(blocks)
        if span is not None:
            stored = {"bul.blocks": len(blocks), "bul.bytes": len(blocks) * self._core.block_bytes}
            span.add("bul.cache.store", started_s, self._clock.now_s(), stored)


_STOP: Final[FinishReason] = "stop"
_LENGTH: Final[FinishReason] = "length"
