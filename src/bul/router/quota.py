"""How much each key may ask for: requests and tokens a minute, and how urgent its requests may be.

Refuses to know keys: the wiring says whose an Authorization header is. A token bucket each, a
minute deep; tokens are charged as estimated when a request comes (the prompt, and what the answer
may at most have) and corrected when the answer says what it was. Who asks for more than a minute
gives is served from a full bucket, and then waits until the debt is paid off. Each router process
counts what goes through itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

from bul.config import PRIORITIES, KeyLimits
from bul.router.http1 import Request
from bul.router.prompt import Prompt

__all__ = [
    "NOBODY",
    "Charge",
    "Flow",
    "OverLimit",
    "Quotas",
    "TenantOf",
    "estimated_tokens",
    "priority_of",
]

TenantOf = Callable[[Iterable[tuple[bytes, bytes]]], str | None]

OUTPUT_TOKENS_GUESS = 256
"""Of an answer whose request does not say how long it may be."""
KNOWN_MAX = 4096
KNOWN_S = 10.0
"""A header's owner is asked for again after so long: keys come and go."""
MINUTE_S = 60.0
HEADER = b"x-bul-priority"
_USAGE = re.compile(rb'"prompt_tokens":\s*(\d{1,12}),\s*"completion_tokens":\s*(\d{1,12})')
_KEPT_BYTES = 2048
"""Of the end of an answer, where its usage is."""


class OverLimit(Exception):
    """A key has used what a minute gives it. `retry_after_s`: whole seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def estimated_tokens(prompt: Prompt) -> float:
    """Of the prompt and of the longest answer that it may get."""
    return prompt.tokens + (prompt.max_tokens or OUTPUT_TOKENS_GUESS)


class _Bucket:
    """Fills with a 60th of `per_minute` a second; never above `per_minute`."""

    __slots__ = ("_at_s", "_level", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = 0.0

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until there is enough for `amount`, or all that there can be; 0 if there is."""
        filled = self._level + max(now_s - self._at_s, 0.0) * self.per_minute / MINUTE_S
        self._level, self._at_s = min(filled, float(self.per_minute)), now_s
        missing = min(amount, self.per_minute) - self._level
        return max(missing, 0.0) * MINUTE_S / self.per_minute

    def take(self, amount: float) -> None:
        self._level = min(self._level - amount, float(self.per_minute))


class Flow:
    """One key's part of the traffic. `served` is in tokens, of what waited in line."""

    __slots__ = ("limits", "name", "requests", "served", "tokens")

    def __init__(self, name: str, limits: KeyLimits) -> None:
        self.name = name
        self.limits = limits
        self.requests = _Bucket(limits.requests_per_minute)
        self.tokens = _Bucket(limits.tokens_per_minute)
        self.served = 0.0


NOBODY = Flow("", KeyLimits())


class Charge:
    """What one request was charged, until its answer says what it cost."""

    __slots__ = ("_end", "_estimate", "_flow")

    def __init__(self, flow: Flow, estimate: float) -> None:
        self._flow = flow
        self._estimate = estimate
        self._end = b""

    def saw(self, data: bytes) -> None:
        """More of the answer."""
        self._end = (self._end + data[-_KEPT_BYTES:])[-_KEPT_BYTES:]

    def settle(self) -> None:
        """The answer is whole; without usage in it the estimate stands."""
        every = list(_USAGE.finditer(self._end))
        if every:
            found = every[-1]  # a text could hold another one
            self._flow.tokens.take(int(found[1]) + int(found[2]) - self._estimate)


class Quotas:
    """limits: by the key's name. tenant_of: the name for a request's headers, None if unknown."""

    def __init__(self, limits: Mapping[str, KeyLimits], tenant_of: TenantOf) -> None:
        self._limits = dict(limits)
        self._tenant_of = tenant_of
        self._flows: dict[str, Flow] = {}
        self._known: dict[bytes, tuple[Flow, float]] = {}
        self.limits_at_all = bool(limits)

    def flow_of(self, request: Request, now_s: float) -> Flow:
        """Whose request it is; all that nobody knows are one."""
        if len(request.authorization) != 1:
            return NOBODY
        header = request.authorization[0]
        known = self._known.get(header)
        if known is not None and known[1] > now_s:
            return known[0]
        name = self._tenant_of([(b"authorization", header)])
        if not name:
            return NOBODY
        flow = self._flows.get(name)
        if flow is None:
            flow = self._flows[name] = Flow(name, self._limits.get(name, KeyLimits()))
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[header] = flow, now_s + KNOWN_S
        return flow

    def admit(self, request: Request, prompt: Prompt, now_s: float) -> Charge | None:
        """Count the request in; what was charged, if its key has a limit of tokens. Raises
        OverLimit. May lower the request's priority to what its key may have.
        """
        flow = self.flow_of(request, now_s)
        limits = flow.limits
        if limits.priority != PRIORITIES[0]:
            _lower_priority(request, limits.priority)
        if limits.requests_per_minute:
            self._check(flow, flow.requests, 1.0, "requests", now_s)
        if limits.tokens_per_minute:
            self._check(flow, flow.tokens, estimated_tokens(prompt), "tokens", now_s)
        if limits.requests_per_minute:
            flow.requests.take(1.0)
        if not limits.tokens_per_minute:
            return None
        estimate = estimated_tokens(prompt)
        flow.tokens.take(estimate)
        return Charge(flow, estimate)

    def _check(self, flow: Flow, bucket: _Bucket, amount: float, what: str, now_s: float) -> None:
        wait_s = bucket.wait_s(amount, now_s)
        if wait_s > 0:
            seconds = max(1, math.ceil(wait_s))
            message = (
                f"key {flow.name!r} may use {bucket.per_minute} {what} a minute; "
                f"this request fits in {seconds} s"
            )
            raise OverLimit(message, seconds)


def priority_of(request: Request) -> int:
    """0 for interactive, 1 for batch, 2 for prefetch. A word that is none of them gets its 400
    from the replica; until then it is interactive.
    """
    for line in request.lines:
        if line[: len(HEADER) + 1].lower() == HEADER + b":":
            word = line[len(HEADER) + 1 :].strip().lower().decode("latin-1")
            return PRIORITIES.index(word) if word in PRIORITIES else 0
    return 0


def _lower_priority(request: Request, best: str) -> None:
    if priority_of(request) >= PRIORITIES.index(best):
        return
    size = len(HEADER) + 1
    kept = [line for line in request.lines if line[:size].lower() != HEADER + b":"]
    request.lines = [*kept, b"%b: %b\r\n" % (HEADER, best.encode())]
