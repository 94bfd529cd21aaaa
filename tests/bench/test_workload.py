"""Workloads: one seed, one workload; equal blocks, equal prefixes."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from bul.bench.traces import read_any_trace
from bul.bench.workload import (
    Lengths,
    Synthetic,
    arrival_times,
    from_trace,
    synthetic,
)
from bul.errors import ConfigError, TraceInvalid
from bul.inference.timed import _plain_tokens

SPEC = Synthetic(
    prompt=Lengths(mean=100, cv=0.5), output=Lengths(mean=20), shared_share=0.5, shared_tokens=64
)


def test_one_seed_gives_one_workload_and_another_seed_another() -> None:
    first = list(itertools.islice(synthetic(SPEC, 7), 50))
    assert first == list(itertools.islice(synthetic(SPEC, 7), 50))
    assert first != list(itertools.islice(synthetic(SPEC, 8), 50))
    assert first[0].turns[0].text() == first[0].turns[0].text()


def test_a_word_is_a_token_of_the_timed_engine() -> None:
    turn = next(synthetic(SPEC, 1)).turns[0]
    assert len(_plain_tokens(turn.text())) == turn.prompt_tokens


def test_the_asked_share_of_conversations_begins_with_the_shared_prefix() -> None:
    found = list(itertools.islice(synthetic(SPEC, 3), 2000))
    prefixes = {conversation.system_text() for conversation in found}
    assert len(prefixes) == 2  # the one shared prefix, and none
    assert sum(bool(conversation.system) for conversation in found) == pytest.approx(1000, abs=100)


@pytest.mark.parametrize("shape", ["lognormal", "uniform"])
def test_lengths_keep_their_mean_and_spread(shape: str) -> None:
    spec = Synthetic(
        prompt=Lengths(mean=400, cv=0.5, shape=shape),  # type: ignore[arg-type]  # from a parameter
        output=Lengths(mean=1),
    )
    found = [c.turns[0].prompt_tokens for c in itertools.islice(synthetic(spec, 1), 4000)]
    assert statistics.mean(found) == pytest.approx(400, rel=0.05)
    assert statistics.stdev(found) / 400 == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("cv", [0.0, 1.0, 2.0])
def test_gaps_have_the_asked_rate_and_burstiness(cv: float) -> None:
    times = list(itertools.islice(arrival_times(50, cv, 1), 20_000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == list(itertools.islice(arrival_times(50, cv, 1), 20_000))
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) * 50 == pytest.approx(cv, rel=0.08, abs=1e-6)


@pytest.mark.parametrize(("rate", "cv"), [(0, 1), (-1, 1), (float("nan"), 1), (1, -0.1), (1, 11)])
def test_an_impossible_arrival_process_is_refused(rate: float, cv: float) -> None:
    with pytest.raises(ConfigError):
        next(arrival_times(rate, cv, 0))


BLOCKS = """{"name":"t","block":8,"note":""}
{"t":0,"in":20,"out":10,"ids":[1,2,3],"s":-1}
{"t":4,"in":24,"out":10,"ids":[1,2,5],"s":-1}
{"t":6,"in":3,"out":0,"ids":[],"s":-1}
"""


def test_equal_block_ids_give_equal_prefixes_and_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(BLOCKS)
    played = list(from_trace(read_any_trace(path), seed=0, time_scale=0.5, length_scale=2.0))
    texts = [conversation.turns[0].text() for conversation in played]
    shared = 2 * 16 * 4  # two blocks, twice as long, four letters a token
    assert texts[0][:shared] == texts[1][:shared]
    assert texts[0][shared : shared + 8] != texts[1][shared : shared + 8]
    assert [conversation.at_s for conversation in played] == [0, 2, 3]
    assert [conversation.turns[0].prompt_tokens for conversation in played] == [40, 49, 6]
    assert [conversation.turns[0].output_tokens for conversation in played] == [20, 20, 1]


def test_mooncakes_own_lines_and_azures_columns_are_read(tmp_path: Path) -> None:
    mooncake, azure = tmp_path / "m.jsonl", tmp_path / "a.csv"
    line = '{"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]}\n'
    mooncake.write_text(line)
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.4799600,3180,8\n"
    )
    assert read_any_trace(mooncake).requests[0].at_s == 1.5
    found = read_any_trace(azure).requests
    assert [request.input_tokens for request in found] == [4808, 3180]
    assert found[1].at_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,4808\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,-1,5\n", "line 2"),
        ("TIMESTAMP,Tokens\n", "columns"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ("not json\n", "line 1"),
    ],
)
def test_a_damaged_trace_is_refused_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(TraceInvalid, match=words):
        read_any_trace(path)
