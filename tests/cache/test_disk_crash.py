"""Kills, power cuts and full disks, for real; each with a control that the same harness catches."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bul.cache.tiers.disk import DiskTier
from bul.errors import TierUnavailable
from bul.testing.disk_faults import LoopDisk
from bul.testing.tier_contract import chain_of_records, keys_of, read

pytestmark = pytest.mark.steady

MIB = 1 << 20
ROOT = os.geteuid() == 0


def crash(*options: str) -> dict[str, int]:
    """Totals of `python -m bul.testing.disk_crash`; a process of its own, since it forks."""
    command = [sys.executable, "-m", "bul.testing.disk_crash", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    totals: dict[str, int] = json.loads(done.stdout)
    return totals


@pytest.mark.slow
def test_sixty_kills_while_writing_lose_nothing_acknowledged_and_serve_nothing_wrong() -> None:
    totals = crash("--kind", "kill", "--cycles", "60")
    assert (totals["wrong"], totals["lost"]) == (0, 0)
    assert totals["acknowledged"] > 1000


@pytest.mark.slow
def test_kills_during_eviction_serve_nothing_wrong() -> None:
    totals = crash("--kind", "churn", "--cycles", "15", "--fsync", "none")
    assert totals["wrong"] == 0
    assert totals["lost"] > 0  # evicted: the test is about eviction


@pytest.mark.slow
def test_the_naive_store_is_caught_by_kills() -> None:
    assert crash("--kind", "kill", "--cycles", "5", "--store", "naive")["wrong"] > 0


@pytest.mark.nightly
def test_a_thousand_kills() -> None:
    totals = crash("--kind", "kill", "--cycles", "1000", "--seed", "1000")
    assert (totals["wrong"], totals["lost"]) == (0, 0)


@pytest.mark.nightly
def test_three_hundred_kills_during_eviction() -> None:
    assert crash("--kind", "churn", "--cycles", "300", "--seed", "1000")["wrong"] == 0


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 << 10)):
            pass


if ROOT:  # an ext4 of our own needs root; the kill cycles above do not

    @pytest.mark.slow
    def test_thirty_power_cuts_lose_nothing_that_was_synced() -> None:
        totals = crash("--kind", "power", "--fsync", "always", "--cycles", "30")
        assert (totals["wrong"], totals["lost"]) == (0, 0)
        assert totals["acknowledged"] > 100

    @pytest.mark.slow
    @pytest.mark.parametrize("fsync", ["interval", "none"])
    def test_power_cuts_without_syncs_lose_blocks_and_serve_nothing_wrong(fsync: str) -> None:
        assert crash("--kind", "power", "--fsync", fsync, "--cycles", "10")["wrong"] == 0

    @pytest.mark.slow
    def test_renaming_without_syncs_is_caught_by_power_cuts() -> None:
        assert crash("--kind", "power", "--store", "renaming", "--cycles", "3")["lost"] > 0

    @pytest.mark.nightly
    def test_three_hundred_power_cuts() -> None:
        totals = crash("--kind", "power", "--fsync", "always", "--cycles", "300")
        assert (totals["wrong"], totals["lost"]) == (0, 0)

    def test_a_full_file_system_is_dropped_writes_and_recovers(tmp_path: Path) -> None:
        """The budget says 64 MiB, the file system has 16, and somebody else fills it."""
        with LoopDisk(tmp_path, 16 * MIB) as loop:
            tier = DiskTier(loop.path / "kv", b"i" * 32, bytes_max=64 * MIB, fsync="always")
            kept = chain_of_records(8)
            assert tier.set(kept) == 8
            hog = loop.path / "hog"
            fill(hog)
            for number in range(1, 30):
                records = chain_of_records(32, first_token=number * 1000)
                tier.set(records)
                for block, record in zip(read(tier, keys_of(records)), records, strict=True):
                    assert block in (None, record.payload)
            hog.unlink()
            tier.close()
            tier = DiskTier(loop.path / "kv", b"i" * 32, bytes_max=64 * MIB, fsync="always")
            records = chain_of_records(64, first_token=90_000)
            assert tier.set(records) == 64
            assert read(tier, keys_of(records)) == [record.payload for record in records]
            assert tier.check().problems == ()
            tier.close()

    def test_a_read_only_mount_is_one_clear_line(tmp_path: Path) -> None:
        with LoopDisk(tmp_path, 16 * MIB) as loop:
            loop.unmount()
            loop.mount(read_only=True)
            with pytest.raises(TierUnavailable, match="read-only"):
                DiskTier(loop.path / "kv", b"i" * 32, bytes_max=64 * MIB)
