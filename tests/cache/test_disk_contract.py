"""The disk tier against the contract that every tier keeps, under every policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bul.cache.tiers.disk import DiskTier
from bul.testing.tier_contract import TierContract

IDENTITY = b"i" * 32
MIB = 1 << 20


class TestDiskTier(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[DiskTier]:
        tier = DiskTier(tmp_path, IDENTITY, bytes_max=64 * MIB)
        yield tier
        tier.close()


class TestDiskTierThatSyncsAlways(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[DiskTier]:
        tier = DiskTier(tmp_path, IDENTITY, bytes_max=64 * MIB, fsync="always")
        yield tier
        tier.close()


class TestDiskTierWithLz4(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[DiskTier]:
        tier = DiskTier(tmp_path, IDENTITY, bytes_max=64 * MIB, compression="lz4", fsync="none")
        yield tier
        tier.close()


class TestDiskTierWithZstd(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[DiskTier]:
        tier = DiskTier(tmp_path, IDENTITY, bytes_max=64 * MIB, compression="zstd", fsync="none")
        yield tier
        tier.close()
