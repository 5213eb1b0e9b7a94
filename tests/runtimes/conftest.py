"""One lab, one podman and one containerd for everything here: they take longer to come up than any test lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.runtimes.site import Site, site


@pytest.fixture(scope="package")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("runtimes")) as made:
        yield made
        asyncio.run(made.checked())


@pytest.fixture
async def runtimes(nodes: Site) -> AsyncIterator[Site]:
    """Without a container at first; at the end those that are there are removed, and nothing may be left of any."""
    yield nodes
    await nodes.podman.remove_all()
    await nodes.containerd.remove_all()
    await nodes.until_nothing_is_left()
