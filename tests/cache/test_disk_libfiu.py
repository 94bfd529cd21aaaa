"""Every write, sync and rename of the C library fails once under a real engine: libfiu."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bul.testing.disk_libfiu import LIBFIU_FOLDER, READ_POINTS, WRITE_POINTS, libfiu_environment

Totals = dict[str, dict[str, int]]


def visits(store: str, *options: str) -> Totals:
    """What the child counted, by libfiu's name of the point."""
    assert LIBFIU_FOLDER.is_dir(), "make servers unpacks libfiu"
    command = [sys.executable, "-m", "bul.testing.disk_libfiu", "--store", store, *options]
    environment = os.environ | libfiu_environment()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    totals: Totals = json.loads(done.stdout)
    return totals


def assert_calls_failed(point: str, seen: dict[str, int], *, all_of_them: bool) -> None:
    """Each visit had its fault. How calls fall into batches differs by a few between visits."""
    wanted = seen["calls"] - 3 if all_of_them else min(seen["calls"], 8) - 2
    assert seen["fired"] >= max(1, wanted), (point, seen)


@pytest.mark.slow
def test_each_write_sync_and_rename_that_fails_once_fails_no_request() -> None:
    totals = visits("disk")
    assert set(totals) == {*WRITE_POINTS, *READ_POINTS}
    for point, seen in totals.items():
        assert_calls_failed(point, seen, all_of_them=point in WRITE_POINTS)
        assert (seen.get("failed", 0), seen["wrong"], seen["lost"]) == (0, 0, 0), (point, seen)
        assert seen["acknowledged"] > 0
        assert seen.get("refused_starts", 0) == 0, point
    assert totals["posix/io/rw/pwritev"]["dropped"] > 0  # the faults were felt
    assert totals["posix/io/sync/fdatasync"]["dropped"] > 0


@pytest.mark.slow
def test_a_failed_removal_during_eviction_fails_no_request() -> None:
    for point, seen in visits("evicting", "--error", "ENOSPC").items():
        assert_calls_failed(point, seen, all_of_them=False)
        assert seen["calls"] > 3, (point, seen)
        assert (seen.get("failed", 0), seen["wrong"]) == (0, 0), (point, seen)


@pytest.mark.slow
def test_a_store_that_does_not_look_at_its_writes_is_caught() -> None:
    [seen] = visits("trusting").values()
    assert seen["lost"] > 0


@pytest.mark.slow
def test_a_file_for_each_block_fails_requests_under_the_same_faults() -> None:
    for point, seen in visits("naive").items():
        assert_calls_failed(point, seen, all_of_them=False)
        assert seen["failed"] > 0, point
