"""Wires one `bul bench`: flags to a workload, runs, files. Refuses flags that contradict."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from bul.bench.client import Client, Sample, Target, parse_target
from bul.bench.load import DURATION_S_MAX, REQUESTS_MAX, Limits, Run, run_load
from bul.bench.page import render_page
from bul.bench.profile import measure_profile
from bul.bench.report import Slo, combine, document, summarise
from bul.bench.sweep import Step, sweep
from bul.bench.traces import read_any_trace
from bul.bench.workload import (
    Conversation,
    Lengths,
    Synthetic,
    arrival_times,
    at_times,
    from_trace,
    synthetic,
)
from bul.cli.ask import model_id
from bul.cli.bench_show import Screen
from bul.errors import BulError, ConfigError

__all__ = ["bench"]

CONCURRENCY_DEFAULT = 8
REQUESTS_DEFAULT = 200
RATE_DEFAULT = 1.0
Values = Mapping[str, Any]


async def bench(url: str, values: Values, screen: Screen) -> dict[str, Any]:
    """Run what the flags ask for and write the files; the report as a document.

    Raises ConfigError for flags, BulError if the endpoint cannot be asked at all.
    """
    _check(values)
    target = parse_target(url, api_key=values["api_key"], allow_remote=values["allow_remote"])
    model = values["model"] or await _model(target)
    client = Client(target, model=model, timeout_s=values["timeout_s"])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    try:
        if values["profile_out"]:
            report = await _profile(client, model, values, stop, screen)
        elif values["sweep"]:
            report = await _sweep(client, values, stop, screen)
        else:
            report = await _runs(client, values, stop, screen)
    finally:
        client.close()
    return {"url": url, "model": model, "seed": values["seed"], **report}


def _check(values: Values) -> None:
    """Contradictions, before any request. Raises ConfigError."""
    loops = [name for name in ("concurrency", "rate") if values[name] is not None]
    if len(loops) == 2 or (values["trace"] and "rate" in loops):
        raise ConfigError("--concurrency, --rate and a trace's own times exclude each other")
    if values["sweep"] and (values["trace"] or values["concurrency"] is not None):
        raise ConfigError("--sweep is an open loop of its own: neither --trace nor --concurrency")
    if values["sweep"] and values["repeats"] > 1:
        raise ConfigError("--sweep has no --repeats: run it again with another --seed")
    if not 0.5 <= values["step_s"] <= 600:
        raise ConfigError(f"--step-s must be in [0.5, 600], was {values['step_s']:g}")
    if values["concurrency"] is not None and values["concurrency"] < 1:
        raise ConfigError(f"--concurrency must be at least 1, was {values['concurrency']}")


async def _model(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    scheme = "https" if target.tls else "http"
    headers = {"authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
        return await model_id(client, f"{scheme}://{host}:{target.port}{target.prefix}")


def _spec(values: Values) -> Synthetic:
    shape = values["length_shape"]
    prompt = Lengths(mean=values["prompt_tokens"], cv=values["prompt_cv"], shape=shape)
    output = Lengths(mean=values["output_tokens"], cv=values["output_cv"], shape=shape)
    return Synthetic(
        prompt=prompt,
        output=output,
        shared_share=values["shared_share"],
        shared_tokens=values["shared_tokens"],
        prefixes=values["prefixes"],
        turns=values["turns"],
        think_s=values["think_s"],
    )


def _conversations(values: Values, seed: int) -> Iterator[Conversation]:
    if values["trace"]:
        return from_trace(
            read_any_trace(values["trace"]),
            seed=seed,
            time_scale=values["time_scale"],
            length_scale=values["length_scale"],
        )
    endless = synthetic(_spec(values), seed)
    if values["rate"] is None:
        return endless
    return at_times(endless, arrival_times(values["rate"], values["cv"], seed))


def _limits(values: Values) -> Limits:
    closed = values["rate"] is None and not values["trace"]
    concurrency = values["concurrency"] or (CONCURRENCY_DEFAULT if closed else 0)
    unlimited = values["trace"] or values["duration_s"] is not None
    requests = values["requests"]
    if requests is None:
        requests = REQUESTS_MAX if unlimited else REQUESTS_DEFAULT
    duration_s = values["duration_s"]
    return Limits(
        requests=requests,
        duration_s=DURATION_S_MAX if duration_s is None else duration_s,
        concurrency=concurrency,
        drain_s=values["timeout_s"],
        warmup=values["warmup"],
    )


def _slo(values: Values) -> Slo:
    return Slo(ttft_ms=values["slo_ttft_ms"], e2e_ms=values["slo_e2e_ms"])


async def _runs(
    client: Client, values: Values, stop: asyncio.Event, screen: Screen
) -> dict[str, Any]:
    limits, seed = _limits(values), values["seed"]
    runs: list[Run] = []
    for repeat in range(values["repeats"]):
        # Another seed is another text: a repeat must not find the cache that the last one filled.
        conversations = _conversations(values, seed + repeat)
        screen.begin(f"run {repeat + 1} of {values['repeats']}", limits)
        runs.append(await run_load(client, conversations, limits, stop=stop, on_done=screen.done))
        if stop.is_set():
            break
    summaries = [summarise(run, _slo(values), seed=seed) for run in runs]
    samples = [sample for run in runs for sample in run.measured]
    report = {
        "load": _words(values, limits),
        "runs": summaries,
        "repeats": combine(summaries) if len(summaries) > 1 else None,
        "errors_said": _said(samples),
        "warnings": sorted({text for summary in summaries for text in summary["warnings"]}),
        "interrupted": stop.is_set(),
        "succeeded": any(summary["ok"] for summary in summaries),
    }
    return _written(document(report), values, list(enumerate(runs)))


def _words(values: Values, limits: Limits) -> str:
    if values["trace"]:
        loop = f"trace {values['trace'].name}, time x {values['time_scale']:g}"
        loop += f", lengths x {values['length_scale']:g}"
    else:
        loop = f"{values['prompt_tokens']:g} prompt and {values['output_tokens']:g} output tokens"
    if limits.concurrency:
        return f"closed loop of {limits.concurrency}, {loop}"
    rate = "" if values["trace"] else f" of {values['rate']:g}/s, cv {values['cv']:g}"
    return f"open loop{rate}, {loop}"


def _said(samples: Sequence[Sample]) -> dict[str, str]:
    """The first words of the endpoint for each kind of error."""
    return {sample.error: sample.said for sample in reversed(samples) if sample.said}


async def _sweep(
    client: Client, values: Values, stop: asyncio.Event, screen: Screen
) -> dict[str, Any]:
    step_s, runs = values["step_s"], list[Run]()
    drain_s = min(step_s, values["timeout_s"])
    limits = Limits(duration_s=step_s, drain_s=drain_s, requests=REQUESTS_MAX)

    async def run_at(rate: float, number: int) -> Run:
        seed = values["seed"] * 1000 + number
        times = arrival_times(rate, values["cv"], seed)
        screen.begin(f"{rate:,.1f} requests/s", limits)
        conversations = at_times(synthetic(_spec(values), seed), times)
        run = await run_load(client, conversations, limits, stop=stop, on_done=screen.done)
        runs.append(run)
        return run

    start = values["rate"] or RATE_DEFAULT
    steps = await sweep(run_at, start=start, step_s=step_s, slo=_slo(values), on_step=screen.step)
    return _written(document(_sweep_report(values, steps, stop)), values, list(enumerate(runs)))


def _sweep_report(values: Values, steps: Sequence[Step], stop: asyncio.Event) -> dict[str, Any]:
    best = max((step.rate for step in steps if step.sustained), default=0.0)
    found = any(not step.sustained for step in steps)
    warnings = {text for step in steps if step.sustained for text in step.summary["warnings"]}
    if not found:
        warnings.add("no rate was too high: the saturation lies above")
    return {
        "load": f"rate sweep, {values['step_s']:g} s a step, cv {values['cv']:g}",
        "saturation_requests_per_s": best,
        "completed_per_s_max": max((step.completed_per_s for step in steps), default=0.0),
        "steps": [dataclasses.asdict(step) for step in steps],
        "warnings": sorted(warnings),
        "interrupted": stop.is_set(),
        "succeeded": any(step.summary["ok"] for step in steps),
    }


async def _profile(
    client: Client, model: str, values: Values, stop: asyncio.Event, screen: Screen
) -> dict[str, Any]:
    found = await measure_profile(
        client,
        name=model,
        slots=values["slots"],
        chunk_tokens=values["chunk_tokens"],
        cache_tokens=values["cache_tokens"],
        seed=values["seed"],
        stop=stop,
        say=screen.say,
    )
    _write(values["profile_out"], msgspec.json.format(msgspec.json.encode(found["profile"])))
    return {"load": "replica profile", **document(found), "succeeded": True}


def _written(
    report: dict[str, Any], values: Values, runs: Sequence[tuple[int, Run]]
) -> dict[str, Any]:
    if values["csv_file"]:
        _write_csv(values["csv_file"], runs)
    if values["html_file"]:
        good = [s for _, run in runs for s in run.measured if not s.error]
        latencies = {
            "TTFT": sorted(sample.ttft_s * 1000 for sample in good),
            "between tokens": sorted(
                gap_s * 1000 for gap_s in itertools.chain.from_iterable(s.gaps_s for s in good)
            ),
            "E2E": sorted(sample.e2e_s * 1000 for sample in good),
        }
        _write(values["html_file"], render_page(report, latencies).encode())
    return report


CSV_COLUMNS = (
    "run", "number", "warmup", "due_s", "sent_s", "ttft_ms", "e2e_ms", "status", "error",
    "prompt_tokens", "cached_tokens", "output_tokens", "gap_max_ms",
)  # fmt: skip


def _write_csv(path: Path, runs: Sequence[tuple[int, Run]]) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(CSV_COLUMNS)
            for number, run in runs:
                writer.writerows(_csv_row(number, run, sample) for sample in run.samples)
    except OSError as error:
        raise BulError(f"cannot write {path}: {error.strerror}") from error


def _csv_row(number: int, run: Run, sample: Sample) -> tuple[Any, ...]:
    return (
        number + 1,
        sample.number,
        int(sample.number < run.warmup),
        f"{sample.intended_s - run.started_s:.6f}",
        f"{sample.sent_s - run.started_s:.6f}" if sample.sent_s else "",
        f"{sample.ttft_s * 1000:.3f}" if sample.first_s else "",
        f"{sample.e2e_s * 1000:.3f}",
        sample.status or "",
        sample.error,
        sample.prompt_tokens,
        sample.cached_tokens,
        sample.tokens,
        f"{max(sample.gaps_s, default=0.0) * 1000:.3f}",
    )


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BulError(f"cannot write {path}: {error.strerror}") from error
