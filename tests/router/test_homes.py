"""A conversation whose blocks have left goes back to where they were, if that costs little."""

from __future__ import annotations

import pytest

from bul.blocks.text_chain import CHUNK_BYTES
from bul.config import RouteConfig
from bul.router.homes import ENDS_MAX, FITS_MIN, Homes
from bul.router.judge import Judge
from bul.router.prompt import HINTED_TOKENS, Prompt
from bul.router.rates import PER_REQUEST_MS, PER_TOKEN_MS, Rates
from bul.router.replica import Replica
from bul.router.route import HOME_AHEAD, STORED_TWICE, choose_prefix, score_prefix
from bul.simulator.job import Job
from bul.simulator.routing import Router, Routing

CHUNKS = 8


def test_the_next_turn_finds_the_end_of_the_last() -> None:
    homes: Homes[str] = Homes()
    homes.add([1, 2, 3], "a")
    assert homes.find([1, 2, 3, 4, 5], 0) == ("a", 3)
    assert homes.find([1, 2, 30, 40], 0) == ("a", 2)  # its very last chunk was changed
    assert homes.find([1, 20, 30], 0) is None


def test_what_somebody_holds_anyway_has_no_home() -> None:
    homes: Homes[str] = Homes()
    homes.add([1, 2, 3], "a")
    assert homes.find([1, 2, 3, 4], 2) == ("a", 3)
    assert homes.find([1, 2, 3, 4], 3) is None


def test_the_last_one_to_get_it_is_its_home() -> None:
    homes: Homes[str] = Homes()
    homes.add([1, 2, 3], "a")
    homes.add([1, 2, 3], "b")
    assert homes.find([1, 2, 3], 0) == ("b", 3)


def test_homes_are_bounded_and_the_oldest_is_forgotten() -> None:
    homes: Homes[str] = Homes()
    for hint in range(ENDS_MAX + 1):
        homes.add([hint], "a")
    assert len(homes) == ENDS_MAX
    assert homes.find([0], 0) is None
    assert homes.find([1], 0) == ("a", 1)


def _choose(in_flight: list[int], left: list[float]) -> int:
    return choose_prefix(
        [1000.0] * 2, in_flight, 0, per_token_ms=0.5, per_request_ms=20.0, left=left
    )


def test_home_may_have_so_many_more_under_way_and_no_more() -> None:
    ahead = int(HOME_AHEAD)
    left = [0.0, 1000.0]
    assert _choose([0, ahead - 1], left) == 1
    assert _choose([0, ahead + 1], left) == 0
    assert _choose([0, ahead - 1], []) == 0  # the control


def test_going_home_is_worth_no_more_than_what_was_there() -> None:
    tokens = (HOME_AHEAD * 20.0 - 1.0) / (STORED_TWICE * 0.5)
    assert _choose([0, int(HOME_AHEAD)], [0.0, tokens]) == 0
    assert _choose([0, int(HOME_AHEAD) - 1], [0.0, tokens]) == 1


def test_an_overloaded_home_gets_nobody() -> None:
    scores = score_prefix(
        [1000.0] * 2, [9, 0], per_token_ms=0.5, per_request_ms=20.0, left=[1000.0, 0.0]
    )
    assert scores[0] == 0.0
    assert 0.0 < scores[1] <= 1.0


# The judge, over two replicas that hold nothing any more.


def _judge(fits: int) -> tuple[Judge, list[Replica]]:
    residency_tokens = fits * CHUNKS * CHUNK_BYTES // 4
    replicas = [
        Replica(f"http://127.0.0.1:{port}", lambda: None, residency_tokens=residency_tokens)
        for port in (1, 2)
    ]
    for replica in replicas:
        replica.residency.told = frozenset[int]()
    return Judge(RouteConfig(), Rates()), replicas


def _prompt(conversation: int) -> Prompt:
    hints = [conversation * 1000 + chunk for chunk in range(CHUNKS)]
    return Prompt(hints, CHUNKS * CHUNK_BYTES / 4)


def _places(fits: int) -> set[str]:
    """Where the turns of one conversation went, whose blocks leave after each."""
    judge, replicas = _judge(fits)
    places = set()
    for turn in range(4):
        chosen = judge.pick(replicas, _prompt(1), (), now_s=turn * 100.0)
        assert chosen is not None
        judge.sent(_prompt(1), chosen, turn * 100.0)
        places.add(chosen.url)
    return places


def test_every_turn_goes_to_the_same_replica_though_its_blocks_have_left() -> None:
    assert len(_places(FITS_MIN)) == 1


def test_a_prompt_that_takes_much_of_a_replica_goes_where_there_is_room() -> None:
    """The control of the one above, and why it is bounded."""
    assert len(_places(FITS_MIN - 1)) == 2


def test_a_home_that_is_not_a_candidate_is_no_home() -> None:
    judge, replicas = _judge(FITS_MIN)
    judge.sent(_prompt(1), replicas[0], 0.0)
    assert judge.pick(replicas, _prompt(1), (replicas[0],), 100.0) is replicas[1]


def test_the_scores_explain_a_return_home() -> None:
    judge, replicas = _judge(FITS_MIN)
    said: list[dict[str, object]] = []
    judge.explain = lambda document: said.append(dict(document))
    judge.sent(_prompt(1), replicas[1], 0.0)
    assert judge.pick(replicas, _prompt(1), (), 100.0) is replicas[1]
    [event] = said
    rows = event["candidates"]
    assert isinstance(rows, list)
    assert [row["left_tokens"] for row in rows] == [0.0, HINTED_TOKENS[CHUNKS]]


@pytest.mark.parametrize(("capacity", "places"), [(16 * 4, 1), (15 * 4, 4)])
def test_the_simulated_router_does_the_same(capacity: int, places: int) -> None:
    router = Router(
        Routing(policy="prefix", capacity_blocks=capacity, residency_tokens=capacity * 512)
    )
    residencies = [router.residency() for _ in range(4)]
    for residency in residencies:
        residency.told = frozenset[int]()
    chosen = set()
    for turn in range(4):
        job = Job(arrived_s=100.0 * turn, prompt_tokens=2100, output_tokens=1, path=(1, 2, 3, 4))
        chosen.add(router.pick(residencies, [0] * 4, job))
    assert len(chosen) == places
    assert (router.rates.per_token_ms, router.rates.per_request_ms) == (
        PER_TOKEN_MS,
        PER_REQUEST_MS,
    )
