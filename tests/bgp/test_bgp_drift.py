"""What is doubted of kernel routes when a link goes: a pod's end costs no reading, an uplink's are repaired."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
from bgp_world import block, defaults, node, peer, pool

from bgp.agent import Agent, Inputs
from bgp.paths.by_device import ByDevice
from core.latest import Latest
from core.prefix import Prefix
from core.resources.status import SpeakerState
from core.snapshot import Snapshot
from linux.model import NextHop, Route, RouteType
from linux.netns import scratch_namespace
from linux.prefix_routes import PrefixRoutes
from tests.felix.host import ip

PATIENCE_S = 20.0
PEERS = {"10.99.0.1": "up0", "10.99.0.2": "up1"}


def prefix(text: str) -> Prefix:
    return Prefix.of(ip_network(text))


ONE, BOTH, NONE = prefix("10.1.0.0/24"), prefix("10.2.0.0/24"), prefix("fd00::/64")
WANTED = {
    ONE: Route(next_hops=(NextHop(2),)),
    BOTH: Route(next_hops=(NextHop(2), NextHop(3))),
    NONE: Route(type=RouteType.BLACKHOLE),
}


@pytest.mark.parametrize(
    ("devices", "lost"),
    [
        ((2,), {ONE, BOTH}),
        ((3, 9), {BOTH}),
        ((9,), set()),
        ((), None),
        ((1, 3), None),
    ],
)
def test_what_may_be_gone_with_devices(devices: tuple[int, ...], lost: set[Prefix] | None) -> None:
    known = ByDevice()
    known.learn([*WANTED.values(), None])
    found = known.lost(devices, WANTED)
    assert (found if found is None else set(found)) == lost


class Counted(PrefixRoutes):
    """The kernel's routes, and how often all of them were read."""

    reads = 0

    async def read(self) -> Mapping[Prefix, Route]:
        self.reads += 1
        return await super().read()


@dataclass
class Node:
    """A node with two uplinks, and a peer behind a gateway on each."""

    routes: Counted

    def shown(self) -> dict[str, str]:
        """The device of each route to a peer."""
        said = [line.split() for line in ip("route", "show", "proto", "201").splitlines()]
        return {words[0]: words[words.index("dev") + 1] for words in said}

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not true():  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.01)


@pytest.fixture
def place() -> Iterator[None]:
    with scratch_namespace():
        for number in (0, 1):
            ip("link", "add", f"up{number}", "type", "veth", "peer", "name", f"far{number}")
            ip("addr", "add", f"10.9.{number}.2/24", "dev", f"up{number}")
            ip("link", "set", f"far{number}", "up")
            ip("link", "set", f"up{number}", "up")
        yield


@pytest.fixture
async def here(place: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr("bgp.agent.PrefixRoutes", Counted)
    snapshots: Latest[Snapshot] = Latest()
    resources = [
        node("n1", "10.9.0.2/24"),
        pool("main", "10.244.0.0/16"),
        block("10.244.1.0/26", "n1"),
        *(peer(f"p{n}", f"10.99.0.{n + 1}", asNumber=65001, reachableBy=f"10.9.{n}.1") for n in (0, 1)),
        defaults(nodeToNodeMeshEnabled=False),
    ]
    snapshots.put(Snapshot().apply(1, [(each.key, each) for each in resources]))

    async def report(_: SpeakerState) -> None:
        return

    agent = Agent(Inputs(node="n1", run_dir=tmp_path / "run", snapshots=snapshots, report=report, settle_s=0.1))
    routes = agent._routes
    assert isinstance(routes, Counted)
    running = asyncio.create_task(agent.run())
    made = Node(routes)
    try:
        await made.until(lambda: made.shown() == PEERS)
        yield made
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        routes.close()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


async def test_a_pods_end_costs_no_reading(here: Node) -> None:
    reads = here.routes.reads
    for number in range(5):
        ip("link", "add", f"mus{number}", "type", "veth", "peer", "name", f"pod{number}")
        ip("addr", "add", "fe80::1/64", "dev", f"mus{number}", "nodad")
        ip("link", "set", f"mus{number}", "up")
        ip("link", "set", f"pod{number}", "up")
    for number in range(5):
        ip("link", "del", f"mus{number}")
    await flap(here, "up1")  # a drift that is seen came after those
    assert here.routes.reads == reads


async def flap(here: Node, device: str) -> None:
    ip("link", "set", device, "down")
    assert device not in here.shown().values(), "the kernel drops them without a word"
    ip("link", "set", device, "up")
    await here.until(lambda: here.shown() == PEERS)


async def test_the_routes_of_an_uplink_that_falls_and_rises_are_back_without_a_reading(here: Node) -> None:
    reads = here.routes.reads
    for device in ("up0", "up1"):
        await flap(here, device)
    assert here.routes.reads == reads


async def test_a_route_that_somebody_takes_is_back(here: Node) -> None:
    reads = here.routes.reads
    ip("route", "del", "10.99.0.1", "proto", "201")
    await here.until(lambda: here.shown() == PEERS)
    assert here.routes.reads > reads


async def test_a_device_that_is_another_by_its_old_name_leads_again(here: Node) -> None:
    index = socket.if_nametoindex("up1")
    ip("link", "del", "up1")
    ip("link", "add", "up1", "type", "veth", "peer", "name", "far1")
    ip("addr", "add", "10.9.1.2/24", "dev", "up1")
    ip("link", "set", "far1", "up")
    ip("link", "set", "up1", "up")
    assert socket.if_nametoindex("up1") != index
    await here.until(lambda: here.shown() == PEERS)
