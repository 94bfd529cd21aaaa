"""Payloads between hosts: a torch.distributed process group of two ranks, gloo or nccl.

Refuses collectives and groups of more than two: when a rank is lost, those hang or fail for all; a
pair fails for the two alone, and is made anew. Every operation has a deadline. torch is loaded when
the tier starts, and nowhere else in BUL.

gloo moves bytes of the process's memory; nccl those of a GPU, so there they are copied there and
back (pinned memory is torch's business).
"""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from bul.errors import TierUnavailable

BYTES_PER_S_MIN = 50e6
"""A slower way counts as none: its blocks are computed sooner."""

__all__ = ["Links", "PairLink", "require_backend"]


def require_backend(
    backend: str, *, find: Callable[[str], object] = importlib.util.find_spec
) -> None:
    """Raises TierUnavailable that says what is missing here: torch, CUDA, or the backend."""
    if find("torch") is None:
        raise TierUnavailable(
            f"enable_distributed with {backend} needs torch, which is not installed",
            hint="pip install 'bul[distributed]', or set enable_distributed = false",
        )
    dist = importlib.import_module("torch.distributed")
    if backend == "nccl":
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise TierUnavailable(
                "distributed_backend nccl needs CUDA and a GPU, and torch finds none here",
                hint='set distributed_backend = "gloo"',
            )
        if not dist.is_nccl_available():
            raise TierUnavailable("this torch was built without nccl", hint="install one with it")
    elif not dist.is_gloo_available():
        raise TierUnavailable("this torch was built without gloo", hint="install one with it")


class PairLink:
    """Two ranks' group. One operation at a time. Raises RuntimeError; then it is broken."""

    def __init__(self, torch: Any, group: Any, timeout: dt.timedelta, device: str) -> None:
        self._torch = torch
        self._group = group
        self._timeout = timeout
        self._device = device

    def send(self, data: bytearray, to: int) -> None:
        """All of `data`, to the group's rank `to`."""
        tensor = self._torch.frombuffer(data, dtype=self._torch.uint8)
        if self._device != "cpu":
            tensor = tensor.to(self._device)
        self._wait(self._group.send([tensor], to, 0), len(data))

    def receive(self, size: int, sender: int) -> bytearray:
        """`size` bytes from the group's rank `sender`."""
        data = bytearray(size)
        tensor = self._torch.frombuffer(data, dtype=self._torch.uint8)
        if self._device == "cpu":
            self._wait(self._group.recv([tensor], sender, 0), size)
            return data
        arriving = self._torch.empty(size, dtype=self._torch.uint8, device=self._device)
        self._wait(self._group.recv([arriving], sender, 0), size)
        tensor.copy_(arriving)
        return data

    def close(self) -> None:
        """Let go of the group; what is under way ends with an error."""
        group, self._group = self._group, None
        if group is not None and self._device != "cpu":
            group.abort()

    def _wait(self, work: Any, size: int) -> None:
        timeout = self._timeout + dt.timedelta(seconds=size / BYTES_PER_S_MIN)
        # In nccl a wait with a timeout blocks this thread until the GPU is done, as is needed.
        if not work.wait(timeout):
            raise RuntimeError("the transfer did not succeed")


class Links:
    """Makes groups of two. host: where this rank may be reached. timeout_s: of each operation.

    rank: with nccl, on a host of n GPUs rank r uses number r modulo n.
    """

    def __init__(self, backend: str, host: str, timeout_s: float, rank: int) -> None:
        require_backend(backend)
        self._rank = rank
        self._backend = backend
        self._host = host
        self._timeout = dt.timedelta(seconds=timeout_s)
        self._torch = importlib.import_module("torch")
        self._dist = importlib.import_module("torch.distributed")

    def offer(self) -> tuple[str, int, Callable[[], PairLink]]:
        """Where the other one shall call, and a function that waits for it; this is rank 0."""
        store = self._dist.TCPStore(self._host, 0, None, True, self._timeout, False)
        return self._host, store.port, lambda: self._pair(store, 0)

    def call(self, host: str, port: int) -> PairLink:
        """The other end; this is rank 1."""
        store = self._dist.TCPStore(host, port, None, False, self._timeout, False)
        return self._pair(store, 1)

    def _pair(self, store: Any, rank: int) -> PairLink:
        if self._backend == "gloo":
            kind = self._dist.ProcessGroupGloo
            # Underscores and all, this is torch's own way to name an interface and a timeout.
            options: Any = kind._Options()  # noqa: SLF001 - see above
            options._devices = [kind.create_device(hostname=self._host)]  # noqa: SLF001 - see above
            options._timeout = self._timeout  # noqa: SLF001 - see above
            group, device = kind(store, rank, 2, options), "cpu"
        else:
            options = self._dist.ProcessGroupNCCL.Options()
            options._timeout = self._timeout  # noqa: SLF001 - as gloo's
            group = self._dist.ProcessGroupNCCL(store, rank, 2, options)
            device = f"cuda:{self._rank % self._torch.cuda.device_count()}"
        return PairLink(self._torch, group, self._timeout, device)
