"""What must not be and is there all the same: objects that no IPAM of ours writes, written straight into the store."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import islice

import pytest
from ipam_world import Cluster, block, node, pool, request, reservation

from core.resources import IPAMBlock, IPAMHandle, Metadata
from core.resources.ipam import BlockSpec, HandleSpec
from datastore.ipam.giving.assign import assign
from datastore.ipam.giving.pools import free_ranges
from datastore.ipam.giving.release import release
from datastore.ipam.model import Exhausted

PODS = pool("pods", "10.0.0.0/24")
NODES = (node("a"), node("b"))


def test_a_name_that_one_node_has_is_not_another_nodes() -> None:
    """A container's id that a tool makes of a path is the same on each node."""
    cluster = Cluster(PODS, *NODES)
    (first,) = cluster.give("net.c1", "a")
    with pytest.raises(Exhausted, match="node a has addresses under that name"):
        cluster.decide("net.c1", "b")
    step = release(cluster.books, "net.c1", "DEL", cluster.now, "b")
    assert (step.changes, step.grant and step.grant.addresses) == ((), ())
    assert (
        release(cluster.books, "net.c1", "DEL", cluster.now, "a").grant
        == release(cluster.books, "net.c1", "DEL", cluster.now).grant
    )
    assert cluster.give("net.c1", "a") == [first]


@pytest.mark.parametrize(
    "other",
    [
        block("10.0.0.0/27", "b"),
        block("10.0.0.0/25", "b"),
        IPAMBlock(metadata=Metadata(name="other"), spec=BlockSpec(cidr="10.0.0.0/26", affinity="host:b")),
    ],
    ids=["narrower", "wider", "of another name"],
)
def test_of_two_blocks_with_the_same_addresses_neither_gives_any(other: IPAMBlock) -> None:
    cluster = Cluster(PODS, *NODES, block("10.0.0.0/26", "a"), other)
    given = [ip_address(*cluster.give(f"{each}-{number}", each)) for each in "ab" for number in range(3)]
    assert len({*given}) == len(given)
    assert not any(each in ip_network("10.0.0.0/27") for each in given)
    with pytest.raises(Exhausted, match="which overlaps another block"):
        cluster.decide("h", "a", addresses=(ip_address("10.0.0.1"),))


@pytest.mark.parametrize(
    ("cidr", "within"), [("10.0.0.0/9", "10.0.0.0/8"), ("fd00::/64", "fd00::/48")], ids=["IPv4", "IPv6"]
)
def test_a_block_wider_than_any_is_made_gives_nothing_and_takes_no_time(cidr: str, within: str) -> None:
    cluster = Cluster(pool("vast", within), *NODES, block(cidr, "b"))
    for each in "ab":
        (given,) = cluster.give(each, each)
        assert ip_address(given) not in ip_network(cidr)


def test_what_is_reserved_of_a_vast_pool_is_passed_at_once() -> None:
    vast = pool("vast", "fd00::/48")
    books = Cluster(vast, reservation("fd00::/49", "fd00:0:0:8000::/50")).books
    rest = ip_network("fd00:0:0:c000::/50")
    for number in range(20):
        found = list(islice(free_ranges(books, vast, f"n{number}"), 3))
        assert len({*found}) == 3
        assert all(each.subnet_of(rest) for each in found)  # type: ignore[arg-type]
    cluster = Cluster(vast, *NODES, reservation("fd00::/40"))
    with pytest.raises(Exhausted):
        assign(cluster.books, request("h"), cluster.now)


def test_a_handle_under_anothers_name_frees_nothing() -> None:
    spec = HandleSpec(handle_id="net.c2", addresses={"10.0.0.1": "10.0.0.0/26"})
    wrong = IPAMHandle(metadata=Metadata(name="net.c1"), spec=spec)
    cluster = Cluster(PODS, *NODES, wrong, block("10.0.0.0/26", "a", allocations={"10.0.0.1": "net.c2"}))
    assert release(cluster.books, "net.c1", "DEL", cluster.now).changes == ()
    with pytest.raises(Exhausted, match=r"net\.c1 cannot be read"):
        cluster.decide("net.c1")


def test_a_handle_frees_an_address_by_every_spelling_and_keeps_it_while_its_block_is_unreadable() -> None:
    spec = HandleSpec(handle_id="net.c1", addresses={"FD00::7": "fd00::/122"})
    odd = IPAMHandle(metadata=Metadata(name="net.c1"), spec=spec)
    held = block("fd00::/122", "a", allocations={"fd00:0::7": "net.c1"})
    cluster = Cluster(pool("six", "fd00::/112"), *NODES, odd, held)
    assert release(cluster.hide(held), "net.c1", "DEL", cluster.now).changes == ()
    cluster.put(held)
    assert cluster.take_back("net.c1") == ["fd00::7"]
    assert cluster.block("fd00::/122").allocations == {}
