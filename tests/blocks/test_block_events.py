"""Block events: numbers that follow, snapshots in bounded lines, and what damage does."""

from __future__ import annotations

import pytest

from bul.blocks.block_events import (
    LINE_BYTES_MAX,
    OPS_PER_LINE,
    EventLine,
    OpsLog,
    TextsHeld,
    decode_line,
    encode_line,
)


def _lines_of(log: OpsLog, ops: list[tuple[int, int]]) -> list[EventLine]:
    lines = []
    for op in ops:
        after = log.seq
        log.add(*op)
        line = log.line_after(after)
        assert line is not None
        lines.append(line)
    return lines


def test_a_follower_believes_what_was_told_in_order() -> None:
    log, held = OpsLog("e"), TextsHeld(100)
    for line in log.snapshot({7: 64}):
        held.apply(line)
    for line in _lines_of(log, [(1, 64), (2, 128), (1, 0)]):
        held.apply(line)
    assert held.synced
    assert held.hints == {7: 64, 2: 128}


def test_a_missing_line_is_noticed_and_nothing_is_believed_until_a_snapshot() -> None:
    log, held = OpsLog("e"), TextsHeld(100)
    held.apply(*log.snapshot({1: 64}))
    lines = _lines_of(log, [(1, 0), (2, 128)])
    assert held.apply(lines[1]) is None
    assert (held.hints, held.synced, held.gaps) == ({}, False, 1)
    held.apply(*log.snapshot({2: 128}))
    assert (held.hints, held.synced) == ({2: 128}, True)


def test_without_numbers_a_lost_eviction_is_believed_for_ever() -> None:
    """The control of the one above."""
    log, held = OpsLog("e"), TextsHeld(100, detect_gaps=False)
    held.apply(*log.snapshot({1: 64}))
    lines = _lines_of(log, [(1, 0), (2, 128)])
    held.apply(lines[1])
    assert held.hints == {1: 64, 2: 128}


def test_numbers_of_another_life_mean_nothing() -> None:
    held = TextsHeld(100)
    held.apply(*OpsLog("one").snapshot({1: 64}))
    assert held.apply(EventLine("two", 0, 1, [(2, 64)])) is None
    assert held.hints == {}


def test_a_long_snapshot_comes_in_bounded_lines_and_counts_when_it_is_whole() -> None:
    log, held = OpsLog("e"), TextsHeld(100_000)
    everything = {(1 << 64) - 1 - hint: 1 << 20 for hint in range(2 * OPS_PER_LINE + 1)}
    lines = log.snapshot(everything)
    assert len(lines) == 3
    for line in lines:
        assert not held.synced
        data = encode_line(line)
        assert len(data) <= LINE_BYTES_MAX
        decoded = decode_line(data)
        assert decoded is not None
        held.apply(decoded)
    assert held.synced
    assert held.hints == everything


def test_the_log_is_bounded_and_says_when_it_cannot_tell() -> None:
    log = OpsLog("e", ops_max=10)
    for hint in range(25):
        log.add(hint, 64)
    assert log.line_after(14) is None
    assert log.line_after(26) is None
    line = log.line_after(15)
    assert line is not None
    assert [hint for hint, _ in line.ops] == list(range(15, 25))


def test_no_replica_can_make_a_router_remember_more_than_its_limit() -> None:
    held = TextsHeld(3)
    held.apply(EventLine("e", 0, 0, [(hint, 64) for hint in range(10)], snapshot=True))
    assert (len(held.hints), held.left_out) == (3, 7)


@pytest.mark.parametrize(
    "data",
    [b"data: {", b"id: 0d4cbb29\ndata: []", b'id: d67a9279\ndata: {"epoch":1}', b"\xff", b"hello"],
)
def test_what_is_no_event_is_an_error_and_not_a_belief(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_line(data)


def test_a_flipped_bit_is_no_belief() -> None:
    data = encode_line(EventLine("e", 0, 1, [(1 << 63, 64)]))
    assert decode_line(data.rstrip(b"\n")) is not None
    for position in range(len(data) - 2):
        spoilt = bytearray(data.rstrip(b"\n"))
        spoilt[position] ^= 1
        with pytest.raises(ValueError, match=r"."):
            decode_line(bytes(spoilt))
