"""What a Service was given is told to peers where it lies in serviceLoadBalancerIPs; blocks of no node never are."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from bgp_world import defaults, node, pool

from bgp.telling.originate import originated
from core.addr import Address
from core.resources import IPAMBlock, Metadata, Resource
from core.resources.ipam import LOAD_BALANCER, BlockSpec
from core.snapshot import Snapshot
from datastore.ipam.balancing.plan import Context, Give, judge
from datastore.ipam.block import block_name
from tests.bgp.test_bgp_originate import answering
from tests.datastore.balancing_ground import balanced, service

POOL = balanced("lb", "198.51.100.0/24")
CIDR = ip_network("198.51.100.0/26")
BLOCK = IPAMBlock(
    metadata=Metadata(name=block_name(CIDR)),
    spec=BlockSpec(cidr=str(CIDR), affinity=LOAD_BALANCER, allocations={"198.51.100.7": "lb-1"}),
)
GIVEN: tuple[Address, ...] = (ip_address("198.51.100.7"),)


def told(*resources: Resource, on: str = "a") -> set[str]:
    nodes = (node("a", "10.1.0.1/24"), node("b", "10.1.0.2/24"), node("load-balancer", "10.1.0.3/24"))
    every = (POOL, pool("pods", "10.0.0.0/16"), BLOCK, *nodes, *resources)
    found = originated(Snapshot().apply(1, [(each.key, each) for each in every]), on)
    assert found.problems == ()
    return {str(prefix) for prefix in found.own}


@pytest.mark.parametrize(
    ("local", "on", "prefixes"),
    [
        (False, "a", {"198.51.100.7/32"}),
        (False, "b", {"198.51.100.7/32"}),
        (True, "a", {"198.51.100.7/32"}),
        (True, "b", set()),
    ],
)
def test_an_address_that_was_given_is_told_where_traffic_for_it_may_go(
    local: bool, on: str, prefixes: set[str]
) -> None:
    web = service("web", external_traffic_policy="Local" if local else "Cluster")
    due = judge(web.key, web, None, Context.of([POOL], None, frozenset()))
    assert isinstance(due, Give)
    lists = defaults(serviceLoadBalancerIPs=[{"cidr": POOL.spec.cidr}], serviceLoadBalancerAggregation="Disabled")
    assert told(lists, due.told(GIVEN), answering("web", "a"), on=on) == prefixes
    assert told(lists, web, answering("web", "a"), on=on) == set(), "before it is given"
    elsewhere = defaults(serviceLoadBalancerIPs=[{"cidr": "203.0.113.0/24"}], serviceLoadBalancerAggregation="Disabled")
    assert told(elsewhere, due.told(GIVEN), answering("web", "a"), on=on) == set()


@pytest.mark.parametrize("on", ["a", "load-balancer"])
def test_a_block_of_no_node_is_told_by_none(on: str) -> None:
    assert told(on=on) == set()
