"""One continuous-batching replica in virtual time, the model that the simulator works on.

It mirrors the runner: each loop turn computes one prefill chunk and then one token of every
running sequence. Between two events (an arrival, a prefill done, a reply done) all rates are
constant, so nothing happens per token:

    decode_s      = decode_base + decode_each * running + decode_context * (their tokens so far)
    turn_s        = chunk / prefill_rate + decode_s
    prefill speed = chunk / turn_s tokens/s, shared by `prefills_together` prompts, the others wait
    decode speed  = 1 / turn_s tokens/s for each running sequence

Worked number (profile `8b`): 15 running, a prompt of 1,000 tokens in prefill: a turn is
1000/15,000 + 0.025 + 15 * 0.001 = 107 ms, so the prompt takes 107 ms and each reply gets 9.4
tokens/s meanwhile, 25 otherwise. A prompt is cut into equal chunks: one of 2,100 tokens takes two
turns of 1,050, as it does when it is cut into 2,048 and 52. A sequence counts with its prompt and
half its reply from begin to end: what it has on average.

A reply of `out` tokens is done when the replica's cumulative tokens per sequence, `decoded`, has
grown by `out`; a prompt, when `prefilled` has grown by its tokens. Two heaps of those marks per
replica replace an event per token.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Mapping

import msgspec

from bul.errors import ConfigError
from bul.simulator.job import Job
from bul.simulator.prefixes import PrefixCache

__all__ = ["PROFILES", "ReplicaModel", "ReplicaProfile", "profile_of"]


_POSITIVE = (
    "prefill_tokens_per_s", "decode_base_s", "slots", "chunk_tokens", "prefills_together",
)  # fmt: skip

DUE = 1e-6
"""Tokens by which a mark may be missed: sums of floats do not hit it exactly."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaProfile:
    """Rates of one replica. measured: whether they come from `bul bench` or are round numbers.

    prefill_tokens_per_s: alone, at the start of a prompt; the token at depth d costs
    (1 + prefill_growth * d) times the first one. decode_base_s, decode_each_s, decode_context_s:
    one decode call, what every sequence in it adds, and what every token of theirs does, whose KV
    attention reads. chunk_tokens: prefill tokens per turn. cache_tokens: KV it can keep.
    overhead_s: of the first token, whatever the prompt.
    prefills_together: prompts that take turns; 1 is first come, first served.
    """

    name: str
    prefill_tokens_per_s: float
    decode_base_s: float
    decode_each_s: float
    slots: int
    chunk_tokens: int
    cache_tokens: int
    overhead_s: float = 0.0
    prefill_growth: float = 0.0
    decode_context_s: float = 0.0
    prefills_together: int = 1
    measured: bool = False

    def decode_s(self, running: float, context_tokens: float) -> float:
        """One decode call of so many sequences, which have `context_tokens` tokens together."""
        return (
            self.decode_base_s
            + self.decode_each_s * running
            + self.decode_context_s * context_tokens
        )

    def output_tokens_per_s(self, context_tokens: float) -> float:
        """Of a replica that decodes with all its slots, each so many tokens deep, and prefills
        nothing.
        """
        return self.slots / self.decode_s(self.slots, self.slots * context_tokens)

    def idle_ttft_s(self, prompt_tokens: float) -> float:
        """Time to the first token of such a prompt when nothing else runs."""
        return self.overhead_s + self.work(0.0, prompt_tokens) / self.prefill_tokens_per_s

    def work(self, cached: float, end: float) -> float:
        """What tokens [cached, end) of a prompt cost, in tokens at the start of a prompt."""
        return (end - cached) * (1.0 + self.prefill_growth * (end + cached) / 2.0)

    def __post_init__(self) -> None:
        for field in _POSITIVE:
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"profile {self.name}: {field} must be above 0, was {value}")


PROFILES = {
    "embedded": ReplicaProfile(
        name="embedded",
        prefill_tokens_per_s=179.0,
        prefill_growth=0.00035,
        decode_base_s=7e-5,
        decode_each_s=0.0124,
        decode_context_s=9.9e-6,
        slots=4,
        chunk_tokens=64,
        cache_tokens=262_144,
        overhead_s=0.0034,
        prefills_together=4,
        measured=True,
    ),
    "8b": ReplicaProfile(
        name="8b",
        prefill_tokens_per_s=15_000.0,
        decode_base_s=0.025,
        decode_each_s=0.001,
        slots=16,
        chunk_tokens=2048,
        cache_tokens=400_000,
    ),
    "70b": ReplicaProfile(
        name="70b",
        prefill_tokens_per_s=15_000.0,
        decode_base_s=0.040,
        decode_each_s=0.0015,
        slots=16,
        chunk_tokens=2048,
        cache_tokens=600_000,
    ),
}
"""`embedded`: the mean of two runs of `bul bench URL --profile-out` against `bul serve --threads 1`
with the built-in model, on a shared 2-core machine (182 and 176 tokens/s, growth 0.00035 and
0.00034, 12.2 and 12.6 ms a sequence, 9.8 and 9.9 us a token of context, 6.8 and 0 ms; residuals 0.8
and 1.4 % of TTFT, 1.2 % of decode). Some days it is a third faster. `cache_tokens` is the default
of `[cache] max_tokens`. The others are round numbers, not measurements, and deep sequences cost
them nothing more: an 8B model on one mid-range GPU, 70B on four."""


def profile_of(values: Mapping[str, object], name: str) -> ReplicaProfile:
    """A profile from a parsed file: the fields of `ReplicaProfile`. Raises ConfigError."""
    known = {field.name for field in dataclasses.fields(ReplicaProfile)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"profile {name}: unknown field {unknown[0]}; known: {sorted(known)}")
    try:
        return msgspec.convert({"name": name, **values}, ReplicaProfile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"profile {name}: {error}") from error


class ReplicaModel:
    """State of one replica. The caller keeps time: `advance(now)` before any change."""

    __slots__ = (
        "_cache",
        "_chunks",
        "_computing",
        "_context",
        "_decode_rate",
        "_decoded",
        "_first_tokens",
        "_prefill_rate",
        "_prefilled",
        "_queued",
        "_running",
        "_sequence",
        "busy_s",
        "in_flight",
        "now_s",
        "profile",
        "waiting",
    )

    def __init__(
        self, profile: ReplicaProfile, now_s: float, cache: PrefixCache | None = None
    ) -> None:
        self.profile = profile
        self._cache = cache
        self.now_s = now_s
        self.busy_s = 0.0
        self.in_flight = 0
        self.waiting: deque[Job] = deque()  # without a slot
        self._queued: deque[Job] = deque()  # with a slot, prefill not begun
        self._computing: list[tuple[float, int, Job, float]] = []
        self._running: list[tuple[float, int, Job]] = []
        self._first_tokens: list[Job] = []
        self._prefilled = self._decoded = 0.0
        self._chunks = 0.0
        self._context = 0.0  # tokens of all that decode
        self._sequence = 0
        self._prefill_rate = self._decode_rate = 0.0

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return self.in_flight - len(self.waiting)

    def advance(self, now_s: float) -> None:
        """Let virtual time pass to `now_s`; it must not lie beyond `next_event_s()`."""
        elapsed_s = now_s - self.now_s
        if elapsed_s > 0.0 and self.in_flight:
            self.busy_s += elapsed_s
            self._decoded += self._decode_rate * elapsed_s
            self._prefilled += self._prefill_rate * elapsed_s
        self.now_s = now_s

    def next_event_s(self) -> float:
        """When the next prefill or reply is done; inf when idle."""
        soonest_s = math.inf
        if self._computing:
            soonest_s = (self._computing[0][0] - self._prefilled) / self._prefill_rate
        if self._running:
            left_s = (self._running[0][0] - self._decoded) / self._decode_rate
            soonest_s = min(soonest_s, left_s)
        return self.now_s + max(soonest_s, 0.0)

    def submit(self, job: Job) -> None:
        """A request arrives (after `advance`)."""
        self.waiting.append(job)
        self.in_flight += 1
        self._admit()

    def finish_due(self) -> list[Job]:
        """Complete what is due at `now_s` (after `advance`); returns the replies that ended."""
        done: list[Job] = []
        while self._computing and self._computing[0][0] - self._prefilled <= DUE:
            _, _, job, chunk = heapq.heappop(self._computing)
            self._chunks -= chunk
            self._start_decoding(job, done)
        while self._running and self._running[0][0] - self._decoded <= DUE:
            job = heapq.heappop(self._running)[2]
            self._context -= job.context_tokens
            self._end(job, done)
        self._admit()
        return done

    def take_first_tokens(self) -> list[Job]:
        """Requests whose first token came out since the last call."""
        jobs, self._first_tokens = self._first_tokens, []
        return jobs

    def drop_all(self) -> list[Job]:
        """The replica dies: everything in it, without results."""
        jobs = [*self.waiting, *self._queued, *(entry[2] for entry in self._computing)]
        jobs += [entry[2] for entry in self._running]
        for held in (self.waiting, self._queued, self._computing, self._running):
            held.clear()
        self.in_flight, self._chunks, self._context = 0, 0.0, 0.0
        self._set_rates()
        return jobs

    def _start_decoding(self, job: Job, done: list[Job]) -> None:
        job.first_token_s = self.now_s + self.profile.overhead_s
        if self._cache is not None:
            self._cache.store(job, self.now_s)
        self._first_tokens.append(job)
        if job.output_tokens <= 1:
            self._end(job, done)
            return
        self._sequence += 1
        mark = self._decoded + job.output_tokens - 1
        self._context += job.context_tokens
        heapq.heappush(self._running, (mark, self._sequence, job))

    def _end(self, job: Job, done: list[Job]) -> None:
        job.done_s = self.now_s
        self.in_flight -= 1
        done.append(job)
        if self._cache is not None:
            self._cache.finish(job)

    def _admit(self) -> None:
        waiting, profile = self.waiting, self.profile
        while waiting and self.in_flight - len(waiting) < profile.slots:
            job = waiting.popleft()
            job.started_s = self.now_s
            self._queued.append(job)
        while self._queued and len(self._computing) < profile.prefills_together:
            self._begin(self._queued.popleft())
        self._set_rates()

    def _begin(self, job: Job) -> None:
        """The prompt's turn: what is cached is known now, the rest is cut into equal chunks."""
        if self._cache is not None:
            self._cache.match(job)
        work = self.profile.work(job.cached_tokens, job.prompt_tokens)
        chunk = work / math.ceil(job.prefill_tokens / self.profile.chunk_tokens)
        self._chunks += chunk
        self._sequence += 1
        heapq.heappush(self._computing, (self._prefilled + work, self._sequence, job, chunk))

    def _set_rates(self) -> None:
        profile, running, computing = self.profile, len(self._running), len(self._computing)
        turn_s = profile.decode_s(running, self._context) if running else 0.0
        if computing:
            chunk = self._chunks / computing
            turn_s += chunk / profile.prefill_tokens_per_s
            self._prefill_rate = chunk / turn_s / computing
        else:
            self._prefill_rate = self._prefilled = self._chunks = 0.0
        self._decode_rate = 1.0 / turn_s if running else 0.0
