"""The stores that `bench/cache.py` compares, each behind `set(pairs)` and `get(keys)`.

Refuses to help anybody: each store gets the calls that its own documentation recommends for bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from _cache_lmcache import LMCacheCpu, LMCacheDisk

from bul.blocks.prefix import Buffer
from bul.cache.contract import BlockRecord, Tier
from bul.cache.tiers.disk import DiskTier
from bul.cache.tiers.ram import RamTier

__all__ = ["STORES", "Store"]

GIB = 1 << 30
Pairs = Sequence[tuple[bytes, bytes]]
HERE = Path(__file__).parents[1]
VALKEY_PLACES = (f"{HERE}/.venv/opt/bin/valkey-server", "valkey-server", "redis-server")


class Store(Protocol):
    """One way to keep blocks. `server_pid`: whose CPU counts too."""

    server_pid: int | None

    def set(self, pairs: Pairs) -> object: ...
    def get(self, keys: Sequence[bytes]) -> Sequence[Buffer]: ...
    def close(self) -> None: ...


class _OfTier:
    """A tier of ours."""

    server_pid = None

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def set(self, pairs: Pairs) -> object:
        return self._tier.set(
            [BlockRecord(key=key, parent=b"", tokens=64, payload=block) for key, block in pairs]
        )

    def get(self, keys: Sequence[bytes]) -> Sequence[Any]:
        return self._tier.get(keys)

    def close(self) -> None:
        self._tier.close()


def bul_ram(_folder: Path, *, always: bool) -> Store:
    assert not always, "RAM has nothing to sync"
    return _OfTier(RamTier(blocks_max=1 << 20, bytes_max=4 * GIB))


def bul_disk(folder: Path, *, always: bool) -> Store:
    fsync = "always" if always else "none"
    return _OfTier(DiskTier(folder, b"b" * 32, bytes_max=4 * GIB, fsync=fsync))


class RawFile:
    """One file, reserved at once; pwrite and pread of whole blocks: the ceiling."""

    server_pid = None

    def __init__(self, folder: Path, *, always: bool) -> None:
        self._fd = os.open(folder / "raw", os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self._fd, 0, GIB // 2)
        self._always = always
        self._end = 0
        self._places: dict[bytes, tuple[int, int]] = {}

    def set(self, pairs: Pairs) -> object:
        for key, block in pairs:
            os.pwrite(self._fd, block, self._end)
            self._places[key] = (self._end, len(block))
            self._end += len(block)
        if self._always:
            os.fdatasync(self._fd)
        return None

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        found = []
        for key in keys:
            offset, size = self._places[key]
            found.append(os.pread(self._fd, size, offset))
        return found

    def close(self) -> None:
        os.close(self._fd)


class RawFileKept(RawFile):
    """The same file, read into memory that was used before: what a get can be at best."""

    def __init__(self, folder: Path, *, always: bool) -> None:
        super().__init__(folder, always=always)
        self._kept: list[bytearray] = []

    def get(self, keys: Sequence[bytes]) -> list[Any]:
        places = [self._places[key] for key in keys]
        if [len(buffer) for buffer in self._kept] != [size for _, size in places]:
            self._kept = [bytearray(size) for _, size in places]
        for (offset, _), buffer in zip(places, self._kept, strict=True):
            os.preadv(self._fd, [buffer], offset)
        return self._kept


class RawFiles:
    """A file for each block, written to a temporary name and renamed."""

    server_pid = None

    def __init__(self, folder: Path, *, always: bool) -> None:
        self._folder = folder
        self._always = always

    def set(self, pairs: Pairs) -> object:
        for key, block in pairs:
            path = self._folder / key.hex()
            fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, block)
            if self._always:
                os.fdatasync(fd)
            os.close(fd)
            os.rename(f"{path}.tmp", path)  # noqa: PTH104 - the plain call is what is measured
        if self._always:
            fd = os.open(self._folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        return None

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        found = []
        for key in keys:
            fd = os.open(self._folder / key.hex(), os.O_RDONLY)
            found.append(os.read(fd, os.fstat(fd).st_size))
            os.close(fd)
        return found

    def close(self) -> None:
        pass


class DiskCache:
    """PyPI diskcache: SQLite, and a file for each value above 32 kB."""

    server_pid = None

    def __init__(self, folder: Path, *, always: bool) -> None:
        import diskcache  # noqa: PLC0415 - an extra

        self._cache = diskcache.Cache(str(folder), size_limit=4 * GIB)

    def set(self, pairs: Pairs) -> object:
        with self._cache.transact():
            for key, block in pairs:
                self._cache.set(key, block)
        return None

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        return [self._cache.get(key) for key in keys]

    def close(self) -> None:
        self._cache.close()


class Lmdb:
    """PyPI lmdb: one transaction for a batch; sync off unless always."""

    server_pid = None

    def __init__(self, folder: Path, *, always: bool) -> None:
        import lmdb  # noqa: PLC0415 - an extra

        self._env = lmdb.open(
            str(folder), map_size=4 * GIB, sync=always, metasync=always, writemap=not always
        )

    def set(self, pairs: Pairs) -> object:
        with self._env.begin(write=True) as transaction:
            for key, block in pairs:
                transaction.put(key, block)
        return None

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        # Copies: a view into the map must not outlive its transaction.
        with self._env.begin() as transaction:
            return [transaction.get(key) for key in keys]

    def close(self) -> None:
        self._env.close()


class Valkey:
    """A Valkey on a Unix socket, no persistence; MSET and MGET."""

    def __init__(self, folder: Path, *, always: bool) -> None:
        import redis  # noqa: PLC0415 - an extra

        server = next((found for place in VALKEY_PLACES if (found := shutil.which(place))), None)
        if server is None:
            raise FileNotFoundError("no valkey-server: make servers")
        socket = folder / "s"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
        self._server = subprocess.Popen(  # the one found above
            [server, *options], cwd=folder, stdout=subprocess.DEVNULL
        )
        self.server_pid: int | None = self._server.pid
        self._client = redis.Redis(unix_socket_path=str(socket))
        deadline_s = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        self._client.ping()

    def set(self, pairs: Pairs) -> object:
        return self._client.mset(dict(pairs))

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        found: list[bytes] = self._client.mget(keys)
        return found

    def close(self) -> None:
        self._client.close()
        self._server.terminate()
        self._server.wait(10)


STORES: dict[str, Callable[..., Store]] = {
    "raw file": RawFile,
    "raw file, kept memory": RawFileKept,
    "raw files": RawFiles,
    "bul ram": bul_ram,
    "bul disk": bul_disk,
    "diskcache": DiskCache,
    "lmdb": Lmdb,
    "valkey": Valkey,
    "lmcache cpu": LMCacheCpu,
    "lmcache disk": LMCacheDisk,
}
