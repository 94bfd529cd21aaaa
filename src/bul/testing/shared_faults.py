"""What can happen to a shared cache: killed, frozen, slow, garbage on the line, damaged records.

Refuses to choose: a test or a bench names the fault, and heals it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

import redis

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, CheckReport
from bul.errors import TierUnavailable
from bul.testing.tcp_proxy import FaultProxy, Faults
from bul.testing.valkey import Valkey

__all__ = ["FAULTS", "PlainTier", "SharedFaults"]

FAULTS = ("killed", "frozen", "slow", "noise", "damaged", "misplaced")
SLOW_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class SharedFaults:
    """A server, and the proxy that its clients reach it through."""

    server: Valkey
    proxy: FaultProxy

    @property
    def url(self) -> str:
        """Through the proxy."""
        return self.server.url.replace(f":{self.server.port}", f":{self.proxy.port}")

    def begin(self, fault: str) -> None:
        """One of FAULTS, until `heal`."""
        if fault == "killed":
            self.server.kill()
        elif fault == "frozen":
            self.server.freeze()
        elif fault == "slow":
            self.proxy.to_client = Faults(delay_s=SLOW_S)
        elif fault == "noise":
            self.proxy.to_client = Faults(noise_seed=7)
        elif fault == "damaged":
            self._rewrite(lambda values, i: _garbled(values[i], i))
        else:
            assert fault == "misplaced", fault
            self._rewrite(lambda values, i: values[i - 1])

    def heal(self, fault: str) -> None:
        """End the fault; what it did to the records stays."""
        if fault == "killed":
            self.server.start()
        elif fault == "frozen":
            self.server.thaw()
        self.proxy.heal()

    def _rewrite(self, change: object) -> None:
        assert callable(change)
        with self.server.client() as client:
            names = sorted(client.keys("*"))
            values = client.mget(names)
            for number, name in enumerate(names):
                client.set(name, change(values, number))


def _garbled(value: bytes, seed: int) -> bytes:
    """As long, with random bytes in the middle."""
    middle = len(value) // 2
    noise = random.Random(seed).randbytes(16)
    return value[:middle] + noise + value[middle + 16 :]


class PlainTier:
    """The control: keys and bytes in Valkey, as they come, without checksum and deadline."""

    name = "shared"

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=None, protocol=2)

    def match(self, keys: Sequence[bytes]) -> int:
        there = [self._client.exists(b"bul:" + key) for key in keys]
        return next((i for i, here in enumerate(there) if not here), len(keys))

    def get(self, keys: Sequence[bytes]) -> list[Buffer | None]:
        found: list[Buffer | None] = self._client.mget([b"bul:" + key for key in keys])  # type: ignore[assignment]  # bytes
        return found

    def set(self, records: Sequence[BlockRecord]) -> int:
        for record in records:
            self._client.set(b"bul:" + record.key, bytes(record.payload))
        return len(records)

    def delete(self, keys: Sequence[bytes]) -> int:
        return 0

    def clear(self) -> None:
        raise TierUnavailable("the control keeps everything")

    def stats(self) -> Mapping[str, float]:
        return {}

    def check(self, *, fix: bool = False) -> CheckReport:
        return CheckReport(blocks=0, bytes=0)

    def close(self) -> None:
        self._client.close()
