"""Replicas keep their blocks in one heap, unless their environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bul.scaling.drivers.allocator import TUNABLES, VARIABLE, with_one_heap
from bul.scaling.drivers.child import ChildPlan
from bul.scaling.drivers.process import ProcessDriver
from bul.testing.waiting import eventually


def environment_of(pid: int) -> str:
    """As the kernel shows it. The C library may have put a NUL after each tunable that it read."""
    return Path(f"/proc/{pid}/environ").read_text().replace("\0", ":")


def test_tunables_that_are_there_already_stay() -> None:
    assert with_one_heap({VARIABLE: "glibc.malloc.check=1"}) == {VARIABLE: "glibc.malloc.check=1"}
    assert with_one_heap({"HOME": "/root"}) == {VARIABLE: TUNABLES, "HOME": "/root"}


async def test_a_replica_runs_with_the_tunables(tmp_path: Path) -> None:
    def command(port: int) -> Sequence[str]:
        return [sys.executable, "-m", "bul.testing.stub_replica", "--port", str(port)]

    environ = {name: text for name, text in os.environ.items() if name != VARIABLE}
    driver = ProcessDriver(ChildPlan(command=command, environ=environ, log_dir=tmp_path))
    await driver.scale_to(1)

    async def ready() -> bool:
        return [replica.state for replica in await driver.replicas()] == ["ready"]

    await eventually("it is ready", ready)
    [pid] = driver.pids.values()
    seen = environment_of(pid)
    await driver.close()
    assert f"{VARIABLE}={TUNABLES}" in seen


HEAPS = """
import ctypes, os, sys, tempfile, threading
from bul.scaling.drivers.allocator import use_one_heap

use_one_heap({} if sys.argv[1] == "one" else {"GLIBC_TUNABLES": "there"})
allocated, end = threading.Barrier(7), threading.Event()


def allocate():
    held = [bytearray(5000) for _ in range(100)]
    allocated.wait()
    end.wait()
    del held


for _ in range(6):
    threading.Thread(target=allocate).start()
allocated.wait()
c = ctypes.CDLL(None)
c.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(c.fopen(file.name.encode(), b"w"))
    c.malloc_info(0, stream)
    c.fclose(stream)
    print(file.read().count(b"<heap nr"))
end.set()
"""


@pytest.mark.slow
def test_a_process_that_runs_already_keeps_to_one_heap_unless_told_otherwise() -> None:
    def heaps(how: str) -> int:
        environ = {name: text for name, text in os.environ.items() if name != VARIABLE}
        command = [sys.executable, "-c", HEAPS, how]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert heaps("one") == 1
    assert heaps("as it comes") > 1
