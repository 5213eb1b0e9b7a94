"""A node for real, for the tests that need one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from datastore.sqlite import SqliteStore
from tests.felix.guarded import Guarded, guarded
from tests.felix.host import Host, host
from tests.felix.one_node import STATE, Cluster


@pytest.fixture
def real_host() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture
async def cluster(real_host: Host, tmp_path: Path) -> AsyncIterator[Cluster]:
    store = await SqliteStore.open(tmp_path / "store.db")
    made = Cluster(store, real_host, tmp_path)
    try:
        await made.write(*STATE)
        yield made
    finally:
        await made.stop()
        await store.close()


@pytest.fixture
async def node(real_host: Host, tmp_path: Path) -> AsyncIterator[Guarded]:
    async with guarded(real_host, tmp_path) as made:
        yield made
