"""What several objects can get wrong together, judged on what a transaction would leave behind."""

from collections.abc import Iterable, Mapping

import pytest
from msgspec.structs import replace

from core.admission import check, check_alone, needs, relies
from core.names import Key, Kind
from core.resources import (
    BGPPeer,
    GlobalNetworkPolicy,
    IPAMBlock,
    IPAMHandle,
    IPPool,
    Metadata,
    NetworkPolicy,
    Node,
    Resource,
    Tier,
    WorkloadEndpoint,
)
from core.resources.bgp import BGPPeerSpec
from core.resources.ipam import BlockSpec, HandleSpec
from core.resources.network import IPPoolSpec, WorkloadEndpointSpec
from core.resources.policy import GlobalNetworkPolicySpec, NetworkPolicySpec


def pool(name: str, cidr: str, block_size: int | None = None, **spec: object) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, block_size=block_size, **spec))


def block(cidr: str, **allocations: str) -> IPAMBlock:
    name = cidr.replace(".", "-").replace("/", "-")
    held = {address.replace("_", "."): handle for address, handle in allocations.items()}
    return IPAMBlock(metadata=Metadata(name=name), spec=BlockSpec(cidr=cidr, affinity="host:n1", allocations=held))


def tier(name: str) -> Tier:
    return Tier(metadata=Metadata(name=name))


def policy(name: str, in_tier: str) -> NetworkPolicy:
    return NetworkPolicy(metadata=Metadata(name=name, namespace="shop"), spec=NetworkPolicySpec(tier=in_tier))


def everywhere(name: str, in_tier: str) -> GlobalNetworkPolicy:
    return GlobalNetworkPolicy(metadata=Metadata(name=name), spec=GlobalNetworkPolicySpec(tier=in_tier))


def node(name: str, **labels: str) -> Node:
    return Node(metadata=Metadata(name=name, labels=labels))


def peer(name: str, ip: str = "10.0.0.1", **spec: str) -> BGPPeer:
    return BGPPeer(metadata=Metadata(name=name), spec=BGPPeerSpec(peer_ip=ip, as_number=64512, **spec))


def judge(
    put: Iterable[Resource],
    there: Iterable[Resource] = (),
    delete: Iterable[Resource] = (),
    unreadable: Iterable[Resource] = (),
) -> list[str]:
    changes: dict[Key, Resource | None] = {resource.key: resource for resource in put}
    changes |= {resource.key: None for resource in delete}
    found: dict[Key, Resource | None] = {resource.key: resource for resource in there}
    found |= {resource.key: None for resource in unreadable}
    read = needs(changes)
    existing: dict[Kind, dict[Key, Resource | None]] = {}
    for key, resource in found.items():
        if key.kind in read:  # what needs() leaves out is not there to be judged by
            existing.setdefault(key.kind, {})[key] = resource
    return [str(problem) for problem in check(changes, existing)]


OVERLAP = "IPPool/b: spec.cidr: 10.65.1.0/24 overlaps 10.65.0.0/16 of IPPool/a"


@pytest.mark.parametrize(
    ("put", "there", "delete", "says"),
    [
        ([pool("b", "10.65.1.0/24")], [pool("a", "10.65.0.0/16")], [], [OVERLAP]),
        ([pool("b", "10.65.1.0/24")], [pool("a", "10.65.0.0/16", disabled=True)], [], [OVERLAP]),
        ([pool("b", "10.66.0.0/16"), pool("c", "fd00::/64")], [pool("a", "10.65.0.0/16")], [], []),
        ([pool("b", "10.65.1.0/24")], [pool("a", "10.65.0.0/16")], [pool("a", "10.65.0.0/16")], []),
        ([pool("a", "10.65.0.0/16", nat_outgoing=True)], [pool("a", "10.65.0.0/16")], [], []),
        (
            [pool("a", "10.65.0.0/16"), pool("b", "10.65.1.0/24")],
            [],
            [],
            ["IPPool/a: spec.cidr: 10.65.0.0/16 overlaps 10.65.1.0/24 of IPPool/b"],
        ),
        (
            [pool("a", "10.66.0.0/16")],
            [pool("a", "10.65.0.0/16")],
            [],
            [
                (
                    "IPPool/a: spec.cidr: cannot change (it is 10.65.0.0/16);"
                    " create another pool, move the pods, delete this one"
                )
            ],
        ),
        ([pool("a", "10.65.0.0/16", 26)], [pool("a", "10.65.0.0/16")], [], []),
        (
            [pool("a", "10.65.0.0/16", 28)],
            [pool("a", "10.65.0.0/16")],
            [],
            ["IPPool/a: spec.blockSize: cannot change (it is 26); create another pool, move the pods, delete this one"],
        ),
    ],
)
def test_pools_are_apart_and_stay(put: list, there: list, delete: list, says: list[str]) -> None:
    assert judge(put, there, delete) == says


def test_a_pool_goes_once_its_addresses_are_free() -> None:
    old = pool("a", "10.65.0.0/16")
    empty, used = block("10.65.0.0/26"), block("10.65.0.64/26", **{"10_65_0_70": "pod-1", "10_65_0_71": "pod-2"})
    assert judge([], [old, empty], [old]) == []
    assert judge([], [old, empty, used], [old]) == [
        "IPPool/a: 2 of its addresses are in use (10.65.0.70 by pod-1); `muslin delete` ends it when they are free"
    ]
    assert judge([], [old, empty], [old, empty]) == []
    halves = [pool("low", "10.65.0.0/17"), pool("high", "10.65.128.0/17")]
    assert judge(halves, [old, used], [old]) == []
    assert judge(halves[1:], [old, used], [old]) != []


def test_a_block_goes_once_its_addresses_are_free() -> None:
    empty, used = block("10.65.0.0/26"), block("10.65.0.64/26", **{"10_65_0_70": "pod-1", "10_65_0_71": "pod-2"})
    assert judge([], [empty, used], [empty]) == []
    refused = (
        "IPAMBlock/10-65-0-64-26: 2 of its addresses are in use (10.65.0.70 by pod-1);"
        " remove the pods first, or `muslin ipam release` what no pod has"
    )
    assert judge([], [empty, used], [empty, used]) == [refused]
    assert judge([], [], [used]) == [], "what is not there may go"
    assert judge([], [], [used], [used]) == [], "what nobody can read is mended or deleted"
    assert judge([block("10.65.0.64/26")], [used]) == [], "IPAM writes what it likes"


def test_a_node_goes_once_its_pods_have_gone() -> None:
    n1, pods = node("n1"), block("10.65.0.0/26", **{"10_65_0_1": "pod-1", "10_65_0_2": "ipip-tunnel-addr-n1"})
    refused = (
        "Node/n1: 1 of its addresses are in use (10.65.0.1 by pod-1);"
        " remove its pods first; if its machine is gone for good, `muslin node remove n1`"
    )
    assert judge([], [n1, pods], [n1]) == [refused]
    assert judge([], [node("n2"), pods], [node("n2")]) == [], "the block is another node's"
    tunnel = block("10.65.0.0/26", **{"10_65_0_2": "ipip-tunnel-addr-n1"})
    assert judge([tunnel], [n1, pods], [n1]) == [], "its own address is no pod's"
    assert "ipip-tunnel-addr-n1" in judge([], [n1, tunnel], [tunnel])[0]
    assert judge([], [n1, tunnel], [n1, tunnel]) == []
    assert judge([], [node("n2"), tunnel], [tunnel]) == [], "left by a node that is gone"
    assert "cannot be read" in judge([], [n1], [n1], [pods])[0]


def test_a_pod_is_of_the_node_that_borrows_its_address() -> None:
    lent = block("10.65.0.0/26", **{"10_65_0_1": "pod-1"})
    lent = replace(lent, spec=replace(lent.spec, borrowers={"10.65.0.1": "n2"}))
    assert judge([], [node("n1"), lent], [node("n1")]) == []
    assert judge([], [node("n2"), lent], [node("n2")])[0].startswith("Node/n2: 1 of its addresses")


def test_the_end_of_a_pool_cannot_be_taken_back() -> None:
    old = pool("a", "10.65.0.0/16")
    ending = replace(old, metadata=replace(old.metadata, deletion_timestamp="2026-01-01T00:00:00Z"))
    (said,) = judge([old], [ending])
    assert said.startswith(
        "IPPool/a: metadata.deletionTimestamp: it is being deleted since 2026-01-01T00:00:00Z and goes with its last"
    )
    assert judge([replace(ending, spec=replace(ending.spec, nat_outgoing=True))], [ending]) == []
    assert judge([ending], [old]) == []
    used = block("10.65.0.64/26", **{"10_65_0_70": "pod-1"})
    assert judge([], [ending, used], [ending]) != [], "it waits for its addresses, whoever asks"
    assert judge([], [ending, block("10.65.0.64/26")], [ending, block("10.65.0.64/26")]) == []
    assert "overlaps" in judge([pool("b", "10.65.0.0/24")], [ending])[0]


def test_a_handle_goes_with_its_addresses() -> None:
    used, free = block("10.65.0.0/26", **{"10_65_0_1": "pod-1"}), block("10.65.0.0/26")
    handle = IPAMHandle(metadata=Metadata(name="pod-1"), spec=HandleSpec(handle_id="pod-1", addresses={}))
    refused = "IPAMHandle/pod-1: it holds 10.65.0.1; `muslin ipam release` gives an address back with its handle"
    assert judge([], [used, handle], [handle]) == [refused]
    assert judge([], [free, handle], [handle]) == []
    assert judge([free], [used, handle], [handle]) == [], "as IPAM does"
    assert needs({handle.key: None, free.key: free}) == frozenset(), "so that giving back needs nothing read"
    assert judge([], [used], [handle], [handle]) == [], "whose it was cannot be read"


def test_what_an_unreadable_object_may_be_using_does_not_go() -> None:
    old, odd = pool("a", "10.65.0.0/16"), block("10.65.0.0/26")
    unknown = "IPPool/a: IPAMBlock 10-65-0-0-26 cannot be read and may be using it; mend or delete that first"
    assert judge([], [old], [old], [odd]) == [unknown]
    assert judge([], [old], [old, odd], [odd]) == []
    assert judge([odd], [old], [old], [odd]) == [], "mended, and free"
    assert judge([pool("b", "10.66.0.0/16")], [old], [], [odd]) == []
    assert judge([], [], [old], [odd]) == [], "what is not there may go"
    used = block("10.65.0.64/26", **{"10_65_0_70": "pod-1"})
    assert "1 of its addresses" in judge([], [used], [old], [old])[0], "whatever its range was"
    assert judge([], [used, pool("b", "10.65.0.0/17")], [old], [old]) == [], "another pool holds them"
    assert judge([], [tier("sec")], [tier("sec")], [policy("p", "")]) == [
        "Tier/sec: NetworkPolicy shop/p cannot be read and may be using it; mend or delete that first"
    ]
    assert judge([], [tier("default")], [tier("default")], [policy("p", "")]) == []


def test_a_policy_relies_on_its_tier() -> None:
    written = [policy("p", "sec"), everywhere("q", "ops"), policy("r", "default"), tier("ops"), pool("a", "10.0.0.0/8")]
    assert relies({resource.key: resource for resource in written}) == {tier("sec").key}
    assert relies({policy("p", "sec").key: None}) == frozenset()


def test_policies_need_their_tier() -> None:
    missing = "NetworkPolicy/shop/p: spec.tier: there is no tier 'sec'; create it first, or in the same apply"
    assert judge([policy("p", "sec")]) == [missing]
    assert judge([policy("p", "sec")], [tier("sec")]) == []
    assert judge([policy("p", "sec"), tier("sec")]) == []
    assert judge([policy("p", "sec")], [tier("sec")], [tier("sec")])[0] == missing
    assert [judge([everywhere("p", name)]) for name in ("default", "kube-admin", "kube-baseline")] == [[], [], []]
    assert "GlobalNetworkPolicy/p" in judge([everywhere("p", "sec")])[0]


def test_a_tier_goes_once_no_policy_names_it() -> None:
    assert judge([], [tier("sec")], [tier("sec")]) == []
    assert judge([], [tier("sec"), policy("p", "sec"), everywhere("q", "sec")], [tier("sec")]) == [
        "Tier/sec: is the tier of GlobalNetworkPolicy q and 1 more; delete or move them first"
    ]
    assert judge([], [tier("sec"), policy("p", "sec")], [tier("sec"), policy("p", "sec")]) == []
    assert judge([policy("p", "default")], [tier("sec"), policy("p", "sec")], [tier("sec")]) == []
    assert judge([], [tier("default"), policy("p", "default")], [tier("default")]) == []


NODES = [node("n1", rack="1"), node("n2", rack="2")]


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ({}, {}, "every node it selects"),
        ({}, {"node": "n1"}, "node n1"),
        ({"node": "n1"}, {}, "node n1"),
        ({"node": "n1"}, {"node": "n1"}, "node n1"),
        ({"node": "n1"}, {"node": "n2"}, None),
        ({"node": "n1"}, {"node_selector": "rack == '1'"}, "node n1"),
        ({"node": "n1"}, {"node_selector": "rack == '2'"}, None),
        ({"node_selector": "rack == '1'"}, {"node_selector": "rack == '2'"}, None),
        ({"node_selector": "rack == '1'"}, {"node_selector": "has(rack)"}, "node n1"),
        ({"node_selector": "rack=='9'"}, {"node_selector": 'rack == "9"'}, "the same nodes"),
    ],
)
def test_a_node_has_one_session_with_an_address(one: Mapping, other: Mapping, says: str | None) -> None:
    expected = [f"BGPPeer/b: spec.peerIP: BGPPeer/a peers {says} with 10.0.0.1 already"] if says else []
    assert judge([peer("b", "10.0.0.1:1790", **other)], [peer("a", **one), *NODES]) == expected
    assert judge([peer("b", "10.0.0.2", **other)], [peer("a", **one), *NODES]) == []
    assert judge([peer("b", **other)], [peer("a", **one), *NODES], [peer("a")]) == []


def test_two_peers_of_one_apply_are_told_once_and_any_order_refuses_them() -> None:
    one, other = peer("a", "fd00::1", node="n1"), peer("b", "[fd00::1]:1790", node_selector="rack == '1'")
    assert judge([one, other], NODES) == ["BGPPeer/a: spec.peerIP: BGPPeer/b peers node n1 with fd00::1 already"]
    assert judge([other], [one, *NODES]) == ["BGPPeer/b: spec.peerIP: BGPPeer/a peers node n1 with fd00::1 already"]
    assert judge([one], [other, *NODES]) == ["BGPPeer/a: spec.peerIP: BGPPeer/b peers node n1 with fd00::1 already"]


def test_peers_that_overlap_through_a_node_of_the_same_apply() -> None:
    rack, row = peer("a", node_selector="rack == '9'"), peer("b", node_selector="row == '9'")
    assert judge([row], [rack, *NODES]) == []
    assert judge([row, node("n3", rack="9", row="9")], [rack, *NODES]) == [
        "BGPPeer/b: spec.peerIP: BGPPeer/a peers node n3 with 10.0.0.1 already"
    ]
    assert judge([node("n3", rack="9", row="9")], [rack, row, *NODES]) == []  # shown by the node, and not refused


def test_a_peer_that_leaves_an_address_makes_room_for_another() -> None:
    assert judge([peer("a", "10.0.0.9"), peer("b", "10.0.0.1")], [peer("a", "10.0.0.1"), *NODES]) == []


def test_peers_without_an_address_are_apart() -> None:
    chosen = [BGPPeer(metadata=Metadata(name=name), spec=BGPPeerSpec(peer_selector="all()")) for name in "ab"]
    assert judge(chosen, [peer("c"), *NODES]) == []


def test_most_writes_need_nothing_read() -> None:
    pod = WorkloadEndpoint(metadata=Metadata(name="a", namespace="b"), spec=WorkloadEndpointSpec())
    quiet = [pod, block("10.65.0.0/26"), node("n1"), tier("sec"), policy("p", "default")]
    assert needs({resource.key: resource for resource in quiet}) == frozenset()
    assert needs({pod.key: None}) == frozenset()
    assert needs({node("n1").key: None}) == needs({block("10.65.0.0/26").key: None}) == {IPAMBlock.KIND, Node.KIND}
    assert needs({pool("a", "10.0.0.0/16").key: None}) == {IPPool.KIND, IPAMBlock.KIND}


def test_an_address_is_written_in_one_spelling() -> None:
    odd = block("fd00::/122", **{"FD00::1": "pod-1", "fd00::2": "pod-2"})
    holder = IPAMHandle(
        metadata=Metadata(name="pod-1"), spec=HandleSpec(handle_id="pod-1", addresses={"fd00:0::1": "fd00::/122"})
    )
    problems = check_alone({each.key: each for each in (odd, holder)})
    assert [str(each) for each in problems] == [
        "IPAMBlock/fd00::-122: spec.allocations.FD00::1: is fd00::1; write it so",
        "IPAMHandle/pod-1: spec.addresses.fd00:0::1: is fd00::1; write it so",
    ]
    assert check_alone({odd.key: block("fd00::/122", **{"fd00::1": "pod-1"}), holder.key: None}) == []
