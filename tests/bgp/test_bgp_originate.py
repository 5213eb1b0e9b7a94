"""What a node originates: blocks, borrowed addresses, services, and the communities they carry."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from bgp_world import block, defaults, made, node, pool

from bgp.desired import desired
from bgp.telling.originate import Originated, originated
from core.resources import BGPConfiguration, EndpointSlice, IPAMBlock, Resource, Service
from core.snapshot import Snapshot

A = node("a", "10.1.0.1/24", "fd01::1/64")
B = node("b", "10.1.0.2/24")
POOL = pool("pods", "10.0.0.0/16")
POOL6 = pool("pods6", "fd10::/48")


def said(*resources: Resource, on: str = "a") -> Originated:
    return originated(Snapshot().apply(1, [(each.key, each) for each in resources]), on)


def told(*resources: Resource, on: str = "a") -> dict[str, str]:
    found = said(*resources, on=on)
    assert found.problems == ()
    return {str(prefix): own.source for prefix, own in found.own.items()}


def lending(cidr: str, owner: str, borrowers: Mapping[str, str]) -> IPAMBlock:
    made_of = block(cidr, owner)
    return msgspec.structs.replace(made_of, spec=msgspec.structs.replace(made_of.spec, borrowers=borrowers))


def service(
    name: str, *, status: tuple[str, ...] = (), labels: Mapping[str, str] | None = None, **spec: Any
) -> Service:
    spec = {"type": "ClusterIP", "clusterIP": "10.96.0.10", **spec}
    ingress = {"loadBalancer": {"ingress": [{"ip": each} for each in status] + [{"hostname": "lb.example"}]}}
    return msgspec.convert(
        {"metadata": {"name": name, "namespace": "shop", "labels": labels or {}}, "spec": spec, "status": ingress},
        Service,
    )


def answering(of: str, *where: str, version: int = 4, ready: bool = True, namespace: str = "shop") -> EndpointSlice:
    address = "10.0.0.1" if version == 4 else "fd10::1"
    endpoints = [{"addresses": [address], "nodeName": each, "conditions": {"ready": ready}} for each in where]
    labels = {"kubernetes.io/service-name": of}
    metadata = {"name": f"{of}-{version}-{'-'.join(where)}-{ready}", "namespace": namespace, "labels": labels}
    fields = {"metadata": metadata, "addressType": f"IPv{version}", "endpoints": endpoints}
    return msgspec.convert(fields, EndpointSlice)


def ranges(*cidrs: str) -> list[dict[str, str]]:
    return [{"cidr": each} for each in cidrs]


def test_own_blocks_of_exported_pools_and_no_others() -> None:
    blocks = [block("10.0.0.0/26", "a"), block("10.0.0.64/26", "b"), block("fd10::/122", "a")]
    assert told(A, B, POOL, POOL6, *blocks) == {"10.0.0.0/26": "block", "fd10::/122": "block"}
    assert told(A, B, POOL, POOL6, *blocks, on="b") == {"10.0.0.64/26": "block"}
    assert told(A, POOL, block("192.0.2.0/26", "a")) == {}
    for closed in ({"disabled": True}, {"disableBGPExport": True}):
        assert told(A, pool("pods", "10.0.0.0/16", **closed), *blocks) == {}


def test_a_block_of_one_address_is_told_while_somebody_has_the_address() -> None:
    ones, ones6 = pool("ones", "10.7.0.0/24", blockSize=32), pool("ones6", "fd07::/112", blockSize=128)
    taken = [block("10.7.0.5/32", "a", allocations={"10.7.0.5": "pod"}), block("10.7.0.6/32", "a")]
    taken6 = [block("fd07::5/128", "a", allocations={"fd07::5": "pod"}), block("fd07::6/128", "a")]
    assert told(A, ones, ones6, *taken, *taken6) == {"10.7.0.5/32": "block", "fd07::5/128": "block"}
    assert told(A, B, ones, *taken, on="b") == {}
    assert told(A, pool("ones", "10.7.0.0/24", blockSize=32, disableBGPExport=True), *taken) == {}


def test_a_speaker_knows_what_it_may_reflect() -> None:
    closed = [pool("closed", "10.7.0.0/16", disabled=True), pool("quiet", "10.8.0.0/16", disableBGPExport=True)]
    objects = [A, POOL6, *closed, POOL]
    found = desired(Snapshot().apply(1, [(each.key, each) for each in objects]), "a")
    assert list(map(str, found.pools)) == ["10.0.0.0/16", "fd10::/48"]


def test_a_borrowed_address_is_told_by_its_borrower() -> None:
    lent = lending("10.0.0.0/26", "a", {"10.0.0.7": "b", "10.0.0.8": "c", "10.0.0.9": "a"})
    lent6 = lending("fd10::/122", "a", {"fd10::7": "b"})
    assert told(A, B, POOL, POOL6, lent, lent6, on="b") == {"10.0.0.7/32": "borrowed", "fd10::7/128": "borrowed"}
    assert told(A, B, POOL, POOL6, lent, lent6) == {"10.0.0.0/26": "block", "fd10::/122": "block"}
    assert told(A, B, pool("pods", "10.0.0.0/16", disableBGPExport=True), lent, on="b") == {}
    assert told(A, B, POOL, lending("10.0.0.0/26", "a", {"10.0.9.7": "b"}), on="b") == {}  # not of that block


def test_a_borrowed_address_that_is_none_is_said_and_spoils_nothing_else() -> None:
    lent = lending("10.0.0.0/26", "a", {"10.0.0.x": "b", "10.0.0.8": "b"})
    found = said(A, B, POOL, lent, on="b")
    assert list(map(str, found.own)) == ["10.0.0.8/32"]
    assert found.problems == ("IPAMBlock 10-0-0-0-26 spec.borrowers: '10.0.0.x' is not an IP address: not told",)


def test_ranges_of_services_are_told_whole_by_every_node() -> None:
    lists = defaults(
        serviceClusterIPs=ranges("10.96.0.0/16", "fd96::/112"),
        serviceExternalIPs=ranges("192.0.2.0/25"),
        serviceLoadBalancerIPs=ranges("198.51.100.0/24"),
    )
    everything = dict.fromkeys(("10.96.0.0/16", "192.0.2.0/25", "198.51.100.0/24", "fd96::/112"), "service")
    assert told(A, lists) == told(A, B, lists, on="b") == everything
    cluster = service("web", externalIPs=["192.0.2.1"], type="LoadBalancer", status=("198.51.100.1",))
    assert told(A, lists, cluster, answering("web", "a")) == everything


def test_the_local_policy_tells_addresses_where_a_ready_endpoint_is() -> None:
    lists = defaults(
        serviceClusterIPs=ranges("10.96.0.0/16"),
        serviceExternalIPs=ranges("192.0.2.0/25"),
        serviceLoadBalancerIPs=ranges("198.51.100.0/24"),
    )
    web = service(
        "web",
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        externalIPs=["192.0.2.1", "203.0.113.1"],
        status=("198.51.100.1", "203.0.113.2"),
    )
    whole = {"10.96.0.0/16", "192.0.2.0/25", "198.51.100.0/24"}
    here = told(A, B, lists, web, answering("web", "a"))
    assert set(here) == whole | {"10.96.0.10/32", "192.0.2.1/32", "198.51.100.1/32"}
    assert set(told(A, B, lists, web, answering("web", "a"), on="b")) == whole
    assert set(told(A, lists, web, answering("web", "a", ready=False))) == whole
    assert set(told(A, lists, web, answering("other", "a"))) == whole
    assert set(told(A, lists, web, answering("web", "a", namespace="elsewhere"))) == whole
    several = (answering("web", "b"), answering("web", "a", ready=False), answering("web", "a", "b"))
    assert told(A, B, lists, web, *several) == here


def test_each_family_of_a_service_needs_an_endpoint_of_its_own() -> None:
    lists = defaults(serviceClusterIPs=ranges("10.96.0.0/16", "fd96::/112"))
    both = service("web", clusterIPs=["10.96.0.10", "fd96::10"], externalTrafficPolicy="Local")
    assert "fd96::10/128" not in told(A, lists, both, answering("web", "a"))
    assert "fd96::10/128" in told(A, lists, both, answering("web", "a", version=6))
    assert "10.96.0.10/32" not in told(A, lists, both, answering("web", "a", version=6))


def test_services_without_an_address_of_the_cluster_are_not_told() -> None:
    lists = defaults(serviceExternalIPs=ranges("192.0.2.0/25"))
    for spec in ({"clusterIP": "None"}, {"clusterIP": ""}, {"type": "ExternalName"}):
        web = service("web", externalTrafficPolicy="Local", externalIPs=["192.0.2.1"], **spec)
        assert set(told(A, lists, web, answering("web", "a"))) == {"192.0.2.0/25"}


def test_load_balancers_addresses_without_aggregation() -> None:
    lists = defaults(serviceLoadBalancerIPs=ranges("198.51.100.0/24"), serviceLoadBalancerAggregation="Disabled")
    web = service("web", type="LoadBalancer", status=("198.51.100.1",))
    assert told(A, lists, web) == {}
    assert told(A, B, lists, web, answering("web", "b")) == {"198.51.100.1/32": "service"}
    assert told(A, B, lists, web, answering("web", "b", ready=False)) == {}
    local = service("web", type="LoadBalancer", status=("198.51.100.1",), externalTrafficPolicy="Local")
    assert told(A, B, lists, local, answering("web", "b")) == {}


@pytest.mark.parametrize("said", ["x", ["x"], {"ingress": "x"}, {"ingress": ["x", 1, {"ip": 1}, {"ip": "x"}]}, None])
def test_a_service_whose_status_cannot_be_made_sense_of_tells_nothing_and_disturbs_nobody(said: object) -> None:
    lists = defaults(serviceLoadBalancerIPs=ranges("198.51.100.0/24"), serviceLoadBalancerAggregation="Disabled")
    web = service("web", type="LoadBalancer", status=("198.51.100.1",))
    odd = msgspec.structs.replace(service("odd", type="LoadBalancer"), status={"loadBalancer": said})
    slices = (answering("web", "a"), answering("odd", "a"))
    assert told(A, lists, web, odd, *slices) == {"198.51.100.1/32": "service"}


def test_a_range_of_one_address_is_told_once_a_service_has_it() -> None:
    lists = defaults(
        serviceExternalIPs=ranges("192.0.2.1"), serviceLoadBalancerIPs=ranges("198.51.100.1/32", "fd98::1/128")
    )
    assert told(A, lists) == {}
    web = service("web", type="LoadBalancer", externalIPs=["192.0.2.1"], status=("198.51.100.1", "fd98::1"))
    assert set(told(A, lists, web)) == {"192.0.2.1/32", "198.51.100.1/32", "fd98::1/128"}
    local = service("web", type="LoadBalancer", status=("198.51.100.1",), externalTrafficPolicy="Local")
    assert told(A, lists, local, answering("web", "b")) == {}


def test_an_address_outside_the_ranges_or_that_is_none_is_never_told() -> None:
    lists = defaults(serviceExternalIPs=ranges("192.0.2.0/25"))
    web = service("web", externalTrafficPolicy="Local", externalIPs=["8.8.8.8", "nonsense", "192.0.2.0/25"])
    assert set(told(A, lists, web, answering("web", "a"))) == {"192.0.2.0/25"}


def test_an_excluded_node_tells_nothing_of_services() -> None:
    label = "node.kubernetes.io/exclude-from-external-load-balancers"
    excluded = node("a", "10.1.0.1/24", labels={label: ""})
    lists = defaults(serviceClusterIPs=ranges("10.96.0.0/16"))
    assert told(excluded, POOL, lists, block("10.0.0.0/26", "a")) == {"10.0.0.0/26": "block"}


def test_a_range_that_is_none_disables_services_only() -> None:
    lists = defaults(serviceClusterIPs=ranges("10.96.0.0/16", "nonsense"))
    found = said(A, POOL, lists, block("10.0.0.0/26", "a"))
    assert list(map(str, found.own)) == ["10.0.0.0/26"]
    assert found.problems == (
        (
            "BGPConfiguration default spec.serviceClusterIPs[1].cidr: 'nonsense' is not an IP address or prefix:"
            " no service is told"
        ),
    )


BLOCKS = [block("10.0.0.0/26", "a"), block("10.0.1.0/26", "a"), block("fd10::/122", "a")]


def communities(*resources: Resource) -> dict[str, tuple[str, ...]]:
    found = said(A, POOL, POOL6, *BLOCKS, *resources)
    assert found.problems == ()
    return {str(prefix): own.communities for prefix, own in found.own.items()}


def test_communities_of_the_prefixes_around() -> None:
    lists = defaults(
        communities=[{"name": "racks", "value": "64512:10"}, {"name": "wide", "value": "64512:1:2"}],
        prefixAdvertisements=[
            {"cidr": "10.0.0.0/24", "communities": ["racks", "65535:065281"]},
            {"cidr": "10.0.0.0/16", "communities": ["wide", "racks"]},
            {"cidr": "10.0.0.0/27", "communities": ["1:1"]},
        ],
    )
    assert communities(lists) == {
        "10.0.0.0/26": ("64512:10", "65535:65281", "64512:1:2"),
        "10.0.1.0/26": ("64512:1:2", "64512:10"),
        "fd10::/122": (),
    }


def test_a_nodes_own_advertisements_stand_for_the_clusters() -> None:
    everywhere = {"cidr": "10.0.0.0/16", "communities": ["racks"]}
    lists = defaults(communities=[{"name": "racks", "value": "64512:10"}], prefixAdvertisements=[everywhere])
    silent = made(BGPConfiguration, "node.a", {"communities": [{"name": "racks", "value": "64512:20"}]})
    assert communities(lists, silent)["10.0.0.0/26"] == ("64512:20",)
    own = made(
        BGPConfiguration, "node.a", {"prefixAdvertisements": [{"cidr": "10.0.1.0/24", "communities": ["racks"]}]}
    )
    assert communities(lists, own) == {"10.0.0.0/26": (), "10.0.1.0/26": ("64512:10",), "fd10::/122": ()}
    assert communities(lists, made(BGPConfiguration, "node.b", {}))["10.0.0.0/26"] == ("64512:10",)


def test_a_community_that_does_not_exist_withholds_what_it_was_meant_for() -> None:
    lists = defaults(
        prefixAdvertisements=[
            {"cidr": "10.0.0.0/24", "communities": ["1:1", "inside"]},
            {"cidr": "10.0.0.0/16", "communities": ["2:2"]},
        ]
    )
    found = said(A, POOL, POOL6, *BLOCKS, lists)
    assert {str(prefix): own.communities for prefix, own in found.own.items()} == {
        "10.0.1.0/26": ("2:2",),
        "fd10::/122": (),
    }
    assert found.problems == (
        (
            "BGPConfiguration default spec.prefixAdvertisements[0].communities: there is no community 'inside':"
            " 10.0.0.0/26 not told"
        ),
    )


def test_an_advertisement_of_no_prefix_applies_to_nothing_and_says_so() -> None:
    lists = defaults(prefixAdvertisements=[{"cidr": "10.0.0.0/33", "communities": ["1:1"]}])
    found = said(A, POOL, *BLOCKS, lists)
    assert len(found.own) == 2
    assert [each.partition(": ")[0] for each in found.problems] == [
        "BGPConfiguration default spec.prefixAdvertisements[0].cidr"
    ]


@pytest.mark.parametrize(("where", "expected"), [("default", 700), ("node.a", 700), ("node.b", 1024)])
def test_the_priority_of_ordinary_routes(where: str, expected: int) -> None:
    lists = made(BGPConfiguration, where, {"ipv4NormalRoutePriority": 700})
    found = said(A, POOL, POOL6, *BLOCKS, lists)
    assert {prefix.version: own.priority for prefix, own in found.own.items()} == {4: expected, 6: 1024}


def test_the_order_in_which_objects_came_changes_nothing() -> None:
    lists = defaults(
        serviceClusterIPs=ranges("10.96.0.0/16"),
        prefixAdvertisements=[{"cidr": "10.0.0.0/24", "communities": ["1:1", "gone"]}],
    )
    web = service("web", externalTrafficPolicy="Local")
    lent = lending("10.0.9.0/26", "b", {"10.0.9.1": "a", "10.0.9.2": "a"})
    objects = [A, B, POOL, POOL6, *BLOCKS, lists, web, lent, answering("web", "a"), answering("web", "b")]
    first = said(*objects)
    assert len(first.own) == 6
    for seed in range(20):
        random.Random(seed).shuffle(objects)
        again = said(*objects)
        assert list(again.own.items()) == list(first.own.items())
        assert again.problems == first.problems
