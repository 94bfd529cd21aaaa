"""What a replay counts, and how `bul cache replay` shows it."""

from __future__ import annotations

import json
import pathlib
import random

import pytest
from click.testing import CliRunner

from bul.cache.replay import (
    PREFILL_TOKENS_PER_S,
    REPLAY_NAMES,
    capacity_blocks,
    make_replayed,
    prefill_s,
    replay,
)
from bul.cache.replay_plot import render_plot
from bul.cache.replay_trace import Trace, TraceRequest
from bul.cli.cache import command
from bul.errors import ConfigError, TraceInvalid


def _request(at_s: float, path: tuple[int, ...], input_tokens: int = 0) -> TraceRequest:
    return TraceRequest(
        at_s=at_s,
        input_tokens=input_tokens or 10 * len(path),
        output_tokens=0,
        path=path,
        session="",
    )


def _trace(*requests: TraceRequest) -> Trace:
    return Trace(name="made", block_tokens=10, requests=requests)


def _random_trace(seed: int) -> Trace:
    rng = random.Random(seed)
    keys: dict[tuple[int, ...], int] = {}
    requests = []
    for number in range(300):
        steps = tuple(rng.choice((0, 0, 1, 2)) for _ in range(rng.randrange(7)))
        prefixes = [steps[: end + 1] for end in range(len(steps))]
        path = tuple(keys.setdefault(prefix, len(keys)) for prefix in prefixes)
        requests.append(_request(float(number), path))
    return _trace(*requests)


def test_hit_tokens_are_those_of_the_longest_resident_prefix() -> None:
    trace = _trace(_request(0.0, (1, 2, 3)), _request(1.0, (1, 2, 4), 39), _request(2.0, (), 5))
    result = replay(trace, make_replayed("lru", 8, trace))
    assert (result.hit_tokens, result.input_tokens, result.requests) == (20, 74, 3)
    assert result.saved_prefill_s == prefill_s(20)
    assert result.token_hit_ratio == 20 / 74


def test_a_token_deep_in_a_sequence_costs_more_than_one_at_its_start() -> None:
    assert prefill_s(0) == 0.0
    assert prefill_s(1) == pytest.approx(1 / PREFILL_TOKENS_PER_S, rel=0.001)
    assert prefill_s(61_000) - prefill_s(30_500) > 2 * prefill_s(30_500) * 0.8
    assert prefill_s(12_000) == pytest.approx(1.436, abs=0.001)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("capacity", [1, 5, 20])
def test_no_policy_beats_belady_and_belady_does_not_beat_infinity(seed: int, capacity: int) -> None:
    trace = _random_trace(seed)
    hits = {
        name: replay(trace, make_replayed(name, capacity, trace)).hit_tokens
        for name in REPLAY_NAMES
    }
    infinite, belady = hits.pop("infinite"), hits.pop("belady")
    assert max(hits.values()) <= belady <= infinite


@pytest.mark.parametrize(
    ("asked", "blocks"),
    [("0.05", 5), ("0.29", 29), ("0.001", 1), ("1.0", 100), ("1", 1), ("4096", 4096), (".5", 50)],
)
def test_a_capacity_with_a_dot_is_a_share(asked: str, blocks: int) -> None:
    assert capacity_blocks(asked, 100) == blocks


@pytest.mark.parametrize("asked", ["0", "0.0", "-1", "-0.5", "x", "", "nan", "inf", "1/0"])
def test_a_capacity_that_is_no_positive_number_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="capacity must be"):
        capacity_blocks(asked, 100)


@pytest.fixture
def trace_file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "talk.jsonl"
    lines = [{"block": 10}] + [
        {"t": n, "in": 30, "out": 4, "ids": [n % 3, n % 3 + 10, n % 3 + 20]} for n in range(30)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_command_prints_one_json_document(trace_file: pathlib.Path) -> None:
    arguments = ["replay", "--trace", str(trace_file), "--policy", "lru,belady"]
    result = CliRunner().invoke(command, [*arguments, "--capacity", "0.5,9", "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["rows"]
    assert [(row["policy"], row["capacity_blocks"], row["capacity_share"]) for row in rows] == [
        ("lru", 4, 0.5),
        ("belady", 4, 0.5),
        ("lru", 9, 1.0),
        ("belady", 9, 1.0),
    ]
    assert rows[-1]["token_hit_ratio"] == 0.9
    assert {"saved_prefill_s", "replay_requests_per_s", "seconds", "requests", "trace"} <= set(
        rows[0]
    )


def test_the_command_prints_a_table_and_says_its_cost_model(trace_file: pathlib.Path) -> None:
    result = CliRunner().invoke(command, ["replay", "--trace", str(trace_file), "--policy", "all"])
    assert result.exit_code == 0
    assert "saved prefill: prefill of the first n tokens" in result.stdout
    assert all(name in result.stdout for name in REPLAY_NAMES)


def test_an_unknown_policy_is_refused_before_any_work(trace_file: pathlib.Path) -> None:
    arguments = ["replay", "--trace", str(trace_file), "--policy", "lru,beladi"]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "did you mean 'belady'" in str(result.exception)


def test_a_damaged_line_ends_the_command(trace_file: pathlib.Path) -> None:
    trace_file.write_text(trace_file.read_text()[:-4])
    result = CliRunner().invoke(command, ["replay", "--trace", str(trace_file)])
    assert isinstance(result.exception, TraceInvalid)
    assert "talk.jsonl line 31" in str(result.exception)
    assert not result.stdout


def test_the_plot_is_one_page_that_loads_nothing(
    trace_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    page = tmp_path / "curves.html"
    arguments = ["replay", "--trace", str(trace_file), "--policy", "lru,fifo", "--plot", str(page)]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    text = page.read_text()
    assert text.count("<svg") == 1
    assert text.count("<polyline") == 2
    assert "prefers-color-scheme: dark" in text
    assert not any(word in text for word in ("http:", "https:", "<script", "src=", "@import"))


def test_the_plot_escapes_what_a_trace_calls_itself() -> None:
    row = {
        "trace": "<script>",
        "policy": "lru",
        "capacity_blocks": 5,
        "token_hit_ratio": 0.5,
    }
    assert "<script>" not in render_plot([row], "cost")
