"""Which pools may serve, and where a node looks for a block in one."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import islice
from typing import Any

import pytest
from ipam_world import Cluster, block, node, pool, request

from core.addr import Family
from core.errors import Invalid
from core.names import Key
from core.resources import EncapMode, IPAMBlock, Metadata, Namespace
from datastore.ipam.giving.assign import assign
from datastore.ipam.giving.pools import families, free_ranges, serving
from datastore.ipam.model import Exhausted, Use

SHOP = Namespace(metadata=Metadata(name="shop", labels={"team": "shop"}))
BY_NAME = {"pools": {Family.V4: ("pods",)}}
BY_CIDR = {"pools": {Family.V4: ("10.0.0.0/24",)}}


@pytest.mark.parametrize(
    ("fields", "asked", "why"),
    [
        ({}, {}, ""),
        ({"disabled": True}, {}, "is disabled"),
        ({"disabled": True}, BY_NAME, "is disabled"),
        ({"deleted": "2026-01-01T00:00:00Z"}, {}, "is being deleted"),
        ({"deleted": "2026-01-01T00:00:00Z"}, BY_NAME, "is being deleted"),
        ({"node_selector": "rack == '1'"}, {}, ""),
        ({"node_selector": "all()"}, {"node": "stranger"}, ""),
        ({"node_selector": "rack == '2'"}, {}, "has the nodeSelector rack == '2'"),
        ({"node_selector": "rack == '2'"}, BY_NAME, ""),
        ({"node_selector": "rack == '2'"}, BY_CIDR, ""),
        ({"node_selector": "rack == '1'"}, {"node": "stranger"}, "has the nodeSelector"),
        ({"node_selector": "rack = '1'"}, {}, "nodeSelector that cannot be read"),
        ({"namespace_selector": "team == 'shop'"}, {"namespace": "shop"}, ""),
        ({"namespace_selector": "team == 'shop'"}, {}, "has the namespaceSelector"),
        ({"namespace_selector": "team == 'office'"}, {"namespace": "shop"}, "has the namespaceSelector"),
        ({"namespace_selector": "team == 'office'"}, {"namespace": "shop", **BY_NAME}, ""),
        ({"namespace_selector": "projectcalico.org/name == 'shop'"}, {"namespace": "shop"}, ""),
        ({"namespace_selector": "kubernetes.io/metadata.name == 'shop'"}, {"namespace": "shop"}, ""),
        ({"node_selector": "rack == '2'", "namespace_selector": "all()"}, {"namespace": "shop"}, "nodeSelector"),
        ({"assignment_mode": "Manual"}, {}, "is Manual"),
        ({"assignment_mode": "Manual"}, BY_NAME, ""),
        ({"assignment_mode": "Manual"}, BY_CIDR, ""),
        ({"assignment_mode": "Automatic"}, {}, ""),
        ({"allowed_uses": ["Tunnel"]}, {}, "is for Tunnel only"),
        ({"allowed_uses": ["Tunnel"]}, BY_NAME, "is for Tunnel only"),
        ({"allowed_uses": ["LoadBalancer"]}, {}, "is for LoadBalancer only"),
        ({"allowed_uses": ["LoadBalancer"]}, BY_NAME, "is for LoadBalancer only"),
        ({"allowed_uses": ["Workload"]}, {}, ""),
        ({"allowed_uses": ["Tunnel"], "ipip_mode": EncapMode.ALWAYS}, {"use": Use.TUNNEL}, ""),
        ({"ipip_mode": EncapMode.FALLBACK}, {"use": Use.TUNNEL}, ""),
        ({"allowed_uses": ["Workload"], "ipip_mode": EncapMode.ALWAYS}, {"use": Use.TUNNEL}, "is for Workload"),
        ({}, {"use": Use.TUNNEL}, "does not tunnel"),
    ],
)
def test_which_pools_may_serve(fields: dict[str, Any], asked: dict[str, Any], why: str) -> None:
    books = Cluster(pool("pods", "10.0.0.0/24", **fields), node("a", rack="1"), SHOP).books
    fit = serving(books, request("h", **asked), Family.V4)
    assert [each.metadata.name for each in fit.pools] == ([] if why else ["pods"])
    assert (why in fit.refused["pods"]) if why else not fit.refused


@pytest.mark.parametrize("asked", ["none", "10.0.0.0/25", "six", "10.0.0.0/24x"])
def test_a_pool_asked_for_that_does_not_exist_is_an_error_that_names_it(asked: str) -> None:
    cluster = Cluster(pool("pods", "10.0.0.0/24"), pool("six", "fd00::/112"))
    with pytest.raises(Invalid, match=rf"IPPool {asked}: .*h asks for it"):
        cluster.decide("h", pools={Family.V4: ("pods", asked)})


def test_pools_asked_for_are_tried_in_the_order_of_the_request() -> None:
    cluster = Cluster(pool("one", "10.0.0.0/30", block_size=30), pool("two", "10.1.0.0/30", block_size=30))
    assert cluster.give("x", pools={Family.V4: ("two", "one")})[0].startswith("10.1.")
    assert cluster.give("y")[0].startswith("10.1.")  # the block it has, before a new one
    assert cluster.give("z", pools={Family.V4: ("one",)})[0].startswith("10.0.")


def test_without_a_family_it_is_each_that_a_pool_serves() -> None:
    six = pool("six", "fd00::/112", namespace_selector="team == 'shop'")
    books = Cluster(pool("four", "10.0.0.0/24"), six, SHOP).books
    assert families(books, request("h", namespace="shop")) == (Family.V4, Family.V6)
    assert families(books, request("h", namespace="office")) == (Family.V4,)
    assert families(books, request("h", namespace="office", pools={Family.V6: ("six",)})) == (Family.V4, Family.V6)


def test_a_pool_that_cannot_be_read_gives_nothing() -> None:
    cluster = Cluster(pool("good", "10.1.0.0/24"))
    books = cluster.hide(pool("bad", "10.0.0.0/24"))
    assert [each.metadata.name for each in serving(books, request("h"), Family.V4).pools] == ["good"]
    fit = serving(books, request("h", pools={Family.V4: ("bad",)}), Family.V4)
    assert (fit.pools, fit.refused) == ((), {"bad": "cannot be read"})


def test_labels_that_cannot_be_read_select_nothing_but_everything() -> None:
    cluster = Cluster(pool("picky", "10.0.0.0/24", node_selector="!has(gpu)"), pool("all", "10.1.0.0/24"))
    books = cluster.hide(node("a"))
    fit = serving(books, request("h"), Family.V4)
    assert [each.metadata.name for each in fit.pools] == ["all"]
    assert "Node a cannot be read" in fit.refused["picky"]


def test_nodes_begin_in_different_places_and_each_always_in_its_own() -> None:
    wide = pool("pods", "10.0.0.0/16")
    books = Cluster(wide).books
    starts = {next(free_ranges(books, wide, f"node-{number}")) for number in range(50)}
    assert len(starts) > 45
    assert next(free_ranges(books, wide, "node-1")) == next(free_ranges(books, wide, "node-1"))


def test_blocks_left_from_pools_of_other_block_sizes_are_respected() -> None:
    left = [block("10.0.0.0/25", "b"), block("10.0.0.192/28", "b")]
    pods = pool("pods", "10.0.0.0/24", block_size=26)
    books = Cluster(pods, *left).books
    for number in range(32):
        assert list(free_ranges(books, pods, f"n{number}")) == [ip_network("10.0.0.128/26")]
    assert list(free_ranges(Cluster(pods, block("10.0.0.0/16", "b")).books, pods, "a")) == []


def test_a_vast_pool_costs_no_more_than_its_blocks() -> None:
    vast = pool("six", "fd00::/48")
    first, second = islice(free_ranges(Cluster(vast).books, vast, "a"), 2)
    assert first.prefixlen == 122
    books = Cluster(vast, block(str(first), "b")).books
    assert next(free_ranges(books, vast, "a")) == second


def test_an_unreadable_block_blocks_its_range_and_one_without_a_range_every_new_block() -> None:
    pods = pool("pods", "10.0.0.0/29", block_size=30)
    cluster = Cluster(pods)
    books = cluster.hide(block("10.0.0.4/30", "b"))
    assert list(free_ranges(books, pods, "a")) == [ip_network("10.0.0.0/30")]
    books.see(Key(IPAMBlock.KIND, "", "what"), None, 99)
    assert list(free_ranges(books, pods, "a")) == []
    with pytest.raises(Exhausted, match="no block is made while IPAMBlock what cannot be read"):
        assign(books, request("h"), cluster.now)
