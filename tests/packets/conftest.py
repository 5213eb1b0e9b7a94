"""One cluster of two nodes for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import served
from tests.packets.cases import cases
from tests.packets.ground import Ground, ground
from tests.packets.prober import Prober


@pytest.fixture(scope="package")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    addresses = cases()[-1].topology.addresses
    folder: Path = tmp_path_factory.mktemp("two-nodes")
    with served() as target, ground(folder, target, addresses) as made:
        yield made


@pytest.fixture(scope="package")
def prober(two_nodes: Ground) -> Iterator[Prober]:
    made = Prober(two_nodes)
    try:
        yield made
    finally:
        made.close()
