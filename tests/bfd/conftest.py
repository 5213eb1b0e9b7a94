"""One world for all the cases of a module: a router at one end of a wire, a node at the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bgp_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("bfd"))
    try:
        yield made
    finally:
        made.close()
