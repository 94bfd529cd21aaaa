"""Ranks whose payloads go through torch.distributed: gloo on CPU, nccl where there are GPUs.

Nightly, because torch takes as long to install as all other wheels together; what does not need it
is in `test_distributed.py`.
"""

from __future__ import annotations

import importlib

import pytest

from bul.cache.tiers.distributed import open_distributed_tier
from bul.cache.tiers.distributed.link import require_backend
from bul.config import KVCacheConfig
from bul.errors import TierUnavailable
from bul.testing.rank_process import RankProcess, addresses_for, running_ranks
from bul.testing.valkey import until

pytestmark = pytest.mark.nightly

BLOCKS = 96


def everything(rank: RankProcess) -> tuple[int, int]:
    """How many of the blocks it finds, and how many of these are right."""
    answer = rank.ask("get", blocks=BLOCKS)
    return answer["found"], answer["right"]


def all_by_link(rank: RankProcess) -> bool:
    stats = rank.ask("stats")["stats"]
    return bool(stats["ranks_by_link"] == stats["ranks"] - 1 - stats["ranks_away"])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_gloo_ranks_find_all_blocks_from_every_rank(count: int) -> None:
    with running_ranks(count, "gloo") as (ranks, _):
        assert ranks[0].ask("set", blocks=BLOCKS)["set"] == BLOCKS
        assert [everything(rank) for rank in ranks] == [(BLOCKS, BLOCKS)] * count
        assert all(map(all_by_link, ranks))


def test_one_of_four_gloo_ranks_is_killed_and_the_rest_go_on() -> None:
    with running_ranks(4, "gloo") as (ranks, addresses):
        assert ranks[0].ask("set", blocks=BLOCKS)["set"] == BLOCKS
        assert [everything(rank) for rank in ranks] == [(BLOCKS, BLOCKS)] * 4
        lost = int(ranks[1].ask("stats")["stats"]["own_blocks"])
        ranks[1].kill()
        rest = [ranks[0], *ranks[2:]]
        assert [everything(rank) for rank in rest] == [(BLOCKS - lost, BLOCKS - lost)] * 3
        assert rest[0].ask("set", blocks=BLOCKS)["set"] == BLOCKS
        assert [everything(rank) for rank in rest] == [(BLOCKS, BLOCKS)] * 3
        back = RankProcess(1, addresses, "gloo")
        try:
            back.wait_ready()
            until("it is found again", lambda: not rest[0].ask("stats")["stats"]["ranks_away"])
            assert rest[0].ask("set", blocks=BLOCKS)["set"] == BLOCKS
            assert everything(back) == (BLOCKS, BLOCKS)
        finally:
            back.kill()


def test_a_frozen_gloo_rank_is_misses_not_a_hang() -> None:
    with running_ranks(3, "gloo") as (ranks, _):
        assert ranks[0].ask("set", blocks=BLOCKS)["set"] == BLOCKS
        assert everything(ranks[0]) == (BLOCKS, BLOCKS)
        ranks[2].freeze()
        found, right = everything(ranks[0])
        assert found == right < BLOCKS
        ranks[2].thaw()
        until("it is found again", lambda: not ranks[0].ask("stats")["stats"]["ranks_away"])
        assert everything(ranks[0]) == (BLOCKS, BLOCKS)


def test_the_engines_own_way_opens_a_tier_over_gloo() -> None:
    ranks = tuple(f"{host}:{port}" for host, port in addresses_for(2))
    config = KVCacheConfig(enable_distributed=True, distributed_ranks=ranks)
    tier = open_distributed_tier(config, bytes(32))
    assert tier.stats()["ranks"] == 2
    tier.close()


def test_nccl_moves_blocks_between_gpus_or_says_what_is_missing() -> None:
    """Both halves are the promise: which one holds depends on the machine."""
    cuda = importlib.import_module("torch").cuda
    if not cuda.is_available():
        with pytest.raises(TierUnavailable, match="needs CUDA and a GPU"):
            require_backend("nccl")
        return
    # Two ranks need two GPUs: nccl refuses a pair on one.
    count = min(2, cuda.device_count())
    with running_ranks(count, "nccl") as (ranks, _):
        assert ranks[0].ask("set", blocks=BLOCKS)["set"] == BLOCKS
        assert [everything(rank) for rank in ranks] == [(BLOCKS, BLOCKS)] * count
