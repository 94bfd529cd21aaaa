"""Arrivals for the simulator: read from traces, or drawn from rate windows with one seed.

Refuses to invent silently: what is drawn (single arrivals inside a window, lengths around a
mean) is drawn by the rule written at its function, from the seed that the caller names.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bul.errors import ConfigError

__all__ = ["Arrivals", "RateWindows", "draw", "read_azure", "read_windows"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LENGTH_CV = 0.7
"""Spread of drawn lengths, assumed: log-normal around a mean (the traces give means only)."""

CV_MAX = 4.0
"""Burstiness is capped here, as in the figures of the notes that ours are compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """Requests in time order. Arrays of one length: seconds, prompt tokens, output tokens."""

    at_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints

    def __len__(self) -> int:
        return len(self.at_s)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RateWindows:
    """Rates of a long stretch, in windows of `window_s`. Arrays of one length."""

    window_s: float
    at_s: Floats
    requests_per_second: Floats
    cv: Floats
    prompt_tokens_mean: Floats
    output_tokens_mean: Floats

    def between(self, start_s: float, end_s: float) -> RateWindows:
        """The windows that start in [start_s, end_s)."""
        keep = (self.at_s >= start_s) & (self.at_s < end_s)
        return RateWindows(
            window_s=self.window_s,
            at_s=self.at_s[keep],
            requests_per_second=self.requests_per_second[keep],
            cv=self.cv[keep],
            prompt_tokens_mean=self.prompt_tokens_mean[keep],
            output_tokens_mean=self.output_tokens_mean[keep],
        )


def draw(windows: RateWindows, index: int, scale: float, rng: np.random.Generator) -> Arrivals:
    """One window's requests at `scale` times its rate.

    Arrivals: a Gamma renewal process with the window's rate and coefficient of variation.
    Lengths: log-normal with the window's mean and LENGTH_CV, at least 1. Changes only `rng`.
    """
    rate = float(windows.requests_per_second[index]) * scale
    start_s = float(windows.at_s[index])
    if rate <= 0.0:
        empty = np.empty(0)
        return Arrivals(
            at_s=empty, prompt_tokens=empty.astype(np.int64), output_tokens=empty.astype(np.int64)
        )
    shape = 1.0 / min(max(float(windows.cv[index]), 0.1), CV_MAX) ** 2
    expected = rate * windows.window_s
    gaps: list[Floats] = []
    reached_s = 0.0
    while reached_s < windows.window_s:
        gap = rng.gamma(shape, 1.0 / (rate * shape), size=int(expected * 0.3) + 64)
        gaps.append(gap)
        reached_s += float(gap.sum())
    at_s = np.cumsum(np.concatenate(gaps))
    at_s = at_s[at_s < windows.window_s]
    return Arrivals(
        at_s=start_s + at_s,
        prompt_tokens=_lengths(float(windows.prompt_tokens_mean[index]), len(at_s), rng),
        output_tokens=_lengths(float(windows.output_tokens_mean[index]), len(at_s), rng),
    )


def _lengths(mean: float, count: int, rng: np.random.Generator) -> Ints:
    sigma2 = np.log1p(LENGTH_CV**2)
    drawn = rng.lognormal(np.log(max(mean, 1.0)) - sigma2 / 2, np.sqrt(sigma2), size=count)
    return np.maximum(np.rint(drawn), 1).astype(np.int64)


def read_windows(path: Path) -> RateWindows:
    """A CSV of t_s, requests_per_second, cv, clients, tokens_in_mean, tokens_out_mean."""
    rows = _rows(path)
    try:
        table = np.array(
            [
                [
                    float(row["t_s"]),
                    float(row["requests_per_second"]),
                    float(row["cv"]),
                    float(row["tokens_in_mean"]),
                    float(row["tokens_out_mean"]),
                ]
                for row in rows
            ]
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: not a table of rate windows: {error}") from error
    if len(table) < 2:
        raise ConfigError(f"{path}: needs at least two windows, has {len(table)}")
    return RateWindows(
        window_s=float(table[1, 0] - table[0, 0]),
        at_s=table[:, 0],
        requests_per_second=table[:, 1],
        cv=table[:, 2],
        prompt_tokens_mean=table[:, 3],
        output_tokens_mean=table[:, 4],
    )


def read_azure(path: Path) -> Arrivals:
    """The Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens."""
    rows = _rows(path)
    try:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        prompt = [int(row["ContextTokens"]) for row in rows]
        output = [int(row["GeneratedTokens"]) for row in rows]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: not an Azure inference trace: {error}") from error
    at_s = np.array(times)
    return Arrivals(
        at_s=at_s - (at_s[0] if len(at_s) else 0.0),
        prompt_tokens=np.maximum(np.array(prompt, dtype=np.int64), 1),
        output_tokens=np.maximum(np.array(output, dtype=np.int64), 1),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return list(csv.DictReader(io.StringIO(text.decode())))
