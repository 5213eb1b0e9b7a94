"""A node between two routers: several paths, reflection either way, next hops, addresses that are on no wire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from bgp_world import node, peer, until

from tests.interop.rack import ACROSS, ACROSS_B, FAR4, NODE_B, OWN4, TOR_B, Rack, to_tor
from tests.interop.test_interop_export import bgp_filter
from tests.interop.tor import FOUR, NODE4, NODE6, NODE_AS, TOR4, Peering, Said, Tor

pytestmark = pytest.mark.kernel

TOR_B_AS = 65002
BESIDE = Peering(node=NODE_B, local=TOR_B)
CLUSTER = "1.2.3.4"


@pytest.fixture
def beside(rack: Rack) -> Iterator[Tor]:
    found = rack.beside()
    yield found
    found.configure()


def to_beside(**spec: Any) -> Any:
    return peer("beside", TOR_B, **{"asNumber": TOR_B_AS, "sourceAddress": "None", **spec})


def meet(rack: Rack, beside: Tor, *more: Any, number: int = 65001, beside_number: int = TOR_B_AS, **spec: Any) -> None:
    """The node in session with both."""
    rack.tor.configure(FOUR, as_number=number)
    beside.configure(replace(BESIDE, multihop=True), as_number=beside_number)
    rack.apply(to_tor(asNumber=number, **spec), to_beside(asNumber=beside_number, **spec), *more)
    await_both(rack, beside)


def await_both(rack: Rack, beside: Tor) -> None:
    def up() -> bool:
        beside.prompt()
        return beside.session(NODE_B).up and rack.agent.up(TOR_B)

    rack.await_up()
    until(f"the second {rack.kind} is in session", up, every_s=0.1)


def gateways(rack: Rack, prefix: str = FAR4) -> set[str]:
    """Through whom the node's kernel reaches a prefix."""
    route = rack.routes().get(prefix, {})
    return {hop["gateway"] for hop in route.get("nexthops", [route]) if "gateway" in hop}


def await_gateways(rack: Rack, *wanted: str) -> None:
    until(f"the kernel goes through {wanted}", lambda: gateways(rack) == set(wanted), every_s=0.02)


def test_both_are_used_and_a_lost_one_is_not(rack: Rack, beside: Tor) -> None:
    beside.configure(replace(BESIDE, restart_s=0), as_number=TOR_B_AS)
    rack.tor.configure(FOUR)
    rack.apply(to_tor(), to_beside())
    await_both(rack, beside)
    rack.tor.announce(FAR4)
    beside.announce(FAR4)
    await_gateways(rack, TOR4, TOR_B)
    with rack.pinging(source=NODE4) as lost:
        beside.kill()
        await_gateways(rack, TOR4)
    assert lost() < 100  # of the packets, a hash sent some the way that ended
    beside.start()
    await_gateways(rack, TOR4, TOR_B)
    rack.tor.withdraw(FAR4)
    await_gateways(rack, TOR_B)


def test_the_shorter_path_then_the_lower_med_decides(rack: Rack, beside: Tor) -> None:
    meet(rack, beside, beside_number=65001)
    rack.tor.announce(FAR4, Said(path=(65009,)))
    beside.announce(FAR4, Said(path=(65008, 65009)))
    await_gateways(rack, TOR4)
    rack.tor.announce(FAR4, Said(path=(65009,), med=20))
    beside.announce(FAR4, Said(path=(65009,), med=10))
    await_gateways(rack, TOR_B)
    beside.announce(FAR4, Said(path=(65009,), med=30))
    await_gateways(rack, TOR4)


def test_the_higher_local_preference_decides_over_ibgp(rack: Rack, beside: Tor) -> None:
    meet(rack, beside, number=NODE_AS, beside_number=NODE_AS)
    rack.tor.announce(FAR4, Said(local_pref=200))
    beside.announce(FAR4, Said(local_pref=300, path=(65009,)))
    await_gateways(rack, TOR_B)
    rack.tor.announce(FAR4, Said(local_pref=400))
    await_gateways(rack, TOR4)


def test_nothing_is_passed_on_unless_a_filter_says_so(rack: Rack, beside: Tor) -> None:
    meet(rack, beside, bgp_filter("out"), filters=["out"], nextHopMode="Auto")
    rack.tor.announce(FAR4)
    await_gateways(rack, TOR4)
    until("the second router has heard of our own", lambda: beside.heard(NODE_B).keys() == {OWN4})
    passes = bgp_filter("out", exportV4=[{"action": "Accept", "source": "RemotePeers"}])
    rack.apply(*sessions(), passes)
    until("and of what is passed on", lambda: beside.heard(NODE_B).keys() == {OWN4, FAR4}, every_s=0.1)
    heard = beside.heard(NODE_B)[FAR4]
    assert (heard.path, heard.next_hop) == ((NODE_AS, 65001), NODE_B)
    rack.apply(*sessions(nextHopMode="Keep"), passes)
    until("with the next hop as heard", lambda: next_hop(beside) == TOR4, every_s=0.1)
    rack.apply(*sessions(nextHopMode="Self"), passes)
    until("with ours again", lambda: next_hop(beside) == NODE_B, every_s=0.1)


def sessions(**spec: Any) -> tuple[Any, Any]:
    return to_tor(filters=["out"], **spec), to_beside(filters=["out"], **spec)


def next_hop(beside: Tor) -> str:
    found = beside.heard(NODE_B).get(FAR4)
    return found.next_hop if found else ""


def test_a_node_that_reflects_between_two_clients(rack: Rack, beside: Tor) -> None:
    reflector = node("n1", f"{NODE4}/24", f"{NODE6}/64", routeReflectorClusterID=CLUSTER)
    meet(rack, beside, reflector, number=NODE_AS, beside_number=NODE_AS)
    beside.announce(FAR4, Said(local_pref=321, communities=("64512:5",)))
    heard = rack.await_heard(OWN4, FAR4)[FAR4]
    assert (heard.originator, heard.clusters) == (TOR_B, (CLUSTER,))
    assert (heard.next_hop, heard.path, heard.local_pref) == (TOR_B, (), 321)
    assert heard.communities == {"64512:5"}
    assert FAR4 not in beside.heard(NODE_B)
    beside.withdraw(FAR4)
    rack.await_heard(OWN4)


def test_a_node_that_is_the_client_of_a_reflector(rack: Rack, beside: Tor) -> None:
    across = Peering(node=ACROSS_B, local=ACROSS, client=True, node_as=NODE_AS)
    rack.tor.configure(replace(FOUR, client=True), across, as_number=NODE_AS)
    beside.configure(Peering(node=ACROSS, local=ACROSS_B, node_as=NODE_AS), as_number=NODE_AS)
    rack.apply(to_tor(asNumber=NODE_AS))
    rack.await_up()
    beside.announce(FAR4)
    way = ("ip", "-n", rack.world.namespace(rack.node_place), "route")
    rack.world.run(*way, "replace", "10.9.3.0/24", "via", TOR4)
    await_gateways(rack, TOR4)
    until("the other client has our own", lambda: OWN4 in beside.heard(ACROSS), timeout_s=30, every_s=0.1)
    heard = beside.heard(ACROSS)[OWN4]
    assert (heard.originator, len(heard.clusters), heard.next_hop) == (NODE4, 1, NODE4)
    rack.world.run(*way, "del", "10.9.3.0/24")
    rack.await_learnt()


def test_a_router_that_is_reached_through_a_gateway(rack: Rack) -> None:
    loopback = "10.9.9.1"
    place = rack.world.namespace(rack.tor_place)
    rack.world.run("ip", "-n", place, "addr", "replace", f"{loopback}/32", "dev", "lo")
    rack.tor.configure(replace(FOUR, local=loopback, multihop=True))
    rack.apply(to_tor(peerIP=loopback, reachableBy=TOR4))
    rack.await_up(peer=loopback)
    rack.tor.announce(FAR4)
    until("the block is in the kernel", lambda: FAR4 in rack.routes())
    routes = rack.routes()
    assert (routes[FAR4]["gateway"], routes[f"{loopback}/32"]["gateway"]) == (TOR4, TOR4)
    rack.await_heard(OWN4)
    rack.apply(to_tor())
    rack.await_learnt()
