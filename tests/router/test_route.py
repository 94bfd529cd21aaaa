"""The choice of a replica, as a pure function."""

from __future__ import annotations

import pytest

from bul.router.budget import RetryBudget
from bul.router.route import POLICIES, choose, pick


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_score_lies_in_0_to_1(policy: str) -> None:
    assert all(0 <= score <= 1 for score in POLICIES[policy]([0, 1, 7, 1000]))


def test_least_conn_takes_the_one_with_the_fewest_under_way() -> None:
    assert choose("least_conn", [3, 1, 2], turn=0) == 1
    assert choose("least_conn", [3, 1, 2], turn=1) == 1


def test_one_request_more_is_enough_to_lose() -> None:
    assert choose("least_conn", [1000, 999], turn=0) == 1


def test_ties_go_round_by_the_turn() -> None:
    assert [choose("least_conn", [1, 0, 0], turn=turn) for turn in range(4)] == [1, 2, 1, 2]


def test_round_robin_does_not_look_at_the_load() -> None:
    assert [choose("round_robin", [9, 0, 5], turn=turn) for turn in range(4)] == [0, 1, 2, 0]


def test_the_best_score_wins_whatever_the_turn() -> None:
    assert [pick([0.1, 0.9], turn) for turn in range(3)] == [1, 1, 1]


def test_the_budget_always_allows_a_few_retries_in_ten_seconds() -> None:
    budget = RetryBudget(share=0.2, at_least=10)
    assert [budget.take(0.5) for _ in range(11)] == [True] * 10 + [False]
    assert not budget.take(9.9)
    assert budget.take(10.0)


def test_the_budget_is_a_share_of_the_requests_when_there_are_many() -> None:
    budget = RetryBudget(share=0.2, at_least=10)
    for _ in range(100):
        budget.request(1.0)
    assert [budget.take(2.0) for _ in range(21)] == [True] * 20 + [False]


def test_requests_older_than_ten_seconds_do_not_count() -> None:
    budget = RetryBudget(share=0.2, at_least=0)
    for _ in range(100):
        budget.request(1.0)
    assert budget.take(10.9)
    assert not budget.take(11.0)


def test_a_budget_of_nothing_allows_nothing() -> None:
    assert not RetryBudget(share=0.0, at_least=0).take(0.0)
