"""No node routes, claims or drops anything for a block of the load balancers: what felix makes is as without it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from core.resources import IPAMBlock, Metadata
from core.resources.ipam import LOAD_BALANCER, BlockSpec
from core.routing import Metric
from datastore.ipam.block import block_name
from felix.desired import desired
from linux.model import RouteKey
from tests.datastore.balancing_ground import balanced
from tests.felix.cluster import CONFIG, block, facts, link, namespace, node, pod, pool, snapshot

OWN = ip_network("10.0.0.0/26")
CIDR = ip_network("198.51.100.0/26")
POOL = balanced("lb", "198.51.100.0/24")
BLOCK = IPAMBlock(
    metadata=Metadata(name=block_name(CIDR)),
    spec=BlockSpec(cidr=str(CIDR), affinity=LOAD_BALANCER, allocations={"198.51.100.7": "lb-1"}),
)
CLUSTER = (
    node("a", "10.1.0.1/24"),
    node("load-balancer", "10.1.0.2/24"),
    namespace("shop"),
    pool("pods", "10.0.0.0/16"),
    block("10.0.0.0/26", "a"),
    pod("web", "10.0.0.1"),
    POOL,
)


@pytest.mark.parametrize("name", ["a", "load-balancer"])
def test_a_block_of_no_node_changes_nothing_in_any_kernel(name: str) -> None:
    here = facts(link("eth0", 2, "10.1.0.1/24" if name == "a" else "10.1.0.2/24"))
    config = replace(CONFIG, node=name)
    with_it = desired(snapshot((*CLUSTER, BLOCK)), here, config)
    assert with_it == desired(snapshot(CLUSTER), here, config)
    assert with_it.routes.keys() == ({RouteKey(OWN, Metric.BLACKHOLE)} if name == "a" else set())
