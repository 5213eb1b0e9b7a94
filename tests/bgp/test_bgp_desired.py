"""The speaker a node should have, by named states."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from itertools import permutations

import pytest
from bgp_world import block, defaults, made, node, peer, pool

from bgp.desired import absent, desired
from bgp.model import Speaker
from core.errors import Invalid, NotFound
from core.resources import BGPConfiguration, Resource
from core.snapshot import Snapshot
from linux.model import Facts, Link

NO_MESH = defaults(nodeToNodeMeshEnabled=False)


def speaker(*resources: Resource, on: str = "a") -> Speaker:
    return desired(Snapshot().apply(1, [(each.key, each) for each in resources]), on)


def peers(found: Speaker) -> dict[str, str]:
    return {str(session.peer): session.name for session in found.sessions}


A = node("a", "10.1.0.1/24", "fd01::1/64", labels={"rack": "1"})
B = node("b", "10.1.0.2/24", labels={"rack": "1"})
C = node("c", "10.2.0.9/24", "fd02::9/64", labels={"rack": "2"}, asNumber=64600)


def test_the_mesh_is_on_by_default_and_one_side_calls() -> None:
    everyone = {name: speaker(A, B, C, on=name) for name in "abc"}
    assert peers(everyone["a"]) == {"10.1.0.2": "mesh/b", "10.2.0.9": "mesh/c", "fd02::9": "mesh/c"}
    ends = {"a": ("10.1.0.1", "fd01::1"), "b": ("10.1.0.2",), "c": ("10.2.0.9", "fd02::9")}
    owner = {ip_address(address): name for name, addresses in ends.items() for address in addresses}
    calls = {
        frozenset({name, owner[session.peer]}) | {str(session.family)}: []
        for name, found in everyone.items()
        for session in found.sessions
    }
    for name, found in everyone.items():
        for session in found.sessions:
            calls[frozenset({name, owner[session.peer]}) | {str(session.family)}].append(session.passive)
    assert len(calls) == 4
    assert all(sorted(passive) == [False, True] for passive in calls.values())


def test_as_numbers() -> None:
    assert speaker(A).as_number == 64512
    assert speaker(A, defaults(asNumber=65000)).as_number == 65000
    assert speaker(A, defaults(asNumber="1.10")).as_number == 65546
    own = made(BGPConfiguration, "node.a", {"asNumber": 65001, "listenPort": 1790})
    assert (speaker(A, defaults(asNumber=65000), own).as_number, speaker(A, own).port) == (65001, 1790)
    assert speaker(C, own, defaults(asNumber=65000), on="c").as_number == 64600
    session = next(each for each in speaker(A, C).sessions if each.peer.version == 4)
    assert (session.local_as, session.remote_as, session.internal) == (64512, 64600, False)


def test_a_mesh_peer_is_called_on_its_own_port() -> None:
    theirs = made(BGPConfiguration, "node.b", {"listenPort": 1790})
    assert [session.port for session in speaker(A, B, theirs).sessions] == [1790]


def test_peer_scopes() -> None:
    everywhere = peer("all", "10.9.0.1", asNumber=65001)
    here = peer("here", "10.9.0.2", asNumber=65001, node="a")
    there = peer("there", "10.9.0.3", asNumber=65001, node="b")
    rack = peer("rack", "10.9.0.4", asNumber=65001, nodeSelector="rack == '1'")
    other = peer("other", "10.9.0.5", asNumber=65001, nodeSelector="rack == '2'")
    found = speaker(A, B, NO_MESH, everywhere, here, there, rack, other)
    assert set(peers(found).values()) == {"BGPPeer/all", "BGPPeer/here", "BGPPeer/rack"}


def test_a_selector_that_does_not_parse_blocks_its_peer_only() -> None:
    wrong = peer("wrong", "10.9.0.1", asNumber=65001, nodeSelector="rack ==")
    found = speaker(A, NO_MESH, wrong, peer("right", "10.9.0.2", asNumber=65001))
    assert set(peers(found).values()) == {"BGPPeer/right"}
    assert [each.name for each in found.blocked] == ["BGPPeer/wrong"]


@pytest.mark.parametrize(
    ("address", "peer_at", "port"),
    [
        ("10.9.0.1", "10.9.0.1", 179),
        ("10.9.0.1:1790", "10.9.0.1", 1790),
        ("fd09::1", "fd09::1", 179),
        ("[fd09::1]:1790", "fd09::1", 1790),
    ],
)
def test_peer_addresses(address: str, peer_at: str, port: int) -> None:
    (session,) = speaker(A, NO_MESH, peer("p", address, asNumber=65001)).sessions
    assert (str(session.peer), session.port) == (peer_at, port)
    assert session.local is not None
    assert session.local.version == session.peer.version


def test_a_peers_settings() -> None:
    spec = {
        "asNumber": 65001,
        "localASNumber": "1.1",
        "keepaliveTime": "3s",
        "maxRestartTime": "1m30s",
        "ttlSecurity": 1,
        "numAllowedLocalASNumbers": 2,
        "sourceAddress": "None",
    }
    (session,) = speaker(A, NO_MESH, peer("p", "10.9.0.1", **spec)).sessions
    assert (session.hold_s, session.restart_s, session.ttl_hops, session.own_as_allowed) == (9, 90, 1, 2)
    assert (session.local_as, session.local, session.passive) == (65537, None, False)
    (plain,) = speaker(A, NO_MESH, peer("p", "10.9.0.1", asNumber=65001)).sessions
    assert (plain.hold_s, plain.restart_s, plain.ttl_hops, plain.own_as_allowed) == (30, 120, None, 0)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"filters": ["no-such"]}, "there is no BGPFilter no-such"),
        ({"password": {"secretKeyRef": {"name": "s", "key": "k"}}}, "password: there is no Secret s in namespace"),
        ({"asNumber": None}, "asNumber is needed with peerIP"),
        ({"asNumber": 0}, "asNumber is needed with peerIP"),
        ({"peerIP": ""}, "it names nobody: peerIP, peerSelector or localWorkloadSelector is needed"),
        ({"peerIP": "", "localWorkloadSelector": "all()", "asNumber": None}, "asNumber is needed with localWork"),
    ],
)
def test_what_cannot_be_had_as_written_is_blocked(spec: dict[str, object], reason: str) -> None:
    ip = str(spec.pop("peerIP", "10.9.0.1"))
    found = speaker(A, NO_MESH, peer("p", ip, **{"asNumber": 65001, **spec}))
    assert found.sessions == ()
    (blocked,) = found.blocked
    assert blocked.reason.startswith(reason)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [({"asNumber": "1.99999"}, "AS number"), ({"keepaliveTime": "soon"}, "duration"), ({"ip": "10.9.0"}, "address")],
)
def test_a_peer_that_makes_no_sense_is_blocked_alone(spec: dict[str, str], reason: str) -> None:
    wrong = peer("wrong", spec.pop("ip", "10.9.0.1"), **{"asNumber": 65001, **spec})
    found = speaker(A, NO_MESH, wrong, peer("right", "10.9.0.2", asNumber=65001))
    assert peers(found) == {"10.9.0.2": "BGPPeer/right"}
    (blocked,) = found.blocked
    assert reason in blocked.reason


def test_a_node_that_makes_no_sense_is_no_peer_and_no_speaker() -> None:
    wrong = node("wrong", "10.1.0.7/24", asNumber="x")
    found = speaker(A, B, wrong)
    assert peers(found) == {"10.1.0.2": "mesh/b"}
    assert [each.name for each in found.blocked] == ["mesh/wrong"]
    with pytest.raises(Invalid, match="AS number"):
        speaker(wrong, on="wrong")


def test_a_family_the_node_lacks_is_blocked() -> None:
    found = speaker(B, NO_MESH, peer("six", "fd09::1", asNumber=65001), on="b")
    assert [each.reason for each in found.blocked] == ["this node has no IPv6 address"]


def test_a_mesh_with_a_password_is_blocked_whole() -> None:
    found = speaker(A, B, defaults(nodeMeshPassword={"secretKeyRef": {"name": "s", "key": "k"}}))
    assert found.sessions == ()
    assert [each.name for each in found.blocked] == ["mesh/b"]


def test_two_sessions_with_one_address_in_any_order() -> None:
    resources = (A, B, peer("one", "10.1.0.2", asNumber=65001), peer("two", "10.1.0.2", asNumber=65002))
    results = {repr(speaker(*order)) for order in permutations(resources)}
    assert len(results) == 1
    found = speaker(*resources)
    assert peers(found) == {"10.1.0.2": "BGPPeer/one"}
    assert [each.name for each in found.blocked] == ["BGPPeer/two", "mesh/b"]


def test_our_own_address_is_no_peer() -> None:
    assert speaker(A, NO_MESH, peer("us", "10.1.0.1", asNumber=64512)) == speaker(A, NO_MESH)


def test_peer_selector_and_its_mirror() -> None:
    reflectors = peer("racks", "", nodeSelector="rack == '1'", peerSelector="rack == '2'")
    assert peers(speaker(A, B, C, NO_MESH, reflectors)) == {
        "10.2.0.9": "BGPPeer/racks/c",
        "fd02::9": "BGPPeer/racks/c",
    }
    mirrored = speaker(A, B, C, NO_MESH, reflectors, on="c")
    assert set(peers(mirrored)) == {"10.1.0.1", "fd01::1", "10.1.0.2"}
    by_hand = peer("racks", "", nodeSelector="rack == '1'", peerSelector="rack == '2'", reversePeering="Manual")
    assert speaker(A, B, C, NO_MESH, by_hand, on="c").sessions == ()
    assert not any(session.passive for session in speaker(A, B, C, NO_MESH, by_hand).sessions)


def test_adverts_are_own_blocks_of_exported_pools() -> None:
    pools = [
        pool("main", "10.244.0.0/16"),
        pool("off", "10.245.0.0/16", disabled=True),
        pool("quiet", "10.246.0.0/16", disableBGPExport=True),
        pool("six", "fd44::/48"),
    ]
    blocks = [
        block("fd44::40/122", "a"),
        block("10.244.1.0/26", "a"),
        block("10.244.0.0/26", "a"),
        block("10.244.2.0/26", "b"),
        block("10.244.9.9/32", "a"),
        block("10.245.1.0/26", "a"),
        block("10.246.1.0/26", "a"),
        block("10.99.1.0/26", "a"),
    ]
    found = speaker(A, *pools, *blocks)
    assert [str(prefix) for prefix in found.own] == ["10.244.0.0/26", "10.244.1.0/26", "fd44::40/122"]


def test_where_it_listens() -> None:
    assert [str(each) for each in speaker(A).listen] == ["0.0.0.0", "::"]
    assert [str(each) for each in speaker(A, defaults(bindMode="NodeIP")).listen] == ["10.1.0.1", "fd01::1"]


def test_router_ids() -> None:
    assert speaker(A).router_id == IPv4Address("10.1.0.1")
    six, seven = (speaker(node(name, "fd01::6/64"), on=name).router_id for name in ("six", "seven"))
    assert six != seven
    assert IPv4Address(0) not in (six, seven)


def test_no_node_is_an_error_and_not_an_empty_speaker() -> None:
    with pytest.raises(NotFound, match="there is no Node a"):
        speaker(B)


def test_services_are_told_and_what_is_withheld_is_said() -> None:
    found = speaker(A, defaults(serviceClusterIPs=[{"cidr": "10.96.0.0/12"}]))
    assert (list(found.own), found.problems) == ([ip_network("10.96.0.0/12")], ())
    found = speaker(A, defaults(serviceClusterIPs=[{"cidr": "10.96.0.0/33"}]))
    assert (len(found.own), len(found.problems)) == (0, 1)


def test_an_address_that_the_host_lacks_is_said() -> None:
    def facts(*addresses: str) -> Facts:
        found = tuple(ip_interface(each) for each in addresses)
        return Facts(links={"eth0": Link(name="eth0", index=2, up=True, mtu=1500, addresses=found)})

    both = speaker(A)
    assert absent(both, facts("10.1.0.1/32", "fd01::1/64")) == ()
    assert absent(both, facts("10.1.0.9/24", "fd01::1/64")) == (
        "this host has no address 10.1.0.1 (Node spec.bgp.ipv4Address)",
    )
    assert len(absent(both, facts())) == 2
