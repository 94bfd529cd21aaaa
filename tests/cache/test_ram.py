"""RAM behind the tier contract, and what is its own: prefix closure and the bound."""

from __future__ import annotations

import pytest

from bul.cache.contract import Tier
from bul.cache.tiers.ram import RamTier
from bul.testing.tier_contract import TierContract, chain_of_records


class TestRamTier(TierContract):
    @pytest.fixture
    def tier(self) -> Tier:
        return RamTier(blocks_max=64, bytes_max=1 << 20)


def test_a_block_without_its_parent_is_refused() -> None:
    tier = RamTier(blocks_max=8, bytes_max=1 << 20)
    assert tier.set(chain_of_records(3)[1:]) == 0
    assert tier.stats()["refused_total"] == 2


def test_the_bound_in_blocks_holds_and_the_least_recent_tails_go() -> None:
    tier = RamTier(blocks_max=6, bytes_max=1 << 20)
    first, second = chain_of_records(4), chain_of_records(4, first_token=900)
    tier.set(first)
    tier.set(second)
    assert tier.stats()["blocks"] == 6
    assert tier.match([record.key for record in first]) == 2
    assert tier.match([record.key for record in second]) == 4
    assert tier.check().problems == ()


def test_reading_a_chain_keeps_it() -> None:
    tier = RamTier(blocks_max=8, bytes_max=1 << 20)
    first = chain_of_records(4)
    tier.set(first)
    tier.set(chain_of_records(4, first_token=900))
    tier.get([record.key for record in first])
    tier.set(chain_of_records(4, first_token=1800))
    assert tier.match([record.key for record in first]) == 4


def test_check_finds_a_wrong_sum() -> None:
    tier = RamTier(blocks_max=8, bytes_max=1 << 20)
    tier.set(chain_of_records(2))
    tier._resident.bytes += 1  # the damage that check must see
    assert len(tier.check().problems) == 1
