"""Looks at a live region over HTTP: pages, probes, and nothing that would harm it.

Refuses to stop anything, and to flood: some tens of short greedy requests, a few at a time. What
cannot be seen has a reason instead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from bul.doctor.coherency import probe_coherency
from bul.doctor.findings import Baseline, Evidence, Monitor, ReplicaEvidence

__all__ = ["Looked", "cost_of_a_day", "look", "probe_ttfts"]

TIMEOUT = httpx.Timeout(30.0, connect=3.0)
PROBES_PER_REPLICA, PROBES_MIN = 10, 20
PROBE_WORDS, PROBE_TOKENS = 40, 4
SESSIONS, ASKED_PER_SESSION = 4, 4
COHERENCY_WORDS = 260
NEEDS_KEY = "give the operator's key"

Say = Callable[[str], None]
_AWAY = (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError, ValueError, KeyError)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """Where to look, and with which words nobody used before. salt: makes probes new prompts.

    replica_hours_per_day: by the region's ledger, with what that is said to rest on; else None.
    """

    url: str
    key: str
    salt: str
    prometheus: str = ""
    session_header: str = "x-session-id"
    limits: tuple[int, int] | None = None
    limits_reason: str = ""
    baseline: Baseline | None = None
    baseline_reason: str = ""
    price_per_replica_hour: float | None = None
    budget_per_day: float | None = None
    replica_hours_per_day: float | None = None
    hours_basis: str = ""

    @property
    def headers(self) -> Mapping[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


async def look(looked: Looked, say: Say, now_s: float) -> Evidence:
    """All of it, some seconds; does not raise for what the region does or does not do."""
    reasons = {"baseline": looked.baseline_reason, "limits": looked.limits_reason}
    async with httpx.AsyncClient(
        trust_env=False, timeout=TIMEOUT, headers=looked.headers, follow_redirects=False
    ) as client:
        say("asking the router for its replicas")
        policy, urls, why = await _router(client, looked.url)
        reasons["balancer"] = why
        say(f"asking {len(urls)} replicas for health and figures")
        model = await _model(client, looked.url)
        answered, failed, ttfts = await _probe(client, looked, model, len(urls), say)
        replicas = await asyncio.gather(*(_replica(client, url) for url in urls))
        sessions = None
        if policy == "session":
            say("asking within sessions")
            sessions = await _sessions(client, looked, model)
        say("writing a prompt's KV on one replica, reading it on another, deleting it on all")
        body = _body(model, _words(f"{looked.salt} coherency", COHERENCY_WORDS))
        well = [replica.url for replica in replicas if replica.well]
        coherency, reasons["coherency"] = await probe_coherency(client, well, body)
        if not urls:
            del reasons["coherency"]
        monitor, reasons["monitoring"] = await _monitor(client, looked.prometheus)
    cost_per_day, cost_basis = cost_of_a_day(looked, len(urls))
    return Evidence(
        url=looked.url,
        now_s=now_s,
        closed=why.endswith(NEEDS_KEY),
        policy=policy,
        replicas=replicas,
        answered=answered,
        failed=failed,
        sessions=sessions,
        limits=looked.limits,
        baseline=looked.baseline,
        ttft_ms=ttfts,
        monitor=monitor,
        coherency=coherency,
        cost_per_day=cost_per_day,
        cost_basis=cost_basis,
        budget_per_day=looked.budget_per_day,
        reasons={item: why for item, why in reasons.items() if why},
    )


def cost_of_a_day(looked: Looked, replicas: int) -> tuple[float | None, str]:
    """Of a day: by the ledger if it has something, else by the replicas that are there now."""
    price, hours = looked.price_per_replica_hour, looked.replica_hours_per_day
    if price is None:
        return None, ""
    if hours is not None:
        return hours * price, looked.hours_basis
    return replicas * 24.0 * price, f"{replicas} replicas now x 24 h, {looked.hours_basis}"


async def probe_ttfts(looked: Looked, say: Say) -> list[float]:
    """Milliseconds to the first token of the probes alone, for a baseline. Raises ValueError."""
    async with httpx.AsyncClient(
        trust_env=False, timeout=TIMEOUT, headers=looked.headers
    ) as client:
        _, urls, why = await _router(client, looked.url)
        if why.endswith(NEEDS_KEY):
            raise ValueError(f"{why}: --key-file FILE")
        model = await _model(client, looked.url)
        _, failed, ttfts = await _probe(client, looked, model, max(len(urls), 1), say)
    if failed or not ttfts:
        raise ValueError(f"{failed} probes failed, {len(ttfts)} were answered")
    return ttfts


async def _router(client: httpx.AsyncClient, url: str) -> tuple[str | None, list[str], str]:
    try:
        response = await client.get(f"{url}/replicas")
        if response.status_code != httpx.codes.OK:
            said = NEEDS_KEY if response.status_code in (401, 403) else "no router"
            return None, [], f"{url}/replicas answers {response.status_code}: {said}"
        page = msgspec.json.decode(response.content, type=dict[str, Any])
        return page["policy"], [found["url"] for found in page["replicas"]], ""
    except _AWAY as error:
        return None, [], f"{url} does not answer: {type(error).__name__}"


async def _model(client: httpx.AsyncClient, url: str) -> str:
    try:
        page = (await client.get(f"{url}/v1/models")).json()
        return str(page["data"][0]["id"])
    except (*_AWAY, IndexError, TypeError):
        return ""


async def _probe(
    client: httpx.AsyncClient, looked: Looked, model: str, replicas: int, say: Say
) -> tuple[Mapping[str, int], int, list[float]]:
    """One after the other: (answers by replica, failures, TTFT in ms)."""
    wanted = max(PROBES_MIN, PROBES_PER_REPLICA * replicas)
    say(f"{wanted} short probes")
    answered: Counter[str] = Counter()
    failed, ttfts = 0, list[float]()
    for number in range(wanted):
        prompt = _words(f"{looked.salt} probe {number}", PROBE_WORDS)
        replica, ttft_ms = await _stream(client, looked.url, _body(model, prompt), {})
        if ttft_ms is None:
            failed += 1
        else:
            answered[replica] += 1
            ttfts.append(ttft_ms)
    return answered, failed, ttfts


async def _sessions(client: httpx.AsyncClient, looked: Looked, model: str) -> list[frozenset[str]]:
    found = []
    for session in range(SESSIONS):
        headers = {looked.session_header: f"{looked.salt}-{session}"}
        seen = set()
        for turn in range(ASKED_PER_SESSION):
            prompt = _words(f"{looked.salt} session {session} {turn}", PROBE_WORDS)
            replica, ttft_ms = await _stream(client, looked.url, _body(model, prompt), headers)
            if ttft_ms is not None:
                seen.add(replica)
        found.append(frozenset(seen))
    return found


async def _stream(
    client: httpx.AsyncClient, url: str, body: Mapping[str, object], headers: Mapping[str, str]
) -> tuple[str, float | None]:
    """(replica, ms to the first token); None for one that failed or broke off."""
    began_s = time.perf_counter()
    first_ms: float | None = None
    try:
        async with client.stream(
            "POST", f"{url}/v1/chat/completions", json={**body, "stream": True}, headers=headers
        ) as response:
            if response.status_code != httpx.codes.OK:
                return "", None
            whole = False
            async for line in response.aiter_lines():
                if first_ms is None and line.startswith("data: {"):
                    first_ms = (time.perf_counter() - began_s) * 1000.0
                whole = whole or line == "data: [DONE]"
            return response.headers.get("x-bul-replica", ""), first_ms if whole else None
    except _AWAY:
        return "", None


async def _replica(client: httpx.AsyncClient, url: str) -> ReplicaEvidence:
    try:
        live = await client.get(f"{url}/health", params={"deep": "1"})
        ready = await client.get(f"{url}/ready")
    except _AWAY as error:
        return ReplicaEvidence(url=url, reason=type(error).__name__)
    signals, why = await _page(client, f"{url}/signals")
    stats, _ = await _page(client, f"{url}/cache/stats")
    try:
        deep = str(live.json().get("deep", ""))
    except (ValueError, AttributeError):
        deep = ""
    return ReplicaEvidence(
        url=url,
        live=live.status_code == httpx.codes.OK,
        ready=ready.status_code == httpx.codes.OK,
        deep=deep,
        signals=signals,
        tiers=None if stats is None else stats.get("parts", {}),
        series=await _series(client, f"{url}/metrics"),
        reason=why,
    )


async def _page(client: httpx.AsyncClient, url: str) -> tuple[dict[str, Any] | None, str]:
    try:
        response = await client.get(url)
        if response.status_code != httpx.codes.OK:
            return None, f"{url} answers {response.status_code}"
        return msgspec.json.decode(response.content, type=dict[str, Any]), ""
    except _AWAY as error:
        return None, f"{url}: {type(error).__name__}"


async def _series(client: httpx.AsyncClient, url: str) -> Mapping[str, float] | None:
    """Sums over labels; None for a page that is closed or no metrics."""
    try:
        response = await client.get(url)
        if response.status_code != httpx.codes.OK:
            return None
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                value = 0.0 if math.isnan(sample.value) else sample.value
                sums[sample.name] = sums.get(sample.name, 0.0) + value
    except _AWAY:
        return None
    return sums


async def _monitor(client: httpx.AsyncClient, url: str) -> tuple[Monitor | None, str]:
    if not url:
        return None, "no Prometheus was named: --prometheus URL"
    try:
        targets = (await client.get(f"{url}/api/v1/targets", params={"state": "active"})).json()
        rules = (await client.get(f"{url}/api/v1/rules", params={"type": "alert"})).json()
        ours = [
            target
            for target in targets["data"]["activeTargets"]
            if target["labels"]["job"].startswith("bul")
        ]
        names = frozenset(
            rule["name"] for group in rules["data"]["groups"] for rule in group["rules"]
        )
        down = [target for target in ours if target["health"] != "up"]
        return Monitor(
            up=len(ours) - len(down),
            targets=len(ours),
            alerts=names,
            down=frozenset(target["labels"].get("instance", "a target") for target in down),
        ), ""
    except (*_AWAY, TypeError) as error:
        return None, f"{url} does not answer like a Prometheus: {type(error).__name__}"


def _words(beginning: str, count: int) -> str:
    """The beginning makes it new: no block of it can be in any cache."""
    return f"{beginning}: " + " ".join(f"word{number}" for number in range(count))


def _body(model: str, prompt: str) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": PROBE_TOKENS,
        "temperature": 0,
    }
