"""Which addresses an endpoint may have: a pod's own, and nobody else's."""

from __future__ import annotations

import pytest

from core.resources import Node, Resource
from core.resources.network import NodeAddress, NodeInterface, NodeSpec
from felix.desired import desired
from felix.model import Desired
from felix.status import Outcome, state
from tests.felix.cluster import CONFIG, block, facts, link, namespace, node, pod, pool, snapshot
from tests.felix.test_status import DONE, WEB

OWN, OTHER = "k8s-pod-network.shop.web", "k8s-pod-network.shop.bank"
ADDRESSES = [NodeAddress(address="10.0.0.10", type="InternalIP"), NodeAddress(address="c.example", type="Hostname")]
NODES = (
    node("a", "10.1.0.1/24", tunnel="10.0.0.9"),
    node("b", "10.1.0.2/24", v6="fd00::b/64"),
    Node(
        metadata=node("c").metadata,
        spec=NodeSpec(addresses=ADDRESSES, interfaces=[NodeInterface(addresses=["10.0.0.11/24"])]),
    ),
)
HELD = {
    "10.0.0.1": OWN,
    "10.0.0.2": "k8s-pod-network.0123abcd",
    "10.0.0.3": OTHER,
    "10.0.0.4": "my.net.work.0123abcd",
    "10.0.0.5": "ipip-tunnel-addr-b",
    "10.0.0.6": "reserved",
}
POOLS = (pool("four", "10.0.0.0/16"), pool("six", "fd00::/64"), pool("old", "10.8.0.0/24", disabled=True))
STATE: tuple[Resource, ...] = (
    *NODES,
    *POOLS,
    namespace("shop"),
    block("10.0.0.0/26", "a", HELD),
    block("fd00::/122", "b", {"fd00::1": OWN, "fd00::2": OTHER}),
    block("10.9.0.0/28", "a", {"10.9.0.1": OWN, "10.9.0.2": OTHER}),  # its pool is gone
)
EVERYTHING = (*STATE, pool("everything", "0.0.0.0/0"), pool("all of six", "::/0"))

FREE = (("10.0.0.1", ""), ("10.0.0.2", "0123abcd"), ("10.0.0.4", "0123abcd"), ("10.0.0.6", ""), ("10.0.0.77", ""))
KEPT = (("fd00::1", ""), ("fd00::77", ""), ("10.8.0.1", ""), ("10.9.0.1", ""))
REFUSED = {
    "10.0.0.2": "allocated to k8s-pod-network.0123abcd",
    "10.0.0.3": f"allocated to {OTHER}",
    "fd00::2": f"allocated to {OTHER}",
    "10.0.0.5": "allocated to ipip-tunnel-addr-b",
    "10.1.0.1": "an address of Node a",
    "10.0.0.9": "an address of Node a",
    "10.1.0.2": "an address of Node b",
    "fd00::b": "an address of Node b",
    "10.0.0.10": "an address of Node c",
    "10.0.0.11": "an address of Node c",
    "10.1.0.254": "lies in no IPPool",
    "10.9.0.3": "lies in no IPPool",
    "2001:db8::1": "lies in no IPPool",
}
NOBODYS = ("127.0.0.1", "169.254.1.1", "224.0.0.5", "0.0.0.0", "::1", "fe80::1", "ff02::1", "::")


def decided(given: tuple[Resource, ...], address: str, container: str = "") -> Desired:
    resources = (*given, pod("web", address, container=container))
    return desired(snapshot(resources), facts(link("eth0", 2, "10.1.0.1/24"), link(WEB, 5)), CONFIG)


@pytest.mark.parametrize(("address", "container"), [*FREE, *KEPT])
def test_a_pod_has_what_is_its_own_or_nobodys(address: str, container: str) -> None:
    wanted = decided(STATE, address, container)
    assert not wanted.rejected
    assert [str(each) for each in wanted.endpoints[0].addresses] == [address]


def refused(wanted: Desired, address: str) -> str:
    """Why the only endpoint was, after a look that nothing of it is wanted in the kernel."""
    assert not wanted.endpoints
    assert not any(str(key.destination.network_address) == address for key in wanted.routes)
    assert not any(WEB in element.key for part in wanted.nft.values() for element in part.elements)
    (said,) = state(
        wanted, Outcome(sysctls=DONE, tunnels=DONE, addresses=DONE, nft=DONE, routes=DONE), 0, ""
    ).endpoints.values()
    assert said.state == "error"
    return said.reason


@pytest.mark.parametrize(("address", "why"), REFUSED.items())
def test_another_ones_address_is_refused(address: str, why: str) -> None:
    assert why in refused(decided(STATE, address, "another"), address)


@pytest.mark.parametrize("address", NOBODYS)
def test_an_address_that_no_pod_can_have_is_refused_in_any_pool(address: str) -> None:
    assert "no address for a pod" in refused(decided(EVERYTHING, address), address)


def test_who_sorts_first_cannot_push_the_rightful_one_out() -> None:
    wanted = desired(snapshot((*STATE, pod("aaa", "10.0.0.1"), pod("web", "10.0.0.1"))), facts(), CONFIG)
    assert [each.key.name for each in wanted.endpoints] == ["a-k8s-web-eth0"]
    assert [f"allocated to {OWN}" in why for why in wanted.rejected.values()] == [True]
