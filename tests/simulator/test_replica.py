"""One replica in virtual time, against arithmetic done by hand."""

from __future__ import annotations

import pytest

from bul.errors import ConfigError
from bul.simulator.job import Job
from bul.simulator.replica import PROFILES, ReplicaModel, ReplicaProfile, profile_of

PROFILE = ReplicaProfile(
    name="test",
    prefill_tokens_per_s=1000.0,
    decode_base_s=0.1,
    decode_each_s=0.0,
    slots=1,
    chunk_tokens=100,
    cache_tokens=1000,
)


def finish(model: ReplicaModel) -> None:
    while (at_s := model.next_event_s()) < float("inf"):
        model.advance(at_s)
        model.finish_due()


def test_an_idle_replica_takes_prompt_over_rate_and_then_a_turn_a_token() -> None:
    model, job = ReplicaModel(PROFILE, 0.0), Job(0.0, 500, 11)
    model.submit(job)
    finish(model)
    assert job.first_token_s == pytest.approx(0.5)
    assert job.done_s == pytest.approx(0.5 + 10 * 0.1)
    assert PROFILE.idle_ttft_s(500) == pytest.approx(0.5)


def test_a_request_without_a_slot_waits_for_one() -> None:
    model = ReplicaModel(PROFILE, 0.0)
    first, second = Job(0.0, 100, 11), Job(0.0, 100, 1)
    model.submit(first)
    model.submit(second)
    assert (model.running, len(model.waiting)) == (1, 1)
    finish(model)
    assert second.started_s == pytest.approx(first.done_s)
    assert second.first_token_s == pytest.approx(first.done_s + 0.1)


def test_a_prompt_shares_its_turns_with_those_that_decode() -> None:
    """A turn is 100 tokens of prompt (0.1 s) and a token of the other (0.1 s)."""
    profile = profile_of({**_fields(PROFILE), "slots": 2}, "two")
    model, old, new = ReplicaModel(profile, 0.0), Job(0.0, 1, 1000), Job(0.0, 500, 1)
    model.submit(old)
    model.advance(model.next_event_s())
    model.finish_due()
    started_s = model.now_s
    model.submit(new)
    model.advance(model.next_event_s())
    model.finish_due()
    assert new.first_token_s - started_s == pytest.approx(5 * 0.2)


def test_prompts_that_take_turns_are_done_later_but_the_short_one_first() -> None:
    """500 and 100 tokens together: both get half the rate until the short one is done."""
    profile = profile_of({**_fields(PROFILE), "slots": 2, "prefills_together": 2}, "fair")
    model, long, short = ReplicaModel(profile, 0.0), Job(0.0, 500, 1), Job(0.0, 100, 1)
    model.submit(long)
    model.submit(short)
    finish(model)
    assert short.first_token_s == pytest.approx(0.2)
    assert long.first_token_s == pytest.approx(0.6)
    model, long, short = ReplicaModel(PROFILE, 0.0), Job(0.0, 500, 1), Job(0.0, 100, 1)
    model.submit(long)
    model.submit(short)
    finish(model)
    assert short.first_token_s == pytest.approx(0.6)


def _fields(profile: ReplicaProfile) -> dict[str, object]:
    return {name: getattr(profile, name) for name in ReplicaProfile.__dataclass_fields__}


def test_a_deep_sequence_slows_every_decode_call() -> None:
    """400 tokens of prompt and half of 200: a call takes 0.1 s and 500 times 1 ms; both, 1.1 s."""
    profile = profile_of({**_fields(PROFILE), "slots": 2, "decode_context_s": 1e-3}, "deep")
    model, job = ReplicaModel(profile, 0.0), Job(0.0, 400, 200)
    model.submit(job)
    finish(model)
    assert job.done_s - job.first_token_s == pytest.approx(199 * 0.6)
    assert profile.output_tokens_per_s(500) == pytest.approx(2 / 1.1)
    model, jobs = ReplicaModel(profile, 0.0), [Job(0.0, 400, 200), Job(0.0, 400, 200)]
    for job in jobs:
        model.submit(job)
    finish(model)
    # The first decodes beside the prefill of the other for 4 turns of 0.6 + 0.1 s, then both.
    assert jobs[1].done_s > 199 * 1.1
    model.submit(job := Job(model.now_s, 400, 200))
    finish(model)
    assert job.done_s - job.first_token_s == pytest.approx(199 * 0.6)


def test_what_a_dead_replica_held_comes_back_unfinished() -> None:
    model = ReplicaModel(PROFILE, 0.0)
    jobs = [Job(0.0, 100, 5), Job(0.0, 100, 5)]
    for job in jobs:
        model.submit(job)
    assert {id(job) for job in model.drop_all()} == {id(job) for job in jobs}
    assert model.next_event_s() == float("inf")


def test_a_profile_file_is_checked() -> None:
    with pytest.raises(ConfigError, match="unknown field colour"):
        profile_of({"colour": "red"}, "mine")
    with pytest.raises(ConfigError, match="prefill_tokens_per_s must be above 0"):
        profile_of({**_fields(PROFILE), "prefill_tokens_per_s": 0.0}, "mine")
    assert PROFILES["8b"].output_tokens_per_s(1000) == pytest.approx(16 / 0.041)
