"""The ray driver on a real Ray cluster of three nodes on this machine.

Nightly: Ray is 80 MB and its cluster starts in 11 s; the gate does without both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from bul.scaling.drivers.contract import Replica
from bul.scaling.drivers.fleet import Fleet
from bul.scaling.drivers.ray import RayPlan, ray_driver
from bul.testing.driver_contract import DriverContract
from bul.testing.ray_cluster import ray_cluster, ray_python_path
from bul.testing.waiting import eventually

pytestmark = [
    pytest.mark.nightly,
    # Ray's own: it starts processes and leaves their handles to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ray_python_path())
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with ray_cluster(nodes=3, cpus=2) as address:
            yield address


def plan_for(address: str, *flags: str) -> RayPlan:
    def command(host: str) -> list[str]:
        return ["-m", "bul.testing.stub_replica", "--host", host, *flags]

    return RayPlan(address=address, command=command, drain_s=5.0)


@pytest.fixture
async def driver(address: str) -> AsyncIterator[Fleet]:
    driver = ray_driver(plan_for(address))
    yield driver
    await driver.close()


class TestRayDriver(DriverContract):
    """The whole contract, on real actors."""


async def settled(driver: Fleet, *states: str) -> Sequence[Replica]:
    found: list[Replica] = []

    async def are() -> bool:
        found[:] = await driver.replicas()
        return [one.state for one in found] == list(states)

    await eventually(f"replicas are {states}", are, 30)
    return found


async def test_replicas_are_spread_over_the_nodes(driver: Fleet) -> None:
    import ray

    await driver.scale_to(3)
    found = await settled(driver, "ready", "ready", "ready")
    actors = [ray.get_actor(one.name, namespace="bul") for one in found]
    nodes = set(ray.get([actor.node.remote() for actor in actors]))
    assert len(nodes) == 3


async def test_one_that_finds_no_room_stays_pending(driver: Fleet) -> None:
    await driver.scale_to(7)  # six CPUs are there
    await settled(driver, *["ready"] * 6, "pending")


async def test_one_that_cannot_live_is_failed_with_its_last_words(address: str) -> None:
    driver = ray_driver(plan_for(address, "--die-after", "0"))
    try:
        await driver.scale_to(1)
        (failed,) = await settled(driver, "failed")
        assert "exit code 3" in failed.failure
        assert "out of memory, or so" in failed.failure
    finally:
        await driver.close()
