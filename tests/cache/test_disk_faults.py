"""Every system call of the disk tier fails once: no exception, no wrong byte, nothing lost."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from bul.cache.contract import BlockRecord
from bul.cache.tiers.disk import DiskTier
from bul.errors import TierUnavailable
from bul.testing.disk_faults import FAULT_CALLS, FaultyIO
from bul.testing.tier_contract import chain_of_records, keys_of, read

pytestmark = pytest.mark.steady

IDENTITY = b"i" * 32
MIB = 1 << 20
POINTS_MAX = 25
"""Of a call that is made more often, so many are failed, spread over the whole run."""


def open_tier(folder: Path, io: FaultyIO | None = None, **options: object) -> DiskTier:
    options = {"bytes_max": MIB, "fsync": "always", **options}
    return DiskTier(folder, IDENTITY, io=io, **options)  # type: ignore[arg-type]  # by name


def check_bytes(tier: DiskTier, records: Sequence[BlockRecord]) -> int:
    """Hits among the records; a wrong byte fails the test."""
    found = read(tier, keys_of(records))
    for block, record in zip(found, records, strict=True):
        assert block is None or block == record.payload
    return sum(block is not None for block in found)


def work(folder: Path, io: FaultyIO) -> list[BlockRecord] | None:
    """Open, write, read, repeat, delete, check, close; what was acknowledged and should be there.

    `None` if the folder could not be used at start-up.
    """
    try:
        tier = open_tier(folder, io)
    except TierUnavailable:
        return None
    acknowledged: list[BlockRecord] = []
    for number in range(6):
        records = chain_of_records(6, first_token=number * 1000)
        if tier.set(records) == len(records):
            acknowledged += records
        check_bytes(tier, records)
        tier.match(keys_of(records))
    doomed = acknowledged[-6:]
    tier.delete(keys_of(doomed))
    tier.set([BlockRecord(key=b"name", parent=b"", tokens=0, payload=b"value")])
    tier.stats()
    tier.check()
    tier.close()
    return acknowledged[:-6]


def calls_of_a_healthy_run(tmp_path: Path) -> dict[str, int]:
    io = FaultyIO()
    assert work(tmp_path / "healthy", io) is not None
    return dict(io.calls)


def points(total: int) -> list[int]:
    step = max(1, -(-total // POINTS_MAX))
    return list(range(1, total + 1, step))


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EROFS])
@pytest.mark.parametrize("call", FAULT_CALLS)
def test_a_call_that_fails_once_fails_no_request(tmp_path: Path, call: str, error: int) -> None:
    total = calls_of_a_healthy_run(tmp_path).get(call, 0)
    chosen = points(total) if error == errno.EIO else points(total)[::8]
    for nth in chosen:
        folder = tmp_path / f"{nth}"
        io = FaultyIO()
        io.fail(call, nth=nth, error=error, torn=True)
        acknowledged = work(folder, io)
        assert io.failed[call] == 1
        again = open_tier(folder)
        assert check_bytes(again, acknowledged or []) == len(acknowledged or [])
        check_bytes(again, chain_of_records(6, first_token=5000))
        more = chain_of_records(6, first_token=70_000)
        assert again.set(more) == 6
        assert check_bytes(again, more) == 6
        again.close()


def test_the_calls_that_matter_were_made(tmp_path: Path) -> None:
    calls = calls_of_a_healthy_run(tmp_path)
    for call in ("pwritev", "fdatasync", "fsync", "rename", "allocate", "truncate", "unlink"):
        assert calls.get(call, 0) > 0, call


@pytest.mark.parametrize("call", FAULT_CALLS)
def test_a_call_that_fails_from_now_on_is_misses_and_drops(tmp_path: Path, call: str) -> None:
    io = FaultyIO()
    tier = open_tier(tmp_path, io)
    records = chain_of_records(6)
    tier.set(records)
    io.fail(call, times=0)
    for number in range(1, 30):
        check_bytes(tier, records)
        more = chain_of_records(12, first_token=number * 1000)
        tier.set(more)
        check_bytes(tier, more)
    tier.delete(keys_of(records))
    tier.check()
    tier.stats()
    tier.clear()
    io.heal()
    tier.close()
    again = open_tier(tmp_path)
    check_bytes(again, records)
    assert again.set(records) == 6
    again.close()


def test_a_store_that_trusts_its_writes_is_caught(tmp_path: Path) -> None:
    """The control: a torn write that was not noticed is served."""
    io = FaultyIO()
    io.fail("pwritev", torn=True)
    [record] = chain_of_records(1)
    handle = io.open(tmp_path / "naive", os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match="Input/output"):
        io.pwritev(handle.fd, [record.payload], 0)
    served = io.pread(handle.fd, 4096, 0)
    assert served not in (b"", record.payload)


def test_no_write_is_lost_to_the_budget_after_a_full_disk(tmp_path: Path) -> None:
    """ENOSPC for a while must not leave space reserved, or the tier stuck (seen at a peer)."""
    io = FaultyIO()
    tier = open_tier(tmp_path, io)
    io.fail("allocate", error=errno.ENOSPC, times=0)
    assert tier.set(chain_of_records(4)) == 0
    assert tier.stats()["dropped_blocks_total"] == 4
    before = tier.stats()["bytes"]
    io.heal()
    tier.close()
    again = open_tier(tmp_path)
    assert again.stats()["bytes"] <= before
    assert again.set(chain_of_records(4)) == 4
    again.close()


def test_a_failed_sync_is_not_acknowledged_and_not_tried_again(tmp_path: Path) -> None:
    io = FaultyIO()
    tier = open_tier(tmp_path, io)
    tier.set(chain_of_records(2))
    io.fail("fdatasync")
    bad = chain_of_records(3, first_token=500)
    assert tier.set(bad) == 0
    assert tier.match(keys_of(bad)) == 0
    assert tier.set(bad) == 3
    assert tier.stats()["segments"] == 2
    assert tier.check().problems == ()
    tier.close()


def test_blocks_of_a_segment_whose_last_sync_failed_are_not_acknowledged(tmp_path: Path) -> None:
    io = FaultyIO()
    tier = open_tier(tmp_path, io)
    tier.set(chain_of_records(2))
    io.fail("fsync")  # the seal of the segment that the next batch begins in
    assert tier.set(chain_of_records(30, first_token=500)) == 0
    assert tier.match(keys_of(chain_of_records(2))) == 2
    assert tier.set(chain_of_records(30, first_token=500)) == 30
    assert tier.check().problems == ()
    tier.close()


@pytest.mark.slow
def test_a_stopped_neighbour_that_holds_the_lock_does_not_hang_anybody(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    records = chain_of_records(3)
    tier.set(records)
    io = FaultyIO()
    handle = io.open(tmp_path / IDENTITY.hex()[:40] / "index.lock", os.O_RDWR)
    assert io.try_lock(handle.fd)
    done: list[int] = []
    thread = threading.Thread(
        target=lambda: done.append(tier.set(chain_of_records(3, first_token=500)))
    )
    thread.start()
    assert check_bytes(tier, records) == 3
    thread.join(30)
    assert done == [0]
    io.unlock(handle.fd)
    assert tier.set(chain_of_records(3, first_token=500)) == 3
    tier.close()


def test_a_closed_tier_says_so(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.close()
    tier.close()
    with pytest.raises(TierUnavailable):
        tier.get([bytes(32)])
    with pytest.raises(TierUnavailable):
        tier.set(chain_of_records(1))
