"""docs/reference/metrics.md against a replica with a disk tier, both ways."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bul.accounts.keys import hash_key
from bul.cache.tiers.disk.tier import DiskTier
from bul.config import ServeConfig
from bul.inference.timed import TimedCore
from bul.testing.replica import INSTANT, running_replica
from bul.testing.waiting import eventually

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"\| `(bul_\w+)` \| (counter|gauge|histogram) \|([^|]*)\| [^|]+ \|")
OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")
LABELS = {"route", "code", "tier", "class", "tenant_class", "le"}
KEY = "bul-operator"


async def exposed(folder: Path) -> dict[str, tuple[str, set[str]]]:
    """Metric -> type and labels, of a replica that has answered and stored something."""
    core = TimedCore(ServeConfig(port=0), INSTANT)
    tier = DiskTier(folder, core.identity, bytes_max=64 << 20)
    headers = {"Authorization": f"Bearer {KEY}"}
    keys = {"operator": hash_key(KEY)}
    async with (
        running_replica(keys=keys, core=core, tiers=[tier]) as replica,
        httpx.AsyncClient(base_url=replica.url, headers=headers) as client,
    ):
        body = {"model": "bul-timed", "prompt": "word" * 200, "max_tokens": 2}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        assert replica.cache.flush()
        # A tier that is slow to count shows what it last knew, at first nothing.
        await eventually("it has", lambda: "oldest_segment_age_s" in replica.cache.stats()["disk"])

        async def cpu_is_told() -> bool:  # not in the first half second
            return "bul_cpu_utilization" in (await client.get("/metrics")).text

        await eventually("it is told", cpu_is_told)
        text = (await client.get("/metrics")).text
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.startswith("bul_") or sample.name.endswith("_created"):
                continue
            is_histogram = family.type == "histogram"
            name = OF_HISTOGRAMS.sub("", sample.name) if is_histogram else sample.name
            _, labels = found.setdefault(name, (family.type, set()))
            labels |= set(sample.labels) - {"le"}
    return found


async def test_every_metric_has_its_row_and_every_row_its_metric(tmp_path: Path) -> None:
    rows = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in ROW.findall(PAGE.read_text(encoding="utf-8"))
    }
    assert await exposed(tmp_path) == rows


async def test_labels_come_from_fixed_sets(tmp_path: Path) -> None:
    labels = set().union(*(labels for _, labels in (await exposed(tmp_path)).values()))
    assert labels <= LABELS
