"""Peers behind a gateway: `reachableBy`, with loopback addresses at both ends, against a real BIRD."""

from __future__ import annotations

from typing import Any

import pytest
from bgp_world import AgentProcess, Bird, World, block, defaults, node, peer, pool, until

from core.resources import Resource

pytestmark = pytest.mark.kernel

TOR = """
protocol static s4 {{ ipv4; route 10.244.5.0/26 blackhole; {more} }}
protocol bgp n4 {{
  local 10.99.0.1 as 65001; neighbor 10.99.0.2 as 64512; multihop; hold time 90;
  connect delay time 1; connect retry time 2; error wait time 1,2;
  ipv4 {{ import all; export all; next hop self; }};
}}
"""


@pytest.fixture
def rack(world: World) -> tuple[Bird, AgentProcess]:
    """A router and a node, each with an address on lo that the other knows no way to but by `reachableBy`."""
    world.wire("tor", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    world.run(*world.command("tor", "ip", "addr", "add", "10.99.0.1/32", "dev", "lo"))
    world.run(*world.command("n1", "ip", "addr", "add", "10.99.0.2/32", "dev", "lo"))
    world.run(*world.command("tor", "ip", "route", "add", "10.99.0.2/32", "via", "10.9.1.2"))
    bird = Bird(world, "tor", "10.99.0.1")
    bird.start(TOR.format(more=""))
    return bird, AgentProcess(world, "n1")


def resources(**spec: Any) -> list[Resource]:
    return [
        node("n1", "10.99.0.2/32"),
        pool("main", "10.244.0.0/16"),
        block("10.244.1.0/26", "n1"),
        peer("tor", "10.99.0.1", asNumber=65001, **spec),
        defaults(nodeToNodeMeshEnabled=False),
    ]


def test_a_peer_behind_a_gateway(world: World, rack: tuple[Bird, AgentProcess]) -> None:
    bird, agent = rack
    agent.apply(*resources(reachableBy="10.9.1.1"))
    until("the session is up and the block told", lambda: bird.prefixes("n4") == {"10.244.1.0/26"})
    until("what it tells is in the kernel", lambda: "10.244.5.0/26" in world.routes("n1"))
    routes = world.routes("n1")
    assert routes["10.99.0.1"]["gateway"] == "10.9.1.1"
    assert routes["10.244.5.0/26"]["gateway"] == "10.9.1.1"

    world.run(*world.command("n1", "ip", "route", "del", "10.99.0.1/32", "proto", "201"))
    until("a foreign hand is put right", lambda: "10.99.0.1" in world.routes("n1"))
    bird.configure(TOR.format(more="route 10.99.0.1/32 blackhole;"))
    bird.configure(TOR.format(more="route 10.244.6.0/26 blackhole;"))
    until("the next route comes", lambda: "10.244.6.0/26" in world.routes("n1"))
    assert world.routes("n1")["10.99.0.1"]["gateway"] == "10.9.1.1"
    assert bird.up("n4")

    agent.apply(*[each for each in resources() if each.metadata.name != "tor"])
    until("the way to a peer that is gone goes too", lambda: world.routes("n1") == {})


def test_a_gateway_that_is_nowhere(world: World, rack: tuple[Bird, AgentProcess]) -> None:
    _, agent = rack
    agent.apply(*resources(reachableBy="192.0.2.1"))
    wanted = "BGPPeer/tor: reachableBy 192.0.2.1 is on no link of this host that is up"
    until("the status says so", lambda: wanted in agent.state.problems)
    assert world.routes("n1") == {}
