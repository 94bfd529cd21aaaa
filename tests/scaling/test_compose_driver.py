"""The compose driver against a real engine: podman's socket, containers, an image made here."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

import bul
from bul.errors import DriverError
from bul.scaling.drivers.compose import ComposePlan, compose_driver
from bul.scaling.drivers.contract import Replica
from bul.scaling.drivers.fleet import Fleet
from bul.testing.container_image import IMAGE_ENVIRON, IMAGE_PYTHON, SOURCE_IN_IMAGE
from bul.testing.driver_contract import DriverContract
from bul.testing.podman import IMAGE, podman_engine
from bul.testing.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.steady]
SOURCE = Path(bul.__file__).parent.parent


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with podman_engine() as url:
        yield url


def stub(*flags: str, port: int) -> list[str]:
    module = [IMAGE_PYTHON, "-m", "bul.testing.stub_replica", "--host", "0.0.0.0"]
    return [*module, "--port", str(port), *flags]


def plan_for(engine: str, *flags: str) -> ComposePlan:
    return ComposePlan(
        project="bultest",
        service="bul",
        image=IMAGE,
        command=lambda port: stub(*flags, port=port),
        environ=IMAGE_ENVIRON,
        volumes=[(str(SOURCE), SOURCE_IN_IMAGE, "ro")],
        drain_s=5.0,
        engine=engine,
    )


@pytest.fixture
async def driver(engine: str) -> AsyncIterator[Fleet]:
    driver = compose_driver(plan_for(engine))
    yield driver
    await driver.close()


class TestComposeDriver(DriverContract):
    """The whole contract, on real containers."""


async def settled(driver: Fleet, *states: str) -> Sequence[Replica]:
    found: list[Replica] = []

    async def are() -> bool:
        found[:] = await driver.replicas()
        return [one.state for one in found] == list(states)

    await eventually(f"replicas are {states}", are)
    return found


async def test_a_new_one_is_ready_before_the_old_one_drains(driver: Fleet) -> None:
    await driver.scale_to(2)
    old = (await settled(driver, "ready", "ready"))[0]
    seen: list[str] = []

    async def admitted(_: str) -> None:
        seen.extend(one.state for one in await driver.replicas())

    new = await driver.replace(old.name, admitted=admitted)
    assert seen == ["ready"] * 3
    left = await driver.replicas()
    assert new in left
    assert old.name not in [one.name for one in left]
    assert len(left) == 2


async def test_one_that_cannot_live_is_failed_with_its_last_words(engine: str) -> None:
    driver = compose_driver(plan_for(engine, "--die-after", "0", "--exit-code", "3"))
    try:
        await driver.scale_to(1)
        (failed,) = await settled(driver, "failed")
        assert "exit code 3" in failed.failure
        assert "out of memory, or so" in failed.failure
    finally:
        await driver.close()


async def test_what_another_driver_started_is_found_and_not_started_twice(
    engine: str, driver: Fleet
) -> None:
    await driver.scale_to(2)
    await settled(driver, "ready", "ready")
    second = compose_driver(plan_for(engine))
    await second.scale_to(2)
    assert len(await second.replicas()) == 2
    await second.scale_to(1)
    await settled(second, "ready")
    assert len(await driver.replicas()) == 1
    await second.close()


async def test_an_image_that_is_not_there_is_named_and_nothing_is_left(engine: str) -> None:
    plan = dataclasses.replace(plan_for(engine), image="not-there", call_s=10.0)
    driver = compose_driver(plan)
    with pytest.raises(DriverError, match="not-there"):
        await driver.scale_to(2)
    assert await driver.replicas() == []
    await driver.close()


async def test_an_engine_that_never_answers_is_a_clear_error(tmp_path: Path) -> None:
    hung_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.6)  # longer than the driver waits
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    path = str(tmp_path / "engine.sock")
    async with await asyncio.start_unix_server(silent, path):
        driver = compose_driver(dataclasses.replace(plan_for(f"unix://{path}"), call_s=0.3))
        with pytest.raises(DriverError, match="cannot list"):
            await driver.replicas()
        await hung_up.wait()


async def test_without_an_engine_the_socket_is_named(tmp_path: Path) -> None:
    driver = compose_driver(plan_for(f"unix://{tmp_path}/none.sock"))
    with pytest.raises(DriverError, match="no container engine listens"):
        await driver.replicas()
