"""What every driver must do: subclass `DriverContract` and give it a `driver` fixture.

The driver under test starts with no replicas and must become ready without help.
"""

from __future__ import annotations

import pytest

from bul.errors import DriverError
from bul.scaling.drivers.contract import Driver, ReplicaState
from bul.testing.waiting import eventually

__all__ = ["DriverContract"]


async def _states(driver: Driver) -> list[ReplicaState]:
    return [replica.state for replica in await driver.replicas()]


async def _all_ready(driver: Driver, replicas: int) -> bool:
    return await _states(driver) == ["ready"] * replicas


class DriverContract:
    """Runs against any driver; needs the fixture `driver`, closed by the fixture afterwards.

    owns_replicas: False for a driver whose replicas are somebody else's, and stay when it closes.
    """

    owns_replicas = True

    async def test_a_new_driver_has_no_replicas(self, driver: Driver) -> None:
        assert list(await driver.replicas()) == []

    async def test_scaling_out_makes_ready_replicas_with_distinct_urls(
        self, driver: Driver
    ) -> None:
        await driver.scale_to(2)
        assert len(await driver.replicas()) == 2
        await eventually("two are ready", lambda: _all_ready(driver, 2))
        replicas = await driver.replicas()
        assert len({replica.url for replica in replicas}) == 2
        assert len({replica.name for replica in replicas}) == 2
        assert all(not replica.url.endswith("/") for replica in replicas)

    async def test_a_repeated_wish_changes_nothing(self, driver: Driver) -> None:
        await driver.scale_to(1)
        await eventually("one is ready", lambda: _all_ready(driver, 1))
        before = await driver.replicas()
        await driver.scale_to(1)
        assert await driver.replicas() == before

    async def test_scaling_in_drains_and_keeps_the_others(self, driver: Driver) -> None:
        await driver.scale_to(2)
        await eventually("two are ready", lambda: _all_ready(driver, 2))
        before = await driver.replicas()
        await driver.scale_to(1)
        assert "draining" in await _states(driver) or len(await driver.replicas()) == 1
        await eventually("one is left", lambda: _all_ready(driver, 1))
        (left,) = await driver.replicas()
        assert left in before

    async def test_a_negative_wish_is_refused(self, driver: Driver) -> None:
        with pytest.raises(DriverError):
            await driver.scale_to(-1)

    async def test_a_replaced_one_goes_once_the_new_one_is_admitted(self, driver: Driver) -> None:
        await driver.scale_to(1)
        await eventually("one is ready", lambda: _all_ready(driver, 1))
        (old,) = await driver.replicas()
        seen: list[ReplicaState] = []

        async def admitted(_: str) -> None:
            seen.extend(await _states(driver))

        new = await driver.replace(old.name, admitted=admitted)
        assert seen == ["ready", "ready"]
        assert new is not None
        assert new.name != old.name
        await eventually("one is left", lambda: _all_ready(driver, 1))
        assert [one.name for one in await driver.replicas()] == [new.name]

    async def test_replacing_what_is_not_there_is_refused(self, driver: Driver) -> None:
        with pytest.raises(DriverError, match="nobody"):
            await driver.replace("nobody")

    async def test_a_closed_driver_has_no_replicas_and_starts_none(self, driver: Driver) -> None:
        await driver.scale_to(2)
        await driver.close()
        if self.owns_replicas:
            assert list(await driver.replicas()) == []
        with pytest.raises(DriverError):
            await driver.scale_to(1)
