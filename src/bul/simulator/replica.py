"""One continuous-batching replica in virtual time, the model that the simulator works on.

It mirrors the runner: each loop turn computes one prefill chunk and then one token of every
running sequence. Between two events (an arrival, a prefill done, a reply done) all rates are
constant, so nothing happens per token:

    turn_s        = chunk / prefill_rate + (decode_base + decode_each * running)
    prefill speed = chunk / turn_s tokens/s, first come first served
    decode speed  = 1 / turn_s tokens/s for each running sequence

Worked number (profile `8b`): 15 running, a prompt of 1,000 tokens in prefill: a turn is
1000/15,000 + 0.025 + 15 * 0.001 = 107 ms, so the prompt takes 107 ms and each reply gets 9.4
tokens/s meanwhile, 25 otherwise.

A reply of `out` tokens is done when the replica's cumulative tokens per sequence, `virtual`, has
grown by `out`; one heap of those marks per replica replaces an event per token.
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaProfile:
    """Rates of one replica. measured: whether they come from `bul bench` or are round numbers.

    prefill_tokens_per_s: alone. decode_base_s, decode_each_s: one decode call, and what every
    sequence in it adds. chunk_tokens: prefill tokens per turn. cache_tokens: KV it can keep.
    """

    name: str
    prefill_tokens_per_s: float
    decode_base_s: float
    decode_each_s: float
    slots: int
    chunk_tokens: int
    cache_tokens: int
    overhead_s: float = 0.0
    measured: bool = False

    @property
    def output_tokens_per_s(self) -> float:
        """Of a replica that decodes with all its slots and prefills nothing."""
        return self.slots / (self.decode_base_s + self.decode_each_s * self.slots)

    def idle_ttft_s(self, prompt_tokens: float) -> float:
        """Time to the first token of such a prompt when nothing else runs."""
        return self.overhead_s + prompt_tokens / self.prefill_tokens_per_s

    def __post_init__(self) -> None:
        for field in ("prefill_tokens_per_s", "decode_base_s", "slots", "chunk_tokens"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"profile {self.name}: {field} must be above 0, was {value}")


PROFILES = {
    "embedded": ReplicaProfile(
        name="embedded",
        prefill_tokens_per_s=150.0,
        decode_base_s=0.027,
        decode_each_s=0.0033,
        slots=4,
        chunk_tokens=64,
        cache_tokens=16_384,
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
"""`embedded`: rounded from figures of a 2-core machine, not fitted by `bul bench --profile-out`
(prefill 134-173 tokens/s on 2 threads, decode 31-35 alone and 99.5 for four together). The others
are round numbers, not measurements: an 8B model on one mid-range GPU, 70B on four."""


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
        "_decode_rate",
        "_first_tokens",
        "_prefill_left",
        "_prefill_rate",
        "_prefilling",
        "_running",
        "_sequence",
        "_virtual",
        "busy_s",
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
        self.waiting: deque[Job] = deque()
        self._prefilling: deque[Job] = deque()
        self._prefill_left = 0.0
        self._running: list[tuple[float, int, Job]] = []
        self._first_tokens: list[Job] = []
        self._virtual = 0.0
        self._sequence = 0
        self._prefill_rate = 0.0
        self._decode_rate = 0.0

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running) + len(self._prefilling)

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._prefilling) + len(self.waiting)

    def advance(self, now_s: float) -> None:
        """Let virtual time pass to `now_s`; it must not lie beyond `next_event_s()`."""
        elapsed_s = now_s - self.now_s
        if elapsed_s > 0.0:
            if self._running or self._prefilling:
                self.busy_s += elapsed_s
            self._virtual += self._decode_rate * elapsed_s
            self._prefill_left -= self._prefill_rate * elapsed_s
        self.now_s = now_s

    def next_event_s(self) -> float:
        """When the next prefill or reply is done; inf when idle."""
        soonest_s = math.inf
        if self._prefilling:
            soonest_s = max(self._prefill_left, 0.0) / self._prefill_rate
        if self._running:
            left = max(self._running[0][0] - self._virtual, 0.0)
            soonest_s = min(soonest_s, left / self._decode_rate)
        return self.now_s + soonest_s

    def submit(self, job: Job) -> None:
        """A request arrives (after `advance`)."""
        self.waiting.append(job)
        self._admit()

    def finish_due(self) -> list[Job]:
        """Complete what is due at `now_s` (after `advance`); returns the replies that ended."""
        done: list[Job] = []
        if self._prefilling and self._prefill_left <= 1e-6:
            self._start_decoding(self._prefilling.popleft(), done)
            self._take_head()
        while self._running and self._running[0][0] - self._virtual <= 1e-6:
            self._end(heapq.heappop(self._running)[2], done)
        self._admit()
        return done

    def take_first_tokens(self) -> list[Job]:
        """Requests whose first token came out since the last call."""
        jobs, self._first_tokens = self._first_tokens, []
        return jobs

    def drop_all(self) -> list[Job]:
        """The replica dies: everything in it, without results."""
        jobs = [*self.waiting, *self._prefilling, *(entry[2] for entry in self._running)]
        self.waiting.clear()
        self._prefilling.clear()
        self._running.clear()
        self._prefill_left = 0.0
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
        mark = self._virtual + job.output_tokens - 1
        heapq.heappush(self._running, (mark, self._sequence, job))

    def _end(self, job: Job, done: list[Job]) -> None:
        job.done_s = self.now_s
        done.append(job)
        if self._cache is not None:
            self._cache.finish(job)

    def _take_head(self) -> None:
        self._prefill_left = 0.0
        if self._prefilling:
            if self._cache is not None:
                self._cache.match(self._prefilling[0])
            self._prefill_left = float(self._prefilling[0].prefill_tokens)

    def _admit(self) -> None:
        slots = self.profile.slots
        while self.waiting and len(self._running) + len(self._prefilling) < slots:
            job = self.waiting.popleft()
            job.started_s = self.now_s
            self._prefilling.append(job)
            if len(self._prefilling) == 1:
                self._take_head()
        self._set_rates()

    def _set_rates(self) -> None:
        profile, running = self.profile, len(self._running)
        turn_s = profile.decode_base_s + profile.decode_each_s * running if running else 0.0
        if self._prefilling:
            # A short prompt's only chunk is shorter: its turn must not cost a whole chunk.
            chunk = min(profile.chunk_tokens, max(self._prefilling[0].prefill_tokens, 1))
            turn_s += chunk / profile.prefill_tokens_per_s
            self._prefill_rate = chunk / turn_s
        else:
            self._prefill_rate = 0.0
        self._decode_rate = 1.0 / turn_s if running else 0.0
