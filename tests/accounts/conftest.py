"""One PostgreSQL for the folder: its start costs a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bul.testing.postgres import Postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as running:
        yield running
