"""The fitted profile, the HTML page and the command itself."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bul.bench.client import Client, parse_target
from bul.bench.page import render_page
from bul.bench.profile import fit_profile, measure_profile
from bul.cli.bench_run import bench
from bul.cli.bench_show import Screen
from bul.cli.main import main
from bul.config import ServeConfig, TimedConfig
from bul.errors import BulError
from bul.simulator.replica import ReplicaProfile
from bul.testing.replica import running_replica

TOLD: dict[str, Any] = {"name": "x", "slots": 4, "chunk_tokens": 64, "cache_tokens": 1000}


def flags(**given: Any) -> dict[str, Any]:
    """The command's own defaults, and what is given."""
    from bul.cli.bench import command

    context = command.make_context("bench", [])
    return {**context.params, "api_key": "", **given}


def test_the_profile_has_the_very_fields_of_the_simulator() -> None:
    profile, _ = fit_profile([(100, 0.11), (200, 0.21)], [(1, 40, 0.021), (4, 160, 0.024)], **TOLD)
    assert set(profile) == {field.name for field in dataclasses.fields(ReplicaProfile)}
    assert ReplicaProfile(**profile).measured


def test_the_fit_finds_the_rates_that_made_the_points() -> None:
    profile, residuals = fit_profile(
        [(n, 0.01 + n / 1000) for n in (64, 256, 1024)],
        [(n, t, 0.02 + 0.001 * n + 1e-6 * t) for n, t in ((1, 40), (2, 80), (4, 160), (2, 2096))],
        **TOLD,
    )
    assert profile["prefill_tokens_per_s"] == pytest.approx(1000)
    assert profile["overhead_s"] == pytest.approx(0.01)
    assert profile["decode_base_s"] == pytest.approx(0.02)
    assert profile["decode_each_s"] == pytest.approx(0.001)
    assert profile["decode_context_s"] == pytest.approx(1e-6)
    assert residuals["ttft_residual"] == pytest.approx(0, abs=1e-9)


def test_a_first_token_that_does_not_depend_on_the_prompt_is_no_profile() -> None:
    with pytest.raises(BulError, match="does not grow"):
        fit_profile([(64, 0.2), (256, 0.1)], [(1, 40, 0.02)], **TOLD)


def test_replies_of_one_token_are_no_profile() -> None:
    with pytest.raises(BulError, match="no decode rate"):
        fit_profile([(64, 0.1), (256, 0.3)], [], **TOLD)


def test_late_tokens_of_a_prompt_may_be_dearer() -> None:
    points = [(n, 0.01 + n * (1 + 0.0004 * n / 2) / 250) for n in (64, 256, 1024, 2048)]
    profile, _ = fit_profile(points, [(1, 40, 0.02)], **TOLD)
    assert profile["prefill_tokens_per_s"] == pytest.approx(250)
    assert profile["prefill_growth"] == pytest.approx(0.0004)
    alone_s = ReplicaProfile(**profile).idle_ttft_s(1024)
    assert alone_s == pytest.approx(points[2][1])


@pytest.mark.slow
async def test_a_measured_profile_is_the_configured_one() -> None:
    timed = TimedConfig(prefill_tokens_per_s=4000, decode_tokens_per_s=50, block_bytes=256)
    async with running_replica(ServeConfig(port=0, slots=4), timed) as replica:
        client = Client(parse_target(replica.url), model="bul-timed")
        found = await measure_profile(
            client, name="t", slots=None, chunk_tokens=64, cache_tokens=1, seed=0,
            stop=asyncio.Event(), say=lambda _: None,
        )  # fmt: skip
        client.close()
    assert found["profile"]["slots"] == 4
    assert found["profile"]["prefills_together"] == 4
    assert found["profile"]["prefill_tokens_per_s"] == pytest.approx(4000, rel=0.15)
    assert found["profile"]["decode_base_s"] == pytest.approx(0.02, rel=0.25)
    assert [n for n, *_ in found["decode_points"]] == [1, 2, 4, 2]
    assert found["decode_points"][-1][1] > 2000
    assert 1000 * found["profile"]["decode_context_s"] < 0.25 * 0.02


class _Links(HTMLParser):
    """Collects whatever could make a browser ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed", "base", "image", "use"):
            self.found.append(tag)
        names = ("src", "href", "xlink:href", "action", "srcset", "data")
        self.found += [name for name, _ in attrs if name in names or name.startswith("on")]


def asks(page: str) -> list[str]:
    links = _Links()
    links.feed(page)
    return links.found + re.findall(r"url\(|@import|https?://", page)


async def test_the_command_reports_and_its_page_asks_for_nothing(tmp_path: Path) -> None:
    page, table = tmp_path / "page.html", tmp_path / "requests.csv"
    async with running_replica() as replica:
        report = await bench(
            replica.url,
            flags(requests=20, concurrency=4, repeats=2, html_file=page, csv_file=table),
            Screen(),
        )
    assert [run["ok"] for run in report["runs"]] == [20, 20]
    assert report["repeats"]["ttft_p50_ms"]["value"] > 0
    assert report["succeeded"]
    msgspec.json.encode(report)
    assert len(table.read_text().splitlines()) == 41
    text = page.read_text()
    assert text.count("<polyline") == 3
    assert asks(text) == []


def test_control_a_page_with_a_script_would_be_found() -> None:
    assert asks('<script src="x"></script>') == ["script", "src"]


def test_words_of_others_are_escaped_on_the_page() -> None:
    page = render_page({"load": "<script>alert(1)</script>", "warnings": ["<img src=x>"]}, {})
    assert asks(page) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--concurrency", "2", "--rate", "5"],
        ["--sweep", "--concurrency", "2"],
        ["--requests", "0"],
        ["--requests", "1000001"],
        ["--rate", "-1"],
        ["--concurrency", "0"],
        ["--sweep", "--repeats", "2"],
        ["http://192.0.2.1"],
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_any_request(arguments: list[str]) -> None:
    assert main(["bench", *arguments, "--model", "m", "--timeout-s", "0.1"]) == 2


def test_nobody_at_the_port_is_the_answer_no(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "http://127.0.0.1:1", "--model", "m", "--requests", "3", "--json"]) == 1
    report = msgspec.json.decode(capsys.readouterr().out)
    assert report["runs"][0]["errors"] == {"refused": 3}
