"""The alert rules: before promtool, and live from a damaged disk to a webhook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import httpx
import msgspec
import pytest

from bul.accounts.keys import hash_key
from bul.cache.tiers.disk.tier import DiskTier
from bul.config import ServeConfig, TimedConfig
from bul.doctor.checks import SIGNALS
from bul.inference.timed import TimedCore
from bul.planner.alerts import ALERTS, RECORDED
from bul.testing.prometheus import (
    promtool,
    running_alertmanager,
    running_prometheus,
    running_webhook,
)
from bul.testing.replica import running_replica
from bul.testing.waiting import eventually

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
KEY = "bul-operator"


@pytest.mark.slow
async def test_each_alert_fires_when_it_should_and_not_before() -> None:
    code, said = await promtool("test", "rules", DEPLOY / "alerts.test.yml")
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("for: 30m", "for: 10m"),
        ("requests_per_second > 1000", "requests_per_second >= 1000"),
        ("corrupted_total[15m]", "corrupted_total[1m]"),
        ("absent(bul_ready) or ", ""),
        ("error_rate > 0.01", "error_rate > 0.03"),
    ],
)
async def test_the_tests_of_the_rules_notice_a_wrong_rule(
    right: str, wrong: str, tmp_path: Path
) -> None:
    rules = (DEPLOY / "alerts.yml").read_text(encoding="utf-8")
    assert right in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(right, wrong), encoding="utf-8")
    shutil.copy(DEPLOY / "alerts.test.yml", tmp_path)
    code, _ = await promtool("test", "rules", tmp_path / "alerts.test.yml")
    assert code != 0


def test_every_alert_and_every_recorded_metric_has_its_test() -> None:
    tests = (DEPLOY / "alerts.test.yml").read_text(encoding="utf-8")
    assert [a.name for a in ALERTS if f"alertname: {a.name}\n" not in tests] == []
    assert [name for name in RECORDED if name not in tests] == []


def test_every_metric_in_a_rule_is_a_documented_one() -> None:
    """The reference is held against the code; the guide's seven are the recorded ones."""
    pages = [p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "reference").glob("*.md")]
    documented = {name for page in pages for name in re.findall(r"`(bul_\w+)", page)}
    # "`bul_regions_peer_NAME{peer}`: `reachable`, ..." stands for one name each.
    for start, names in (
        f for page in pages for f in re.findall(r"`(bul_\w+_)NAME\S*: (.*)", page)
    ):
        documented |= {start + name for name in re.findall(r"`(\w+)`", names)}
    rules = [*RECORDED.values(), *(alert.expression for alert in ALERTS)]
    used = {re.sub(r"_bucket$", "", n) for rule in rules for n in re.findall(r"bul_\w+", rule)}
    assert len(used) > 10
    assert used - documented == set()
    assert list(RECORDED) == [*SIGNALS]


def test_the_guides_two_alerts_have_its_durations_and_the_promises_have_theirs() -> None:
    rules = {alert.name: (alert.expression, alert.for_) for alert in ALERTS}
    assert rules["HighLoadRequiresScaling"] == ("requests_per_second > 1000", "5m")
    assert rules["LowUtilizationScaleDown"] == ("cpu_utilization < 0.3", "30m")
    promised = {"RouterBlind", "TierQuarantining", "TargetInfeasible", "RegionPartitioned"}
    assert {*promised, "MetricsMissing"} <= set(rules)


def damage(folder: Path) -> None:
    """Every payload byte of every segment: the index stays as it is."""
    for segment in folder.rglob("*.seg"):
        data = bytearray(segment.read_bytes())
        for at in range(4096, len(data), 4096):
            data[at] ^= 0xFF
        segment.write_bytes(data)


@pytest.mark.slow
async def test_damage_on_a_live_replicas_disk_reaches_a_webhook(tmp_path: Path) -> None:
    """And before the damage, with the same traffic, nothing does."""
    kv = tmp_path / "kv"
    # Slow enough to compute that the break-even gate lets the disk be read.
    timed = TimedConfig(block_bytes=65_536, prefill_tokens_per_s=4000.0, decode_tokens_per_s=1000.0)
    core = TimedCore(ServeConfig(port=0), timed)
    keys = {"operator": hash_key(KEY)}
    key_file = tmp_path / "operator.key"
    key_file.write_text(KEY, encoding="utf-8")
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "bul-timed", "prompt": "word" * 400, "max_tokens": 2}
    tier = DiskTier(kv, core.identity, bytes_max=64 << 20)
    async with (
        running_webhook() as hook,
        running_alertmanager(tmp_path, hook.url) as alertmanager,
        running_replica(keys=keys, core=core, tiers=[tier]) as replica,
        httpx.AsyncClient(base_url=replica.url, headers=headers) as client,
        running_prometheus(
            tmp_path,
            rules=DEPLOY / "alerts.yml",
            targets=[replica.url.removeprefix("http://")],
            alertmanager=alertmanager,
            key=key_file,
        ) as prometheus,
        httpx.AsyncClient(base_url=prometheus) as asked,
    ):

        async def value(expression: str) -> float | None:
            answer = await asked.get("/api/v1/query", params={"query": expression})
            found = answer.json()["data"]["result"]
            return float(found[0]["value"][1]) if found else None

        async def ask() -> None:
            assert (await client.post("/v1/completions", json=body)).status_code == 200

        await ask()
        assert replica.cache.flush()
        replica.cache.clear_ram()
        await ask()

        async def all_seven() -> bool:
            await ask()
            return all([await value(name) is not None for name in RECORDED])

        await eventually("Prometheus has the guide's seven", all_seven, 30)
        assert not any(b"TierQuarantining" in body for body in hook.bodies)
        damage(kv)
        replica.cache.clear_ram()
        await ask()
        await eventually(
            "the webhook has it", lambda: any(b"TierQuarantining" in b for b in hook.bodies), 30
        )
    delivered = next(b for b in hook.bodies if b"TierQuarantining" in b)
    alert = msgspec.json.decode(delivered)["alerts"][0]
    assert alert["labels"]["tier"] == "disk"
    assert alert["annotations"]["next"].startswith("bul cache check --fix")
