"""One rack of each kind of router, running for all the cases: they come one kind after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bgp_world import World

from tests.interop.rack import Rack
from tests.interop.tor_bird import BirdTor
from tests.interop.tor_frr import FrrTor
from tests.interop.tor_gobgp import GobgpTor

MAKES = {make.kind: make for make in (BirdTor, FrrTor, GobgpTor)}


@pytest.fixture(scope="package", params=MAKES)
def running_rack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    world = World(tmp_path_factory.mktemp(request.param))
    try:
        yield Rack(world, MAKES[request.param])
    finally:
        world.close()


@pytest.fixture
def rack(running_rack: Rack) -> Iterator[Rack]:
    running_rack.revive()
    begun = running_rack.agent.log.stat().st_size
    yield running_rack
    assert running_rack.agent.process.poll() is None
    print(running_rack.agent.log.read_text()[begun:][-6000:])  # pytest shows it when the case failed
    print(running_rack.tor.peerings, running_rack.agent.state)
