"""int8 KV: the tier contract holds, the error is bounded, and what is no block passes unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bul.cache.contract import Tier
from bul.cache.tiers.quantised import Int8Codec, QuantisedTier
from bul.testing.tier_contract import TierContract
from bul.testing.tiers import MemoryTier

CODEC = Int8Codec(groups=4, tokens=8, row_bytes=32)


class TestQuantisedTier(TierContract):
    @pytest.fixture
    def tier(self) -> Tier:
        return QuantisedTier(MemoryTier(), CODEC)


def round_trip(values: np.ndarray) -> np.ndarray:
    decoded = CODEC.decode(CODEC.encode(values.astype(np.float16).tobytes()))
    assert decoded is not None
    return np.frombuffer(decoded, np.float16).reshape(4, 8, 16).astype(np.float32)


@given(st.integers(0, 2**32), st.floats(-4, 4))
def test_no_value_is_off_by_more_than_half_a_step_of_its_channel(seed: int, log: float) -> None:
    source = np.random.default_rng(seed)
    values = (source.standard_normal((4, 8, 16)) * 10**log).astype(np.float16).astype(np.float32)
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    # Half a step of int8, and half of f16's last place, which is at most |x| / 2048 or 2**-25.
    bound = 0.5001 * step + np.abs(values) / 1024 + 2.0**-24
    assert (np.abs(round_trip(values) - values) <= bound).all()


def test_zeros_stay_zeros() -> None:
    assert not round_trip(np.zeros((4, 8, 16))).any()


def test_a_channel_with_an_outlier_costs_the_others_nothing() -> None:
    values = np.random.default_rng(1).standard_normal((4, 8, 16)).astype(np.float32)
    values[:, :, 3] *= 1000
    error = np.abs(round_trip(values) - values.astype(np.float16))
    assert error[:, :, [0, 1, 2, *range(4, 16)]].max() < 0.02


def test_a_block_takes_half_the_bytes() -> None:
    codec = Int8Codec(groups=60, tokens=64, row_bytes=384)
    assert codec.block_bytes == 1_474_560
    assert codec.encoded_bytes / codec.block_bytes < 0.54


@pytest.mark.parametrize("payload", [b"", b"x", bytes(CODEC.block_bytes - 1)])
def test_what_is_no_block_passes_unchanged(payload: bytes) -> None:
    decoded = CODEC.decode(CODEC.encode(payload))
    assert decoded is not None
    assert bytes(decoded) == payload


def test_infinities_are_kept_exactly() -> None:
    payload = np.full((4, 8, 16), np.inf, np.float16).tobytes()
    decoded = CODEC.decode(CODEC.encode(payload))
    assert decoded is not None
    assert bytes(decoded) == payload


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x01" + bytes(10), b"\x02" + bytes(9)])
def test_bytes_that_were_never_encoded_are_a_miss(payload: bytes) -> None:
    assert CODEC.decode(payload) is None
