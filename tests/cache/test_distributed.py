"""The distributed tier: the contract, the ring, the handshake, real ranks that die and come back.

Payloads go through shared memory here; over gloo in `test_distributed_gloo.py`, which needs torch.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from bul.cache.contract import BlockRecord
from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.tiers.distributed import DistributedTier, open_distributed_tier
from bul.cache.tiers.distributed.arena import WIRE_PLACE, Arena, read_record
from bul.cache.tiers.distributed.link import require_backend
from bul.cache.tiers.distributed.place import owner, seeds
from bul.cache.tiers.distributed.tier import World
from bul.cache.tiers.distributed.wire import Challenge, Frames, Hello, prove
from bul.config import KVCacheConfig
from bul.errors import ConfigError, TierUnavailable
from bul.testing.engines import BLOCK_TOKENS, cached, chain, store
from bul.testing.rank_process import RankProcess, addresses_for, running_ranks
from bul.testing.tier_contract import TierContract, chain_of_records, read
from bul.testing.valkey import until

IDENTITY = b"r" * 32
MIB = 1 << 20


def tiers_of(ranks: int, *, bytes_max: int = 16 * MIB, secret: str = "") -> list[DistributedTier]:
    """Ranks in this process; their channels are real all the same."""
    addresses = addresses_for(ranks)
    return [
        DistributedTier(
            World(rank=rank, addresses=addresses, bytes_max=bytes_max, secret=secret), IDENTITY
        )
        for rank in range(ranks)
    ]


@pytest.fixture
def three() -> Iterator[list[DistributedTier]]:
    tiers = tiers_of(3)
    yield tiers
    for tier in tiers:
        tier.close()


class TestDistributedTier(TierContract):
    @pytest.fixture
    def tier(self, three: list[DistributedTier]) -> DistributedTier:
        return three[0]


def test_every_rank_finds_what_any_has_set(three: list[DistributedTier]) -> None:
    records = chain_of_records(90)
    keys = [record.key for record in records]
    assert three[0].set(records) == 90
    for tier in three:
        assert tier.match(keys) == 90
        assert read(tier, keys) == [record.payload for record in records]
    kept = [tier.stats()["own_blocks"] for tier in three]
    assert sum(kept) == 90
    assert min(kept) > 10, "spread over all"


def test_a_rank_that_goes_moves_its_own_keys_alone() -> None:
    four = seeds([f"10.0.0.{n}:1" for n in range(4)])
    keys = [random.Random(n).randbytes(32) for n in range(2000)]
    before = [owner(key, four) for key in keys]
    after = [owner(key, four, away={2}) for key in keys]
    assert all(a == b for a, b in zip(after, before, strict=True) if b != 2)
    assert 2 not in after
    shares = [before.count(rank) / len(keys) for rank in range(4)]
    assert min(shares) > 0.2
    five = [owner(key, [*four, *seeds(["10.0.0.9:1"])]) for key in keys]
    assert all(a in (b, 4) for a, b in zip(five, before, strict=True))


def ring(bytes_max: int) -> Arena:
    return Arena(IDENTITY, bytes_max)


def test_the_ring_forgets_the_oldest_and_never_grows() -> None:
    arena = ring(16 * 4352 + 64)  # sixteen records of 4 KiB
    records = chain_of_records(100)
    for record in records:
        assert arena.set(record, record.key)
        assert arena.stats()["bytes"] <= 16 * 4352
    assert arena.has([r.key for r in records]) == [False] * 84 + [True] * 16
    assert not arena.set(chain_of_records(1, block_bytes=80_000)[0], b"x" * 32)
    arena.close()


def test_what_is_used_gets_a_second_chance() -> None:
    arena = ring(16 * 4352 + 64)
    records = chain_of_records(100)
    for record in records:
        arena.look_up([records[0].key])
        arena.set(record, record.key)
    assert arena.has([records[0].key]) == [True]
    arena.close()


def test_random_sizes_leave_every_record_whole() -> None:
    arena = ring(64 * 1024)
    chance = random.Random(5)
    kept: dict[bytes, bytes] = {}
    for number in range(2000):
        payload = chance.randbytes(chance.randrange(9000))
        record = BlockRecord(key=number.to_bytes(32), parent=b"", tokens=4, payload=payload)
        kept[record.key] = payload
        assert arena.set(record, record.key)
        if number % 3 == 0:
            arena.look_up([chance.randrange(number + 1).to_bytes(32)])
    keys = sorted(arena.keys())
    for key, place in zip(keys, arena.look_up(keys), strict=True):
        assert place is not None
        found = read_record(arena.for_wire(*place), WIRE_PLACE, key, IDENTITY, 0.0)
        assert found == kept[key]
    arena.close()


def test_a_record_that_was_never_finished_or_is_damaged_is_not_published() -> None:
    arena = ring(MIB)
    offset = arena.reserve(500)
    assert offset is not None
    assert not arena.publish(b"k" * 32, offset)
    assert not arena.publish(b"k" * 32, offset), "nor a second time"
    assert not arena.set_from_wire(b"k" * 32, b"x" * 300)
    assert arena.stats()["blocks"] == 0
    arena.close()


def test_a_byte_that_changed_in_the_memory_is_a_miss(three: list[DistributedTier]) -> None:
    records = chain_of_records(12)
    three[0].set(records)
    memory = three[1]._arena.memory
    [victim, *_] = three[1]._arena.keys()
    [place] = three[1]._arena.look_up([victim])
    assert place is not None
    memory.view[place[0] + 1000] ^= 1
    found = three[2].get([record.key for record in records])
    wrong = [r.key for r, b in zip(records, found, strict=True) if b is None]
    assert wrong == [victim]
    assert three[2].stats()["corrupted_total"] == 1
    assert len(three[1].check(fix=True).problems) == 1
    assert three[1].check().problems == ()


@pytest.mark.security
def test_who_does_not_know_the_secret_is_hung_up_on() -> None:
    addresses = addresses_for(2)
    first, stranger = (
        DistributedTier(
            World(rank=rank, addresses=addresses, bytes_max=MIB, secret=secret), IDENTITY
        )
        for rank, secret in enumerate(("one", "another"))
    )
    records = chain_of_records(20)
    first.set(records)
    assert any(block is None for block in stranger.get([record.key for record in records]))
    assert first.stats()["ranks_away"] == 1
    assert first.stats()["callers_refused_total"] > 0
    first.close()
    stranger.close()


@pytest.mark.security
@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\x04\0\0\0abcd", b""]
)
def test_garbage_in_place_of_a_greeting_is_hung_up_on(
    three: list[DistributedTier], greeting: bytes
) -> None:
    place = ("127.0.0.1", three[0]._server.port)
    with contextlib.suppress(OSError), socket.create_connection(place, 5) as caller:
        caller.sendall(greeting)
        caller.shutdown(socket.SHUT_WR)
        while caller.recv(4096):
            pass
    assert three[0].set(chain_of_records(3)) == 3


@pytest.mark.security
def test_another_models_rank_is_refused(three: list[DistributedTier]) -> None:
    with socket.create_connection(("127.0.0.1", three[0]._server.port), 5) as caller:
        frames = Frames(caller, 5.0)
        challenge = frames.receive(Challenge)
        proof = prove("", b"client", challenge.nonce, b"n" * 32)
        frames.send(Hello(b"n" * 32, b"other" * 6 + b"!!", proof))
        with pytest.raises(ConnectionError, match="hung up"):
            frames.receive(Hello)


def config(**fields: object) -> KVCacheConfig:
    return KVCacheConfig(enable_distributed=True, **fields)  # type: ignore[arg-type]  # mixed


RANKS = ("127.0.0.1:7701", "127.0.0.1:7702")


def test_without_a_second_rank_the_engine_says_so_when_it_starts() -> None:
    with pytest.raises(TierUnavailable, match="needs a second rank"):
        UltraAdaptiveKVCacheEngine(config(), identity=IDENTITY)
    with pytest.raises(TierUnavailable, match="names 1"):
        open_distributed_tier(config(distributed_ranks=RANKS[:1]), IDENTITY)


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_without_torch_it_says_so(backend: str) -> None:
    with pytest.raises(TierUnavailable, match=f"{backend} needs torch"):
        require_backend(backend, find=lambda _: None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"distributed_ranks": RANKS, "distributed_rank": 2}, r"in \[0, 1\], was 2"),
        ({"distributed_ranks": ("a", "b")}, "no host:port"),
        ({"distributed_ranks": ("10.0.0.1:1", "10.0.0.2:1")}, "need distributed_secret"),
    ],
)
def test_a_wrong_world_is_refused_when_it_starts(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_distributed_tier(config(**fields), IDENTITY)


def everything(rank: RankProcess, blocks: int) -> tuple[int, int]:
    """How many of the blocks it finds, and how many of these are right."""
    answer = rank.ask("get", blocks=blocks)
    return answer["found"], answer["right"]


@pytest.mark.slow
def test_four_processes_share_everything_and_go_on_without_one_that_is_killed() -> None:
    with running_ranks(4) as (ranks, addresses):
        assert ranks[0].ask("set", blocks=128)["set"] == 128
        assert [everything(rank, 128) for rank in ranks] == [(128, 128)] * 4
        lost = int(ranks[2].ask("stats")["stats"]["own_blocks"])
        assert 0 < lost < 128
        ranks[2].kill()
        rest = [rank for rank in ranks if rank.rank != 2]
        for rank in rest:
            assert everything(rank, 128) == (128 - lost, 128 - lost)
        # What is new goes to who is there.
        assert ranks[0].ask("set", blocks=128)["set"] == 128
        assert [everything(rank, 128) for rank in rest] == [(128, 128)] * 3
        ranks[2] = RankProcess(2, addresses)
        try:
            ranks[2].wait_ready()
            assert ranks[2].ask("set", blocks=128)["set"] == 128
            assert everything(ranks[2], 128) == (128, 128)
        finally:
            ranks[2].kill()


@pytest.mark.slow
def test_a_frozen_rank_is_misses_and_found_again_when_it_goes_on() -> None:
    with running_ranks(3) as (ranks, _):
        assert ranks[0].ask("set", blocks=64)["set"] == 64
        ranks[1].freeze()
        found, right = everything(ranks[0], 64)
        assert found == right < 64
        assert ranks[0].ask("stats")["stats"]["ranks_away"] == 1
        ranks[1].thaw()
        until("it is found", lambda: ranks[0].ask("stats")["stats"]["ranks_away"] == 0)
        assert everything(ranks[0], 64) == (64, 64)


@pytest.mark.slow
def test_another_world_size_after_a_restart_is_misses_and_no_wrong_bytes() -> None:
    with running_ranks(2) as (ranks, addresses):
        assert ranks[0].ask("set", blocks=64)["set"] == 64
        ranks[1].kill()
        wider = (*addresses, *addresses_for(1))
        newcomers = [RankProcess(rank, wider) for rank in (1, 2)]
        try:
            for newcomer in newcomers:
                newcomer.wait_ready()
            for newcomer in newcomers:
                found, right = everything(newcomer, 64)
                assert 0 < found == right < 64
            assert newcomers[0].ask("set", blocks=64)["set"] == 64
            assert [everything(newcomer, 64) for newcomer in newcomers] == [(64, 64)] * 2
        finally:
            for newcomer in newcomers:
                newcomer.kill()


def test_an_engine_is_warm_from_what_another_ranks_engine_computed() -> None:
    tiers = tiers_of(2)
    engines = [
        UltraAdaptiveKVCacheEngine(
            KVCacheConfig(block_tokens=BLOCK_TOKENS, max_tokens=4000), tiers=[tier]
        )
        for tier in tiers
    ]
    keys = chain(40)
    store(engines[0], keys)
    assert engines[0].flush()
    assert cached(engines[1], keys) == 40
    assert engines[1].stats()["distributed"]["hit_tokens_total"] == 40 * BLOCK_TOKENS
    for engine in engines:
        assert engine.close()
