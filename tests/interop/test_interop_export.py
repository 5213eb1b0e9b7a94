"""What a node tells: communities, filters, preferences, maxima, services, drains. As the router has heard it."""

from __future__ import annotations

from typing import Any

import pytest
from bgp_world import block, defaults, made, node, until

from core.resources import BGPFilter, IPAMBlock, Service
from tests.interop.rack import OWN4, OWN6, Rack, to_tor, to_tor6
from tests.interop.tor import FOUR, NODE4, NODE6, NODE_AS, SIX, TOR4, TOR6

pytestmark = pytest.mark.kernel

MORE = ("10.244.2.0/26", "10.244.3.0/26")
GSHUT = "65535:0"


def bgp_filter(name: str, **lists: list[dict[str, Any]]) -> BGPFilter:
    return made(BGPFilter, name, lists)


def meet(rack: Rack, *more: Any, internal: bool = False, **spec: object) -> None:
    """IPv4 in session, over eBGP or iBGP."""
    number = NODE_AS if internal else 65001
    rack.tor.configure(FOUR, as_number=number)
    rack.apply(to_tor(asNumber=number, **spec), *more)
    rack.await_up()


def test_communities_of_prefix_advertisements(rack: Rack) -> None:
    rack.tor.configure(FOUR, SIX)
    advertised = defaults(
        nodeToNodeMeshEnabled=False,
        communities=[{"name": "blue", "value": "64512:7"}, {"name": "large", "value": "64512:7:4200000000"}],
        prefixAdvertisements=[
            {"cidr": "10.244.0.0/16", "communities": ["blue", "large", "64512:9"]},
            {"cidr": "fd44::/48", "communities": ["64512:6:6"]},
        ],
    )
    rack.apply(to_tor(), to_tor6(), advertised)
    rack.await_up(NODE4, TOR4)
    rack.await_up(NODE6, TOR6)
    wanted = frozenset({"64512:7", "64512:9", "64512:7:4200000000"})
    rack.await_route(OWN4, lambda route: route.communities == wanted, "carries both kinds")
    rack.await_route(OWN6, lambda route: route.communities == {"64512:6:6"}, "carries its own", NODE6)


def test_export_filters_reject_and_change_what_they_accept(rack: Rack) -> None:
    rules = [
        {"action": "Reject", "cidr": MORE[0], "matchOperator": "Equal"},
        {
            "action": "Accept",
            "cidr": OWN4,
            "matchOperator": "In",
            "prefixLength": {"min": 26, "max": 28},
            "operations": [
                {"addCommunity": {"value": "64512:1"}},
                {"addCommunity": {"value": "64512:1:1"}},
                {"prependASPath": {"prefix": [NODE_AS, 65010]}},
            ],
        },
    ]
    blocks = [block(each, "n1") for each in MORE]
    meet(rack, *blocks, bgp_filter("out", exportV4=rules), filters=["out"])
    heard = rack.await_heard(OWN4, MORE[1])
    assert heard[OWN4].path == (NODE_AS, NODE_AS, 65010)
    assert heard[OWN4].communities == {"64512:1", "64512:1:1"}
    assert heard[MORE[1]].path == (NODE_AS,)
    rack.apply(to_tor(filters=["out"]), *blocks, bgp_filter("out", exportV4=[{"action": "Reject", "peerType": "eBGP"}]))
    rack.await_heard()
    rack.apply(to_tor(filters=["out"]), *blocks, bgp_filter("out", exportV4=[{"action": "Reject", "peerType": "iBGP"}]))
    rack.await_heard(OWN4, *MORE)


def test_local_preference_towards_ibgp(rack: Rack) -> None:
    operations = [{"setLocalPreference": {"value": 777}}]
    rules = [{"action": "Accept", "cidr": MORE[0], "matchOperator": "Equal", "operations": operations}]
    meet(rack, block(MORE[0], "n1"), bgp_filter("out", exportV4=rules), filters=["out"], internal=True)
    heard = rack.await_heard(OWN4, MORE[0])
    assert heard[MORE[0]].local_pref == 777
    assert heard[OWN4].local_pref == 2147483647 - 1024


def test_priorities_become_local_preferences(rack: Rack) -> None:
    operations = [{"setPriority": {"value": 512}}]
    rules = [{"action": "Accept", "priority": 2000, "operations": operations}]
    priorities = defaults(nodeToNodeMeshEnabled=False, ipv4NormalRoutePriority=2000)
    meet(rack, priorities, internal=True)
    rack.await_route(OWN4, lambda route: route.local_pref == 2147483647 - 2000, "has the node's own preference")
    rack.apply(to_tor(asNumber=NODE_AS, filters=["out"]), priorities, bgp_filter("out", exportV4=rules))
    rack.await_route(OWN4, lambda route: route.local_pref == 2147483647 - 512, "has the elevated preference")


def test_no_more_prefixes_than_the_session_may_be_told(rack: Rack) -> None:
    blocks = [block(each, "n1") for each in MORE]
    meet(rack, *blocks, maxPrefixesOut=2)
    rack.await_heard(OWN4, MORE[0])
    until("the status warns", lambda: "maxPrefixesOut" in str(rack.agent.state))
    rack.apply(to_tor(maxPrefixesOut=3), *blocks)
    rack.await_heard(OWN4, *MORE)


def test_a_node_that_is_drained_is_avoided_then_gone_then_back(rack: Rack) -> None:
    here = (f"{NODE4}/24", f"{NODE6}/64")
    meet(rack)
    rack.await_heard(OWN4)
    rack.apply(to_tor(), node("n1", *here, maintenance="GracefulShutdown"))
    rack.await_route(OWN4, lambda route: route.communities == {GSHUT}, "carries GSHUT")
    rack.apply(to_tor(), node("n1", *here, maintenance="Withdrawn"))
    rack.await_heard()
    assert rack.tor.session().up
    rack.apply(to_tor())
    rack.await_route(OWN4, lambda route: not route.communities, "is back without GSHUT")


def test_a_drained_node_is_the_last_resort_within_the_as(rack: Rack) -> None:
    leaving = node("n1", f"{NODE4}/24", f"{NODE6}/64", maintenance="GracefulShutdown")
    meet(rack, leaving, internal=True)
    rack.await_route(OWN4, lambda route: (route.local_pref, route.communities) == (0, {GSHUT}), "is worth nothing")


def test_ranges_of_load_balancers(rack: Rack) -> None:
    ranges = defaults(
        nodeToNodeMeshEnabled=False,
        serviceLoadBalancerIPs=[{"cidr": "203.0.113.0/24"}],
        serviceExternalIPs=[{"cidr": "198.51.100.7/32"}],
    )
    external = made(Service, "web", {"type": "ClusterIP", "clusterIP": "10.96.0.7", "externalIPs": ["198.51.100.7"]})
    meet(rack, ranges, external)
    rack.await_heard(OWN4, "203.0.113.0/24", "198.51.100.7/32")
    rack.apply(to_tor())
    rack.await_heard(OWN4)


def test_an_address_borrowed_from_anothers_block(rack: Rack) -> None:
    spec = {"cidr": "10.244.5.0/26", "affinity": "host:n2", "borrowers": {"10.244.5.9": "n1"}}
    lent = made(IPAMBlock, "10-244-5-0-26", spec)
    meet(rack, lent)
    rack.await_heard(OWN4, "10.244.5.9/32")
    rack.tor.announce("10.244.5.0/26")
    rack.tor.announce("10.244.5.8/32")
    rack.await_learnt("10.244.5.0/26", "10.244.5.8/32")
