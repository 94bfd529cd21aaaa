"""Everything that a router's test opens is closed at its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from bul.testing.router_net import RouterNet


@pytest.fixture
async def net() -> AsyncIterator[RouterNet]:
    async with contextlib.AsyncExitStack() as stack:
        yield RouterNet(stack)
