"""The budget of a folder that several processes write into, weighed as `du` weighs it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bul.cache.tiers.disk import DiskTier
from bul.cache.tiers.disk.append import segment_bytes_for
from bul.testing.disk_churn import (
    CHURN_IDENTITY,
    bytes_on_disk,
    start_writer,
    weigh_until_done,
)

pytestmark = pytest.mark.steady

BUDGET = 8 << 20
ENDLESS = 1 << 40


@pytest.mark.slow
def test_the_budget_holds_for_three_processes_one_killed_and_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    folder.mkdir()
    limit = BUDGET + segment_bytes_for(BUDGET)
    doomed = start_writer(folder, worker=0, bytes_max=BUDGET, write_bytes=ENDLESS)
    others = [
        start_writer(folder, worker=worker, bytes_max=BUDGET, write_bytes=10 * BUDGET)
        for worker in (1, 2)
    ]
    try:
        most = weigh_until_done(folder, [doomed, *others], lambda running: len(running) < 3)
    finally:
        doomed.send_signal(signal.SIGKILL)
    again = start_writer(folder, worker=3, bytes_max=BUDGET, write_bytes=2 * BUDGET)
    most = max(most, weigh_until_done(folder, [*others, again], lambda running: not running))
    assert [writer.wait() for writer in (doomed, *others, again)] == [-9, 0, 0, 0]
    assert BUDGET // 2 < most <= limit
    after = DiskTier(folder, CHURN_IDENTITY, bytes_max=BUDGET)
    assert after.stats()["blocks"] > 0
    assert after.check().problems == ()
    after.close()
    assert bytes_on_disk(folder) <= limit


@pytest.mark.slow
def test_processes_that_do_not_know_the_budget_break_it(tmp_path: Path) -> None:
    writers = [
        start_writer(
            tmp_path, worker=worker, bytes_max=BUDGET, write_bytes=2 * BUDGET, store="naive"
        )
        for worker in range(3)
    ]
    most = weigh_until_done(tmp_path, writers, lambda running: not running)
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert most > BUDGET + segment_bytes_for(BUDGET)
