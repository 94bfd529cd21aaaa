"""General values: what is accepted comes back equal; the rest is refused by name."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bul.cache.engine import UltraAdaptiveKVCacheEngine
from bul.cache.values import (
    KEY_CHARS_MAX,
    VALUE_OVERHEAD_BYTES,
    StoredValue,
    ValueStore,
    decode,
    encode,
)
from bul.config import KVCacheConfig

MIB = 1 << 20


@pytest.fixture
async def engine() -> AsyncIterator[UltraAdaptiveKVCacheEngine]:
    engine = UltraAdaptiveKVCacheEngine(KVCacheConfig(eviction="lru", ram_bytes_max=2 * MIB))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "value",
    [b"", b"\x00\xff", "", "ñandú 🦙", "\ud800", None, True, False, 0, -1, 10**40, 0.5, -0.0],
    ids=repr,
)
async def test_a_simple_value_comes_back(engine: UltraAdaptiveKVCacheEngine, value: object) -> None:
    assert await engine.set("key", value) is True
    result = await engine.get("key", default=...)
    assert result == value
    assert type(result) is type(value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_json_comes_back_as_a_fresh_object(value: object) -> None:
    stored = encode(value)
    assert decode(stored) == value
    if isinstance(value, (list, dict)):
        assert decode(stored) is not value


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float16),
        np.array(7, np.int64),
        np.arange(12, dtype=">i4").reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array([np.nan, np.inf]),
        np.array(["a", "ñ"]),
        np.array([(1, 2.5)], dtype=[("id", "<i4"), ("score", "<f8")]),
        np.array(["2026-01-01"], "datetime64[D]"),
        np.arange(10)[::3],
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_keeps_dtype_shape_and_content(array: np.ndarray) -> None:
    result = decode(encode(array))
    assert isinstance(result, np.ndarray)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert result.tobytes() == array.tobytes()
    assert not result.flags.writeable


def test_what_the_caller_does_later_does_not_change_the_cache() -> None:
    array, listed = np.ones(3), [1, 2]
    stored_array, stored_list = encode(array), encode(listed)
    array[:] = 0
    listed.clear()
    assert np.array_equal(decode(stored_array), np.ones(3))  # type: ignore[arg-type]  # an array
    assert decode(stored_list) == [1, 2]


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int = 0


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1, 2},
        object(),
        bytearray(b"x"),
        memoryview(b"x"),
        Colour.RED,
        Point(),
        1j,
        dt.datetime.now(tz=dt.UTC),
        np.float64(1),
        np.array([object()]),
        np.ma.masked_array([1], [True]),
        {1: "a"},
        [Point()],
        {"a": (1,)},
        print,
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_the_list_of_what_is_accepted(value: object) -> None:
    with pytest.raises(TypeError, match=r"NumPy array|keys must be str"):
        encode(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_json_has_no_nan(value: object) -> None:
    with pytest.raises(ValueError, match="JSON has no"):
        encode(value)


def test_json_that_is_too_deep_is_refused() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="64 levels"):
        encode(deep)
    while deep:  # taken apart level by level: freeing it at once would recurse
        deep = deep.pop()  # type: ignore[assignment]  # a list, until it is empty


async def test_a_miss_is_none_and_a_default_tells_it_from_a_stored_null(
    engine: UltraAdaptiveKVCacheEngine,
) -> None:
    missing = object()
    assert await engine.get("key") is None
    assert await engine.get("key", default=missing) is missing
    await engine.set("key", None)
    assert await engine.get("key", default=missing) is None


@pytest.mark.parametrize("key", ["", "\x00", "\ud800", "🦙" * 10, "k" * KEY_CHARS_MAX])
async def test_a_key_is_any_text(engine: UltraAdaptiveKVCacheEngine, key: str) -> None:
    assert await engine.set(key, b"v")
    assert await engine.get(key) == b"v"
    assert await engine.delete(key) is True
    assert await engine.delete(key) is False


async def test_keys_that_look_alike_are_different(engine: UltraAdaptiveKVCacheEngine) -> None:
    await engine.set("é", b"composed")
    assert await engine.get("e\u0301") is None


async def test_a_key_has_a_limit_and_a_type(engine: UltraAdaptiveKVCacheEngine) -> None:
    with pytest.raises(ValueError, match=str(KEY_CHARS_MAX)):
        await engine.set("k" * (KEY_CHARS_MAX + 1), b"")
    with pytest.raises(TypeError, match="must be a str"):
        await engine.get(b"key")  # type: ignore[arg-type]  # the mistake


async def test_a_value_over_the_budget_is_not_kept_and_evicts_nothing(
    engine: UltraAdaptiveKVCacheEngine,
) -> None:
    await engine.set("small", b"s")
    assert await engine.set("large", bytes(MIB)) is False
    assert await engine.get("large") is None
    assert await engine.get("small") == b"s"


def test_the_least_recently_used_values_go_first_and_the_budget_holds_to_the_byte() -> None:
    cost = 100 + 4 + VALUE_OVERHEAD_BYTES
    store = ValueStore(bytes_max=2 * cost)
    store.set("a", encode(bytes(100)))
    store.set("b", encode(bytes(100)))
    assert (store.bytes, store.evictions_total) == (2 * cost, 0)
    store.get("a", 0.0)
    store.set("c", encode(bytes(100)))
    assert store.get("b", 0.0) is None
    assert store.get("a", 0.0) is not None
    assert store.bytes == 2 * cost


def test_replacing_a_value_frees_the_old_one() -> None:
    store = ValueStore(bytes_max=4096)
    for _ in range(100):
        store.set("key", encode(bytes(3000)))
    assert (len(store), store.evictions_total) == (1, 0)
    store.clear()
    assert store.bytes == 0


def test_a_value_is_gone_exactly_when_its_time_is_over() -> None:
    store = ValueStore(bytes_max=4096)
    store.set("key", StoredValue("bytes", b"v", 1, expires_s=10.0))
    assert store.get("key", 9.999) is not None
    assert store.get("key", 10.0) is None
    assert store.bytes == 0


async def test_values_and_blocks_share_one_budget() -> None:
    engine = UltraAdaptiveKVCacheEngine(
        KVCacheConfig(eviction="lru", ram_bytes_max=MIB, block_tokens=1, max_tokens=1 << 20)
    )
    keys = [bytes([i]) * 32 for i in range(16)]
    engine.set_blocks(keys, 0, [bytes(MIB // 16)] * 16)
    assert engine.stats()["ram"]["blocks"] == 16
    await engine.set("key", bytes(MIB // 4))
    stats = engine.stats()
    assert stats["ram"]["bytes"] + stats["values"]["bytes"] <= MIB
    assert stats["ram"]["blocks"] == 11
    await engine.clear()
    assert engine.stats()["ram"]["bytes"] == engine.stats()["values"]["bytes"] == 0
    engine.close()
