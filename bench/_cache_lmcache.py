"""LMCache's CPU and disk backends as stores of `bench/cache.py`; an optional extra, CPU-only.

Its backends are used as its own engine uses them in one process: memory objects from its CPU
allocator, `submit_put_task` and a wait for the completion callbacks, `batched_get_blocking`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LMCacheCpu", "LMCacheDisk"]

WAIT_S = 60
CPU_GB = 1.0
DISK_GB = 4.0
_CPU: list[Any] = []


class LMCacheCpu:
    """`LocalCPUBackend` of LMCache: pinned memory where there is a GPU, plain here."""

    server_pid = None

    def __init__(self, folder: Path, *, always: bool) -> None:
        if always:
            raise FileNotFoundError("LMCache has no fsync policy")
        os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        import torch  # noqa: PLC0415 - an extra
        from lmcache.utils import CacheEngineKey  # noqa: PLC0415 - an extra
        from lmcache.v1.config import LMCacheEngineConfig  # noqa: PLC0415 - an extra
        from lmcache.v1.metadata import LMCacheMetadata  # noqa: PLC0415 - an extra
        from lmcache.v1.storage_backend.local_cpu_backend import (  # noqa: PLC0415 - an extra
            LocalCPUBackend,
        )

        self._torch = torch
        self._key_class = CacheEngineKey
        self._config = LMCacheEngineConfig.from_defaults(
            chunk_size=64,
            local_cpu=True,
            max_local_cpu_size=CPU_GB,
            local_disk=f"file://{folder}",
            max_local_disk_size=DISK_GB,
        )
        self._metadata = LMCacheMetadata("bench", 1, 1, 0, 0, torch.uint8, (1, 2, 64, 1, 512))
        # One for all rounds: its pool of memory is not given back when it is closed.
        if not _CPU:
            _CPU.append(LocalCPUBackend(self._config, self._metadata, dst_device="cpu"))
        self._cpu = _CPU[0]
        self._held: list[Any] = []

    def _key(self, key: bytes) -> Any:
        number = int.from_bytes(key[:7], "little")
        return self._key_class("bench", 1, 0, number, self._torch.uint8)

    def _object(self, block: bytes) -> Any:
        torch = self._torch
        made = self._cpu.allocate(torch.Size([len(block)]), torch.uint8)
        source = torch.from_numpy(np.frombuffer(block, np.uint8))
        made.tensor.view(-1)[:] = source
        return made

    def set(self, pairs: Sequence[tuple[bytes, bytes]]) -> object:
        for key, block in pairs:
            made = self._object(block)
            self._cpu.submit_put_task(self._key(key), made)
            made.ref_count_down()
        return None

    def get(self, keys: Sequence[bytes]) -> list[memoryview]:
        return self._hold([self._cpu.get_blocking(self._key(key)) for key in keys])

    def _hold(self, objects: list[Any]) -> list[memoryview]:
        """Give the last batch back and keep this one: its memory is LMCache's."""
        for held in self._held:
            held.ref_count_down()
        self._held = objects
        return [found.byte_array for found in objects]

    def close(self) -> None:
        self._hold([])
        for key in self._cpu.get_keys():
            self._cpu.remove(key)


class LMCacheDisk(LMCacheCpu):
    """`LocalDiskBackend` of LMCache: a file for each block, read by its pool of threads."""

    def __init__(self, folder: Path, *, always: bool) -> None:
        super().__init__(folder, always=always)
        from lmcache.v1.storage_backend.local_disk_backend import (  # noqa: PLC0415 - an extra
            LocalDiskBackend,
        )

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._disk = LocalDiskBackend(
            self._config, self._loop, self._cpu, dst_device="cpu", metadata=self._metadata
        )

    def set(self, pairs: Sequence[tuple[bytes, bytes]]) -> object:
        done = threading.Semaphore(0)
        for key, block in pairs:
            made = self._object(block)
            self._disk.submit_put_task(
                self._key(key), made, on_complete_callback=lambda _: done.release()
            )
            made.ref_count_down()
        for _ in pairs:
            if not done.acquire(timeout=WAIT_S):
                raise FileNotFoundError("LMCache did not report a write within a minute")
        return None

    def get(self, keys: Sequence[bytes]) -> list[memoryview]:
        return self._hold(self._disk.batched_get_blocking([self._key(key) for key in keys]))

    def close(self) -> None:
        super().close()
        self._disk.disk_worker.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
