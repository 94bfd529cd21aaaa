"""What to ask: conversations as pure data, drawn from one seed or given by a trace.

Refuses to hold text: a turn is a list of parts, each a name and a length in tokens, and becomes
text when it is sent. Equal names of equal length give equal text, so equal block ids of a trace
give equal prefixes. All words have three letters and a space: one token in the timed engine and
in nearly every BPE vocabulary; the service's `usage` is what the report counts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal

import numpy as np

from bul.cache.replay_trace import Trace
from bul.errors import ConfigError

__all__ = [
    "Arrival",
    "Conversation",
    "Lengths",
    "Part",
    "Synthetic",
    "Turn",
    "arrival_times",
    "at_times",
    "from_trace",
    "synthetic",
]

TOKENS_MAX = 1 << 20
TURNS_MAX = 100
_WORDS = np.array(
    [f"{a}{b}{c} ".encode() for a, b, c in itertools.product("bdfglmpt", "aeio", "bdgmnprt")],
    dtype="S4",
)
"""256 pronounceable words, one per byte."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """`tokens` words that depend on `name` alone."""

    name: str
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One user message, and the length of the reply asked for."""

    parts: tuple[Part, ...]
    output_tokens: int

    def text(self) -> str:
        return "".join(_words(part.name, part.tokens) for part in self.parts)

    @property
    def prompt_tokens(self) -> int:
        """About: as words, without the chat template and earlier turns."""
        return sum(part.tokens for part in self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns in order. at_s: intended start of the first one, seconds from the run's start.

    think_s: from the end of a reply to the next turn. system: the part all turns begin with.
    """

    at_s: float = 0.0
    turns: tuple[Turn, ...]
    think_s: float = 0.0
    system: Part | None = None

    def system_text(self) -> str:
        return "" if self.system is None else _words(self.system.name, self.system.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Token counts: `mean`, spread `cv` (0: all equal), by shape, held in [1, TOKENS_MAX]."""

    mean: float
    cv: float = 0.0
    shape: Literal["lognormal", "uniform"] = "lognormal"

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= TOKENS_MAX:
            raise ConfigError(f"mean tokens must be in [1, {TOKENS_MAX}], was {self.mean}")
        if not 0 <= self.cv <= 10:
            raise ConfigError(f"the spread of lengths must be in [0, 10], was {self.cv}")

    def draw(self, rng: random.Random) -> int:
        if self.cv == 0:
            return round(self.mean)
        if self.shape == "uniform":
            half = min(self.cv * math.sqrt(3.0), 1.0) * self.mean
            value = rng.uniform(self.mean - half, self.mean + half)
        else:
            sigma2 = math.log1p(self.cv**2)
            value = rng.lognormvariate(math.log(self.mean) - sigma2 / 2, math.sqrt(sigma2))
        return max(1, min(round(value), TOKENS_MAX))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """A made workload. shared_share: of requests that begin with one of `prefixes` prefixes of
    `shared_tokens` tokens, which come on top of the prompt. turns: of every conversation.
    """

    prompt: Lengths
    output: Lengths
    shared_share: float = 0.0
    shared_tokens: int = 0
    prefixes: int = 1
    turns: int = 1
    think_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value, most in (
            ("shared_share", self.shared_share, 1.0),
            ("shared_tokens", self.shared_tokens, TOKENS_MAX),
            ("think_s", self.think_s, 3600.0),
        ):
            if not 0 <= value <= most:
                raise ConfigError(f"{name} must be in [0, {most:g}], was {value}")
        if not 1 <= self.turns <= TURNS_MAX:
            raise ConfigError(f"turns must be in [1, {TURNS_MAX}], was {self.turns}")
        if not 1 <= self.prefixes <= 1 << 20:
            raise ConfigError(f"prefixes must be in [1, 1048576], was {self.prefixes}")


Arrival = tuple[float, Conversation]


def synthetic(spec: Synthetic, seed: int) -> Iterator[Conversation]:
    """Conversations without end; equal seeds give equal ones."""
    rng = random.Random(f"workload/{seed}")
    for number in itertools.count():
        system = None
        if spec.shared_tokens and rng.random() < spec.shared_share:
            chosen = rng.randrange(spec.prefixes)
            system = Part(name=f"{seed}/shared/{chosen}", tokens=spec.shared_tokens)
        turns = tuple(
            Turn(
                parts=(Part(name=f"{seed}/own/{number}/{turn}", tokens=spec.prompt.draw(rng)),),
                output_tokens=spec.output.draw(rng),
            )
            for turn in range(spec.turns)
        )
        yield Conversation(turns=turns, think_s=spec.think_s, system=system)


def arrival_times(rate: float, cv: float, seed: int) -> Iterator[float]:
    """Seconds of a renewal process without end: `rate` a second, gaps from a Gamma with `cv`.

    cv 1 is Poisson, 0 is a metronome, above 1 is bursty. Raises ConfigError.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"rate must be above 0, was {rate}")
    if not 0 <= cv <= 10:
        raise ConfigError(f"cv must be in [0, 10], was {cv}")
    return _renewal(rate, cv, random.Random(f"arrivals/{seed}"))


def _renewal(rate: float, cv: float, rng: random.Random) -> Iterator[float]:
    at_s = 0.0
    while True:
        yield at_s
        gap_s = 1.0 / rate
        at_s += gap_s if cv == 0 else rng.gammavariate(1 / cv**2, gap_s * cv**2)


def at_times(
    conversations: Iterable[Conversation], times: Iterable[float]
) -> Iterator[Conversation]:
    """The conversations, each starting at its time."""
    for conversation, at_s in zip(conversations, times, strict=False):
        yield dataclasses.replace(conversation, at_s=at_s)


def from_trace(
    trace: Trace, *, seed: int, time_scale: float = 1.0, length_scale: float = 1.0
) -> Iterator[Conversation]:
    """The trace's requests. time_scale 0.5 plays twice as fast; length_scale shortens each block
    and reply alike, so that equal prefixes stay equal. What follows the full blocks is unique.
    """
    for name, value, most in (("time_scale", time_scale, 1e6), ("length_scale", length_scale, 100)):
        if not (math.isfinite(value) and 0 <= value <= most):
            raise ConfigError(f"{name} must be in [0, {most:g}], was {value}")
    return _played(trace, seed, time_scale, length_scale)


def _played(
    trace: Trace, seed: int, time_scale: float, length_scale: float
) -> Iterator[Conversation]:
    block = max(1, round(trace.block_tokens * length_scale))
    for number, request in enumerate(trace.requests):
        rest = request.input_tokens - len(request.path) * trace.block_tokens
        tail = max(1, round(rest * length_scale))
        parts = [Part(name=f"{seed}/block/{key}", tokens=block) for key in request.path]
        parts.append(Part(name=f"{seed}/tail/{number}", tokens=tail))
        output = max(1, round(request.output_tokens * length_scale))
        turn = Turn(parts=tuple(parts), output_tokens=output)
        yield Conversation(at_s=request.at_s * time_scale, turns=(turn,))


@functools.lru_cache(maxsize=4096)
def _words(name: str, tokens: int) -> str:
    digest = blake2b(name.encode(), digest_size=16).digest()
    picks = np.frombuffer(random.Random(digest).randbytes(tokens), dtype=np.uint8)
    return _WORDS[picks].tobytes().decode("ascii")
