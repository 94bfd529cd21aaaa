"""KVCacheConfig.for_machine: the table of docs/reference/sizing.md, and its edges."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bul.config import KVCacheConfig
from bul.config.sizing import Machine, sizes_for
from bul.errors import ConfigError

GIB = 1 << 30
SIZING = Path(__file__).parents[2] / "docs" / "reference" / "sizing.md"
MACHINES = ((8, 4, 50), (64, 16, 1000), (512, 64, 8000))


@pytest.mark.parametrize(("ram", "cores", "disk"), MACHINES)
def test_the_table_of_the_page_is_what_the_code_says(ram: int, cores: int, disk: int) -> None:
    config = KVCacheConfig.for_machine(ram_bytes=ram * GIB, cores=cores, disk_free_bytes=disk * GIB)
    row = [
        f"{ram} GiB, {cores} cores, {disk:,} GiB free",
        f"{config.max_tokens:,}",
        f"{config.ram_bytes_max // GIB} GiB",
        f"{config.disk_bytes_max // GIB:,} GiB",
        f"{config.num_workers}",
        f"{config.prefetch_size}",
    ]
    assert "| " + " | ".join(row) + " |" in SIZING.read_text()


def test_a_larger_machine_never_gets_less() -> None:
    configs = [
        KVCacheConfig.for_machine(ram_bytes=ram * GIB, cores=cores, disk_free_bytes=disk * GIB)
        for ram, cores, disk in ((1, 1, 0), (4, 2, 2), *MACHINES)
    ]
    for name in ("max_tokens", "ram_bytes_max", "disk_bytes_max", "num_workers", "prefetch_size"):
        values = [getattr(config, name) for config in configs]
        assert values == sorted(values), name


@pytest.mark.parametrize(("disk", "on"), [(2 * GIB - 2, False), (2 * GIB, True)])
def test_persistence_needs_a_gib_of_its_own(disk: int, on: bool) -> None:
    machine = Machine(ram_bytes=16 * GIB, cores=4, disk_free_bytes=disk)
    assert sizes_for(machine, token_bytes=23_040, block_tokens=64).enable_persistence is on


@pytest.mark.parametrize(("cores", "prefetch"), [(1, 8), (4, 8), (5, 16), (15, 16), (16, 32)])
def test_prefetch_goes_up_in_the_guide_s_steps(cores: int, prefetch: int) -> None:
    machine = Machine(ram_bytes=64 * GIB, cores=cores, disk_free_bytes=0)
    sizes = sizes_for(machine, token_bytes=23_040, block_tokens=64)
    assert sizes.prefetch_size == prefetch


def test_replicas_share_the_ram_and_the_threads_but_not_the_folder() -> None:
    one = KVCacheConfig.for_machine(ram_bytes=64 * GIB, cores=16, disk_free_bytes=100 * GIB)
    four = KVCacheConfig.for_machine(
        ram_bytes=64 * GIB, cores=16, disk_free_bytes=100 * GIB, replicas=4
    )
    assert four.ram_bytes_max == one.ram_bytes_max // 4
    assert four.num_workers == one.num_workers // 4
    assert four.disk_bytes_max == one.disk_bytes_max


def test_the_tokens_are_what_fits_the_bytes() -> None:
    config = KVCacheConfig.for_machine(ram_bytes=16 * GIB, cores=4, token_bytes=131_072)
    assert config.max_tokens == 6 * GIB // 131_072


def test_the_guide_s_fields_are_stronger_than_the_rule() -> None:
    config = KVCacheConfig.for_machine(
        max_tokens=16384, enable_distributed=True, num_workers=64, prefetch_size=32
    )
    assert (config.max_tokens, config.num_workers, config.prefetch_size) == (16384, 64, 32)


def test_left_out_it_is_this_machine_s(tmp_path: Path) -> None:
    config = KVCacheConfig.for_machine(persistence_dir=str(tmp_path / "not" / "yet" / "there"))
    assert config.max_tokens * 23_040 <= config.ram_bytes_max


@pytest.mark.parametrize("name", ["ram_bytes", "cores", "token_bytes", "replicas", "block_tokens"])
def test_a_size_of_nothing_is_refused_by_name(name: str) -> None:
    given: dict[str, int] = {name: 0}
    with pytest.raises(ConfigError, match=re.escape(f"{name} must be")):
        KVCacheConfig.for_machine(**given)
