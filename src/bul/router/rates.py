"""What a token and a request ahead cost in milliseconds, learned from answers' first bytes.

Refuses to trust few samples: it begins with a guess that counts as much as a few dozen answers,
and forgets old ones, so that it follows a change of model or of machines within some hundred.

    ms to the first byte = per_token * tokens to compute + per_request * requests ahead + rest

fitted by least squares with exponential forgetting; the rest (network, sampling, and the whole
decoding where an answer is not streamed) is fitted too, or it would be taken for work. With two
costs in one unit, a cached prefix and a shorter queue can be weighed against each other.
"""

from __future__ import annotations

__all__ = ["Rates"]

FORGET = 0.98
SAMPLE_EVERY = 4
"""One answer in so many is looked at: it keeps the arithmetic below 1 us a request."""
SOLVE_EVERY = 8
PER_TOKEN_MS = 0.5
PER_REQUEST_MS = 20.0
REST_MS = 20.0
PER_REQUEST_MS_MIN = 0.01
GUESSES = ((1000.0, 0.0), (0.0, 4.0), (0.0, 0.0), (1000.0, 4.0))
GUESS_WEIGHT = 8.0


class Rates:
    """`per_token_ms` and `per_request_ms` are for reading; `observe` may change them."""

    def __init__(self) -> None:
        self.per_token_ms = PER_TOKEN_MS
        self.per_request_ms = PER_REQUEST_MS
        self._seen = 0
        self._samples = 0
        self._sums = [0.0] * 9  # xx, xy, x, yy, y, 1, xt, yt, t
        for tokens, ahead in GUESSES:
            expected_ms = PER_TOKEN_MS * tokens + PER_REQUEST_MS * ahead + REST_MS
            self._add(tokens, ahead, expected_ms, weight=GUESS_WEIGHT)

    def observe(self, tokens: float, ahead: int, first_byte_ms: float) -> None:
        """One answer began: `tokens` were to compute, `ahead` requests were under way."""
        self._seen += 1
        if self._seen % SAMPLE_EVERY:
            return
        self._add(tokens, float(ahead), first_byte_ms, keep=FORGET)
        self._samples += 1
        if self._samples % SOLVE_EVERY == 0:
            self._solve()

    def _add(self, x: float, y: float, t: float, *, keep: float = 1.0, weight: float = 1.0) -> None:
        terms = (x * x, x * y, x, y * y, y, 1.0, x * t, y * t, t)
        self._sums = [
            keep * total + weight * term for total, term in zip(self._sums, terms, strict=True)
        ]

    def _solve(self) -> None:
        """The normal equations, centred on the means; keeps the old rates where the samples
        cannot tell (all of one length, or all of one load).
        """
        xx, xy, x, yy, y, n, xt, yt, t = self._sums
        cxx, cxy, cyy = xx - x * x / n, xy - x * y / n, yy - y * y / n
        cxt, cyt = xt - x * t / n, yt - y * t / n
        determinant = cxx * cyy - cxy * cxy
        if determinant <= 1e-6 * cxx * cyy or determinant <= 0:
            return
        self.per_token_ms = max((cxt * cyy - cyt * cxy) / determinant, 0.0)
        self.per_request_ms = max((cyt * cxx - cxt * cxy) / determinant, PER_REQUEST_MS_MIN)
