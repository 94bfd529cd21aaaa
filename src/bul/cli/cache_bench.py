"""`bul cache bench`: what this machine's RAM and disk give the KV cache, in a minute or less.

Refuses to touch what a region keeps: it writes to a temporary folder beside it, under an identity
of its own, and removes it. `make bench-cache` compares with other stores; this asks one machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import click

from bul.cli.cache_disk import folder_option
from bul.cli.options import load

if typing.TYPE_CHECKING:
    from bul.cache.contract import BlockRecord
    from bul.cache.tiers.disk.tier import DiskTier

__all__ = ["bench_command"]

CALL_BLOCKS = 16
"""Blocks of one call: a prefix of 1,024 tokens."""
TOKENS = 64
MATCH_BLOCKS = 32
ROUNDS_RAM = 200


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One thing measured. p50_us, p99_us: of one call. gb_per_s: None where bytes do not move."""

    what: str
    calls: int
    p50_us: float
    p99_us: float
    gb_per_s: float | None = None
    cpu_s_per_gb: float | None = None


@click.command("bench")
@click.option(
    "--block-bytes",
    type=click.IntRange(16, 1 << 28),
    default=1_474_560,
    show_default=True,
    help="Of one block; the default is the built-in model's.",
)
@click.option("--blocks", type=click.IntRange(1, 1 << 16), default=256, show_default=True)
@folder_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def bench_command(*, block_bytes: int, blocks: int, as_json: bool, **values: object) -> None:
    """Measure the RAM and disk tiers here: GB/s, microseconds a call, CPU.

    Example: bul cache bench --blocks 64
    """
    import msgspec

    from bul.cli.cache_engine import cache_folder

    records = _records(block_bytes, blocks)
    rows = [*_disk_rows(_beside(cache_folder(load(values))), records), *_ram_rows(records)]
    document = {
        "block_bytes": block_bytes,
        "blocks": blocks,
        "blocks_per_call": CALL_BLOCKS,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    if as_json:
        click.echo(msgspec.json.encode(document))
    else:
        _print(rows, f"{blocks} blocks of {block_bytes:,} bytes, {CALL_BLOCKS} a call")


def _beside(folder: Path) -> Path:
    """The nearest folder that exists: the same file system, most likely."""
    folder = folder.absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _records(block_bytes: int, blocks: int) -> list[BlockRecord]:
    from bul.blocks.chain import block_keys
    from bul.cache.contract import BlockRecord

    keys = block_keys(os.urandom(32), range(blocks * TOKENS), TOKENS)
    return [
        BlockRecord(key=key, parent=parent, tokens=TOKENS, payload=os.urandom(block_bytes))
        for key, parent in zip(keys, [b"", *keys], strict=False)
    ]


def _disk_rows(beside: Path, records: Sequence[BlockRecord]) -> Iterator[Row]:
    from bul.cache.tiers.disk.tier import DiskTier
    from bul.errors import TierUnavailable

    size = sum(len(record.payload) for record in records)
    calls = [records[at : at + CALL_BLOCKS] for at in range(0, len(records), CALL_BLOCKS)]
    try:
        temporary = tempfile.TemporaryDirectory(prefix=".bul-bench-", dir=beside)
    except OSError as error:
        message = f"cannot write to {beside}: {error.strerror}"
        raise TierUnavailable(message, hint="name another folder with --persistence-dir") from error
    with temporary as name:
        folder = Path(name)
        tier = DiskTier(folder, os.urandom(32), bytes_max=4 * size + (1 << 30), fsync="none")
        with contextlib.closing(tier):
            yield _timed("disk set", [partial(_set, tier, call) for call in calls], size)
            gets = [partial(_get, tier, call) for call in calls]
            yield _timed("disk get, kept by the kernel", gets, size)
            _drop_from_memory(folder)
            yield _timed("disk get, from the device", gets, size)
            keys = [record.key for record in records[:MATCH_BLOCKS]]
            matches = [partial(tier.match, keys)] * ROUNDS_RAM
            yield _timed(f"disk match of {len(keys)} keys", matches)


def _set(tier: DiskTier, call: Sequence[BlockRecord]) -> None:
    from bul.errors import TierUnavailable

    if tier.set(call) != len(call):
        hint = "free space, or name another folder with --persistence-dir"
        raise TierUnavailable("the disk did not take every block", hint=hint)


def _get(tier: DiskTier, call: Sequence[BlockRecord]) -> None:
    found = tier.get([record.key for record in call])
    assert all(block is not None for block in found), "what was just written is there"


def _drop_from_memory(folder: Path) -> None:
    for file in folder.glob("*/*.seg"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _ram_rows(records: Sequence[BlockRecord]) -> Iterator[Row]:
    from bul.cache.engine import UltraAdaptiveKVCacheEngine
    from bul.config import KVCacheConfig

    size = sum(len(record.payload) for record in records)
    config = KVCacheConfig(max_tokens=2 * TOKENS * len(records), ram_bytes_max=2 * size + (1 << 20))
    engine = UltraAdaptiveKVCacheEngine(config)
    keys = [record.key for record in records]
    sets = [
        partial(engine.set_blocks, keys[: at + 1], at, [record.payload])
        for at, record in enumerate(records)
    ]
    yield _timed("RAM set of a block", sets)
    wanted = keys[:MATCH_BLOCKS]
    matches: list[Callable[[], object]] = [
        lambda: engine.match_prefix(wanted).release()
    ] * ROUNDS_RAM
    yield _timed(f"RAM match of {len(wanted)} blocks", matches)
    engine.close()


def _timed(what: str, calls: Sequence[Callable[[], object]], size_bytes: int = 0) -> Row:
    taken_s = []
    cpu_s = time.process_time()
    for call in calls:
        started_s = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - started_s)
    cpu_s = time.process_time() - cpu_s
    ordered = sorted(taken_s)
    return Row(
        what=what,
        calls=len(calls),
        p50_us=round(ordered[len(ordered) // 2] * 1e6, 1),
        p99_us=round(ordered[int(len(ordered) * 0.99)] * 1e6, 1),
        gb_per_s=round(size_bytes / sum(taken_s) / 1e9, 3) if size_bytes else None,
        cpu_s_per_gb=round(cpu_s / (size_bytes / 1e9), 3) if size_bytes else None,
    )


def _print(rows: Sequence[Row], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "calls", "p50 us", "p99 us", "GB/s", "CPU s/GB", title=title)
    for row in rows:
        table.add_row(
            row.what,
            str(row.calls),
            f"{row.p50_us:,.1f}",
            f"{row.p99_us:,.1f}",
            "-" if row.gb_per_s is None else f"{row.gb_per_s:.2f}",
            "-" if row.cpu_s_per_gb is None else f"{row.cpu_s_per_gb:.2f}",
        )
    Console().print(table)
