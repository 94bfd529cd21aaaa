"""Arrivals for the simulator: read from traces, or drawn from rate windows with one seed.

Refuses to invent silently: what is drawn (single arrivals inside a window, lengths around a
mean) is drawn by the rule written at its function, from the seed that the caller names.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bul.cache.replay_trace import Trace, read_trace
from bul.errors import ConfigError
from bul.inference.batching import importable_blocks
from bul.simulator.job import Job

__all__ = [
    "Arrivals",
    "RateWindows",
    "arrivals_of_trace",
    "draw",
    "draw_all",
    "read_workload",
    "thin",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LENGTH_CV = 0.7
"""Spread of drawn lengths, assumed: log-normal around a mean (the traces give means only)."""

CV_MAX = 4.0
"""Burstiness is capped here, as in the figures of the notes that ours are compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Arrivals:
    """Requests in time order. Arrays of one length: seconds, prompt tokens, output tokens.

    paths: of each request, ids of its prompt's full blocks of `block_tokens`; none when the trace
    has no blocks, and then no cache can hold anything of a prompt. Compared by identity: what is
    worked out for one is kept for the next policy.
    """

    at_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    paths: tuple[tuple[int, ...], ...] = ()
    block_tokens: int = 0

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def context_tokens(self) -> float:
        """Tokens of a mean sequence, half way through its reply."""
        if not len(self):
            return 0.0
        return float(np.mean(self.prompt_tokens + self.output_tokens / 2))

    def where(self, keep: npt.NDArray[np.bool_]) -> Arrivals:
        """Those whose `keep` is true."""
        return Arrivals(
            at_s=self.at_s[keep],
            prompt_tokens=self.prompt_tokens[keep],
            output_tokens=self.output_tokens[keep],
            paths=tuple(itertools.compress(self.paths, keep.tolist())),
            block_tokens=self.block_tokens,
        )

    def jobs(self) -> Iterator[Job]:
        """Fresh ones for one run, in order."""
        columns = (self.at_s, self.prompt_tokens, self.output_tokens)
        lists = [column.tolist() for column in columns]
        return map(Job, *lists, self.paths) if self.paths else map(Job, *lists)

    def past_unbounded_cache(self) -> Arrivals:
        """The same with prompts counted less what a cache without end would hold; no blocks."""
        seen, prompts = set[int](), []
        for path, tokens in zip(self.paths, self.prompt_tokens.tolist(), strict=True):
            held = next((i for i, block in enumerate(path) if block not in seen), len(path))
            seen.update(path)
            held = importable_blocks(tokens, self.block_tokens, held)
            prompts.append(tokens - held * self.block_tokens)
        return dataclasses.replace(
            self, prompt_tokens=np.array(prompts, dtype=np.int64), paths=(), block_tokens=0
        )

    def between(self, start_s: float, end_s: float) -> Arrivals:
        """Those in [start_s, end_s), with time counted from `start_s`."""
        part = self.where((self.at_s >= start_s) & (self.at_s < end_s))
        return dataclasses.replace(part, at_s=part.at_s - start_s)


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


def draw_all(windows: RateWindows, scale: float, seed: int) -> Arrivals:
    """All windows' requests, in order; the same for the same seed."""
    rng = np.random.default_rng(seed)
    parts = [draw(windows, index, scale, rng) for index in range(len(windows.at_s))]
    return Arrivals(
        at_s=np.concatenate([part.at_s for part in parts]),
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
    )


def thin(arrivals: Arrivals, scale: float, seed: int) -> Arrivals:
    """Each request kept with probability `scale`; all of them at 1."""
    if scale >= 1.0:
        return arrivals
    keep = np.random.default_rng(seed).random(len(arrivals)) < scale
    return arrivals.where(keep)


def _lengths(mean: float, count: int, rng: np.random.Generator) -> Ints:
    sigma2 = np.log1p(LENGTH_CV**2)
    drawn = rng.lognormal(np.log(max(mean, 1.0)) - sigma2 / 2, np.sqrt(sigma2), size=count)
    return np.maximum(np.rint(drawn), 1).astype(np.int64)


def read_workload(path: Path) -> RateWindows | Arrivals:
    """A CSV of rate windows, an Azure inference trace, or a block trace (JSON lines).

    Raises ConfigError, or TraceInvalid for a block trace.
    """
    if path.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        return arrivals_of_trace(read_trace(path))
    rows = _rows(path)
    if not rows:
        raise ConfigError(f"{path}: is empty")
    if "requests_per_second" in rows[0]:
        return _windows(path, rows)
    return _azure(path, rows)


def arrivals_of_trace(trace: Trace) -> Arrivals:
    """A block trace's requests, each with at least a token in and one out."""
    requests = trace.requests
    prompts = [max(request.input_tokens, 1) for request in requests]
    outputs = [max(request.output_tokens, 1) for request in requests]
    return Arrivals(
        at_s=np.array([request.at_s for request in requests], dtype=np.float64),
        prompt_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        paths=tuple(request.path for request in requests),
        block_tokens=trace.block_tokens,
    )


def _windows(path: Path, rows: list[dict[str, str]]) -> RateWindows:
    """Columns: t_s, requests_per_second, cv, clients, tokens_in_mean, tokens_out_mean."""
    names = ("t_s", "requests_per_second", "cv", "tokens_in_mean", "tokens_out_mean")
    try:
        table = np.array([[float(row[name]) for name in names] for row in rows])
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a table of rate windows: {error}") from error
    if len(table) < 2 or not np.isfinite(table).all() or (np.diff(table[:, 0]) <= 0).any():
        raise ConfigError(f"{path}: needs at least two windows, in order of time, all numbers")
    return RateWindows(
        window_s=float(table[1, 0] - table[0, 0]),
        at_s=table[:, 0] - table[0, 0],
        requests_per_second=table[:, 1],
        cv=table[:, 2],
        prompt_tokens_mean=table[:, 3],
        output_tokens_mean=table[:, 4],
    )


def _azure(path: Path, rows: list[dict[str, str]]) -> Arrivals:
    """Columns: TIMESTAMP, ContextTokens, GeneratedTokens."""
    try:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        prompt = [int(row["ContextTokens"]) for row in rows]
        output = [int(row["GeneratedTokens"]) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not an Azure inference trace: {error}") from error
    at_s = np.array(times)
    order = np.argsort(at_s, kind="stable")
    return Arrivals(
        at_s=at_s[order] - at_s[order[0]],
        prompt_tokens=np.maximum(np.array(prompt, dtype=np.int64), 1)[order],
        output_tokens=np.maximum(np.array(output, dtype=np.int64), 1)[order],
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return list(csv.DictReader(io.StringIO(text.decode())))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
