from collections.abc import AsyncIterator

import httpx
import pytest

from bul.testing.replica import ReplicaUnderTest, running_replica


@pytest.fixture
async def replica() -> AsyncIterator[ReplicaUnderTest]:
    async with running_replica() as running:
        yield running


@pytest.fixture
async def client(replica: ReplicaUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=replica.url, timeout=30) as opened:
        yield opened
