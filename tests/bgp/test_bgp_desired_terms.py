"""On what terms a node holds its sessions: filters, passwords, times, reflection, by named states."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, ip_address, ip_interface
from itertools import permutations
from typing import Any

import msgspec
import pytest
from bgp_world import defaults, made, node, peer

from bgp.desired import absent, desired
from bgp.model import Bfd, Maintenance, NextHopMode, PeerType, Session, Speaker
from core.errors import Invalid
from core.names import Key
from core.resources import BGPConfiguration, BGPFilter, BGPPeer, Node, Resource, Secret
from core.snapshot import Snapshot
from linux.model import Facts, Link

NO_MESH = defaults(nodeToNodeMeshEnabled=False)
A = node("a", "10.1.0.1/24", "fd01::1/64", labels={"rack": "1"})
B = node("b", "10.1.0.2/24", labels={"rack": "1"})
C = node("c", "10.2.0.9/24", "fd02::9/64", labels={"rack": "2"}, asNumber=64600)


def speaker(*resources: Resource, on: str = "a", unread: dict[Key, str] | None = None) -> Speaker:
    snapshot = Snapshot().apply(1, [(each.key, each) for each in resources])
    return desired(snapshot.apply(1, (unread or {}).items()), on)


def session(*resources: Resource, on: str = "a") -> Session:
    found = speaker(*resources, on=on)
    assert found.blocked == ()
    (only,) = found.sessions
    return only


def reason(*resources: Resource, on: str = "a", unread: dict[Key, str] | None = None) -> str:
    found = speaker(*resources, on=on, unread=unread)
    assert found.sessions == ()
    (only,) = found.blocked
    return only.reason


def tor(**spec: Any) -> BGPPeer:
    return peer("tor", "10.1.0.254", **{"asNumber": 65001, **spec})


def secret(name: str = "bgp", namespace: str = "kube-system", **data: bytes) -> Secret:
    coded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return msgspec.convert({"metadata": {"name": name, "namespace": namespace}, "data": coded}, Secret)


def filter_(name: str, *rules: dict[str, Any]) -> BGPFilter:
    return made(BGPFilter, name, {"exportV4": list(rules)})


PASSWORD = {"secretKeyRef": {"name": "bgp", "key": "rack"}}


def test_filters_are_asked_in_the_order_of_the_peer() -> None:
    filters = [filter_(name, {"action": "Reject"}) for name in ("a", "b", "c")]
    for order in permutations(("a", "b", "c")):
        found = session(A, NO_MESH, tor(filters=list(order)), *filters)
        assert tuple(each.name for each in found.filters) == order
    assert session(A, NO_MESH, tor(), *filters).filters == ()


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ([], "there is no BGPFilter b"),
        ([filter_("b", {"action": "Allow"})], "BGPFilter b: spec.exportV4[0].action: 'Allow'"),
    ],
)
def test_a_filter_that_cannot_be_had_holds_the_session_down(filters: list[BGPFilter], says: str) -> None:
    assert reason(A, NO_MESH, tor(filters=["a", "b"]), filter_("a"), *filters).startswith(says)


def test_a_filter_that_cannot_be_read_says_so() -> None:
    key = Key(BGPFilter.KIND, "", "b")
    assert reason(A, NO_MESH, tor(filters=["b"]), unread={key: "spec: x"}) == "BGPFilter b cannot be read: spec: x"


def test_a_filter_that_is_wrong_holds_its_own_peers_only() -> None:
    found = speaker(A, NO_MESH, tor(filters=["x"]), peer("other", "10.1.0.253", asNumber=65001))
    assert [each.name for each in found.sessions] == ["BGPPeer/other"]
    assert [each.name for each in found.blocked] == ["BGPPeer/tor"]


@pytest.mark.parametrize(
    ("secrets", "used"),
    [
        ([secret(rack=b"pw-one")], "pw-one"),
        ([secret(namespace="calico-system", rack=b"pw-two")], "pw-two"),
        ([secret(rack=b"pw-one"), secret(namespace="calico-system", rack=b"pw-two")], "pw-two"),
        ([secret(rack=b"x" * 80)], "x" * 80),
        ([secret(rack=b'so "quoted" \\ it is;')], 'so "quoted" \\ it is;'),
    ],
)
def test_a_password_is_found_where_it_is_looked_up(secrets: list[Secret], used: str) -> None:
    for order in permutations([A, NO_MESH, tor(password=PASSWORD), *secrets]):
        found = session(*order)
        assert found.password == used
        assert used not in repr(found)


@pytest.mark.parametrize(
    ("secrets", "says"),
    [
        ([], "password: there is no Secret bgp in namespace calico-system or kube-system"),
        ([secret(namespace="shop", rack=b"x")], "password: there is no Secret bgp in namespace calico-system or"),
        ([secret(spine=b"x")], "password: Secret kube-system/bgp has no key 'rack'"),
        (
            [secret(rack=b"x"), secret(namespace="calico-system", spine=b"x")],
            "password: Secret calico-system/bgp has no key 'rack'",
        ),
        ([secret(rack=b"")], "password: Secret kube-system/bgp: the value of 'rack' is empty"),
        ([secret(rack=b"s3cret" * 14)], "password: Secret kube-system/bgp: the value of 'rack' has 84 bytes"),
        ([secret(rack=b"s3cret\n")], "password: Secret kube-system/bgp: the value of 'rack' ends with a line break"),
        ([secret(rack=b"s3cret\0")], "password: Secret kube-system/bgp: the value of 'rack' has characters"),
        ([secret(rack="s3crét".encode())], "password: Secret kube-system/bgp: the value of 'rack' has characters"),
    ],
)
def test_a_password_that_cannot_be_had_holds_the_session_down(secrets: list[Secret], says: str) -> None:
    said = reason(A, NO_MESH, tor(password=PASSWORD), *secrets)
    assert said.startswith(says)
    assert "s3cr" not in said


@pytest.mark.parametrize("given", [{}, {"secretKeyRef": {"key": "rack"}}, {"secretKeyRef": {"name": "bgp"}}])
def test_a_password_that_names_nothing_holds_the_session_down(given: dict[str, Any]) -> None:
    said = reason(A, NO_MESH, tor(password=given), secret(rack=b"x"))
    assert said == "password: secretKeyRef does not name a Secret and a key in it"


def test_the_mesh_has_one_password() -> None:
    configured = defaults(nodeMeshPassword=PASSWORD, nodeMeshMaxRestartTime="200s")
    held = speaker(A, B, C, configured)
    assert held.sessions == ()
    assert [each.name for each in held.blocked] == ["mesh/b", "mesh/c", "mesh/c"]
    assert {each.reason for each in held.blocked} == {
        "the mesh's password: there is no Secret bgp in namespace calico-system or kube-system"
    }
    found = speaker(A, B, C, configured, secret(rack=b"pw-one"))
    assert {(each.password, each.restart_s, each.type) for each in found.sessions} == {("pw-one", 200, PeerType.MESH)}
    assert found.blocked == ()
    assert {each.password for each in speaker(A, B, C, secret(rack=b"pw-one")).sessions} == {""}


@pytest.mark.parametrize(
    ("spec", "hold_s"),
    [
        ({}, 30),
        ({"keepaliveTime": "20s"}, 60),
        ({"keepaliveTime": "1s"}, 3),
        ({"holdTime": "9s"}, 9),
        ({"holdTime": "90s", "keepaliveTime": "20s"}, 90),
        ({"keepaliveTime": "6h"}, 64800),
    ],
)
def test_hold_times(spec: dict[str, str], hold_s: int) -> None:
    assert session(A, NO_MESH, tor(**spec)).hold_s == hold_s


@pytest.mark.parametrize(
    ("spec", "bfd"),
    [
        ({}, None),
        ({"failureDetectionMode": "None"}, None),
        ({"failureDetectionMode": "BFDIfDirectlyConnected"}, Bfd(transmit_ms=300, receive_ms=300, multiplier=3)),
        ({"bfd": {}}, Bfd(transmit_ms=300, receive_ms=300, multiplier=3)),
        (
            {
                "bfd": {"minimumSendInterval": "100ms", "minimumRecvInterval": "1.5s", "multiplier": 5},
                "failureDetectionMode": "BFDIfDirectlyConnected",
            },
            Bfd(transmit_ms=100, receive_ms=1500, multiplier=5),
        ),
    ],
)
def test_when_the_path_is_watched(spec: dict[str, Any], bfd: Bfd | None) -> None:
    assert session(A, NO_MESH, tor(**spec)).bfd == bfd


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        ({}, "next_hop_mode", NextHopMode.AUTO),
        ({"nextHopMode": "Self"}, "next_hop_mode", NextHopMode.SELF),
        ({"nextHopMode": "Keep"}, "next_hop_mode", NextHopMode.KEEP),
        ({"keepOriginalNextHop": True}, "next_hop_mode", NextHopMode.KEEP),
        ({"reachableBy": "10.1.0.253"}, "gateway", ip_address("10.1.0.253")),
        ({"ttlSecurity": 0}, "ttl_hops", 1),
        ({"ttlSecurity": 1}, "ttl_hops", 1),
        ({"ttlSecurity": 5}, "ttl_hops", 5),
        ({"passive": True}, "passive", True),
        ({"maxPrefixesIn": 100}, "most_in", 100),
        ({"maxPrefixesOut": 7}, "most_out", 7),
        ({"longLivedRestartTime": "1h"}, "long_lived_s", 3600),
        ({"maxRestartTime": "0s"}, "restart_s", 0),
        ({"maxRestartTime": "3h"}, "restart_s", 4095),
        ({"numAllowedLocalASNumbers": 3}, "own_as_allowed", 3),
        ({"localASNumber": "1.1"}, "local_as", 65537),
        ({"localASNumber": 0}, "local_as", 64512),
        ({"sourceAddress": "None"}, "local", None),
        ({"sourceAddress": "None", "passive": True}, "local", ip_address("10.1.0.1")),
        ({"sourceAddress": "UseNodeIP"}, "local", ip_address("10.1.0.1")),
        ({}, "type", PeerType.GLOBAL),
        ({"node": "a"}, "type", PeerType.NODE),
        ({"nodeSelector": "all()"}, "type", PeerType.NODE),
        ({}, "node", ""),
    ],
)
def test_one_field(spec: dict[str, Any], field: str, value: object) -> None:
    assert getattr(session(A, NO_MESH, tor(**spec)), field) == value


def test_one_bad_time_blocks_every_session_of_its_peer_and_none_beside() -> None:
    both = peer("pair", "", peerSelector="rack == '2'", holdTime="soon")
    found = speaker(A, C, NO_MESH, both, tor())
    assert [each.name for each in found.sessions] == ["BGPPeer/tor"]
    assert [(each.name, each.peer) for each in found.blocked] == [
        ("BGPPeer/pair/c", "10.2.0.9"),
        ("BGPPeer/pair/c", "fd02::9"),
    ]


REFLECTOR = node("rr", "10.1.0.100/24", labels={"rr": "yes"}, routeReflectorClusterID="224.0.0.1")
TWIN = node("rr2", "10.1.0.101/24", labels={"rr": "yes"}, routeReflectorClusterID="224.0.0.1")
OTHER = node("rr3", "10.1.0.102/24", labels={"rr": "yes"}, routeReflectorClusterID="224.0.0.2")
TO_REFLECTORS = peer("reflected", "", nodeSelector="all()", peerSelector="rr == 'yes'")


def test_a_reflector_leaves_the_mesh_and_others_keep_theirs() -> None:
    assert speaker(A, B, REFLECTOR, on="rr").sessions == ()
    assert [each.name for each in speaker(A, B, REFLECTOR).sessions] == ["mesh/b"]
    assert speaker(A, B, REFLECTOR, on="rr").cluster_id == IPv4Address("224.0.0.1")
    assert speaker(A, B, REFLECTOR).cluster_id is None


@pytest.mark.parametrize("order", list(permutations([A, C, REFLECTOR, TWIN, OTHER]))[::17])
def test_who_is_a_reflectors_client(order: tuple[Node, ...]) -> None:
    found = speaker(*order, NO_MESH, TO_REFLECTORS, tor(nodeSelector="rr == 'yes'", asNumber=64512), on="rr")
    clients = {each.node or str(each.peer): each.client for each in found.sessions}
    assert clients == {"a": True, "c": False, "rr2": False, "rr3": True, "10.1.0.254": True}
    assert not any(each.client for each in speaker(*order, NO_MESH, TO_REFLECTORS).sessions)


def test_a_reflector_named_by_its_address_is_known_as_the_node_it_is() -> None:
    by_address = peer("twin", "10.1.0.101", asNumber=64512)
    found = session(REFLECTOR, TWIN, NO_MESH, by_address, on="rr")
    assert (found.node, found.client) == ("rr2", False)
    assert session(A, node("b", "10.1.0.101/24"), NO_MESH, by_address).node == "b"
    (six,) = speaker(C, A, NO_MESH, peer("six", "fd01:0::1", asNumber=64512), on="c").sessions
    assert six.node == "a"


def test_types_of_sessions_between_nodes() -> None:
    every = peer("every", "", peerSelector="rack == '2'")
    assert {each.type for each in speaker(A, C, NO_MESH, every).sessions} == {PeerType.GLOBAL}
    assert {each.type for each in speaker(A, C, NO_MESH, every, on="c").sessions} == {PeerType.NODE}  # the mirror
    some = peer("some", "", nodeSelector="rack == '1'", peerSelector="rack == '2'")
    assert {each.type for each in speaker(A, C, NO_MESH, some).sessions} == {PeerType.NODE}
    assert {each.node for each in speaker(A, B, C).sessions} == {"b", "c"}


def test_a_node_with_its_own_as_number_is_in_the_mesh_by_ebgp() -> None:
    assert {(each.node, each.internal) for each in speaker(A, B, C).sessions} == {("b", True), ("c", False)}
    assert not any(each.internal for each in speaker(A, B, C, on="c").sessions)


def test_a_node_on_a_loopback_address_speaks_from_it() -> None:
    loopback = node("a", "10.100.0.1/32", "fd0a::1/128")
    found = speaker(loopback, NO_MESH, tor(reachableBy="10.1.0.253"), peer("six", "fd01::fe", asNumber=65001))
    assert {(str(each.peer), str(each.local), str(each.gateway)) for each in found.sessions} == {
        ("10.1.0.254", "10.100.0.1", "10.1.0.253"),
        ("fd01::fe", "fd0a::1", "None"),
    }


def test_a_peer_for_everyone_that_is_one_of_us_skips_itself() -> None:
    everyone = peer("everyone", "", peerSelector="all()")
    assert {each.node for each in speaker(A, B, NO_MESH, everyone).sessions} == {"b"}
    assert speaker(A, NO_MESH, peer("us", "[fd01::1]:1790", asNumber=64512)).sessions == ()


def test_nodes_that_come_to_share_an_address_hold_one_session_and_say_so() -> None:
    rack, row = (peer(name, "10.1.0.254", asNumber=65001, nodeSelector=f"has({name})") for name in ("rack", "row"))
    assert session(A, NO_MESH, rack, row).name == "BGPPeer/rack"
    both = node("a", "10.1.0.1/24", labels={"rack": "1", "row": "1"})
    for order in permutations([both, NO_MESH, rack, row]):
        found = speaker(*order)
        assert [each.name for each in found.sessions] == ["BGPPeer/rack"]
        assert [(each.name, each.reason) for each in found.blocked] == [
            ("BGPPeer/row", "BGPPeer/rack has a session with this address already")
        ]


def test_what_a_node_is_prepared_for() -> None:
    drained = node("a", "10.1.0.1/24", maintenance="GracefulShutdown")
    assert speaker(drained).maintenance is Maintenance.GRACEFUL_SHUTDOWN
    assert speaker(node("a", "10.1.0.1/24", maintenance="Withdrawn")).maintenance is Maintenance.WITHDRAWN
    assert speaker(A).maintenance is Maintenance.NONE
    with pytest.raises(Invalid, match="Elsewhere"):
        speaker(node("a", "10.1.0.1/24", maintenance="Elsewhere"))


@pytest.mark.parametrize(
    "key",
    [
        Key(Node.KIND, "", "a"),
        Key(BGPConfiguration.KIND, "", "default"),
        Key(BGPConfiguration.KIND, "", "node.a"),
    ],
)
def test_what_decides_on_everything_and_cannot_be_read_changes_nothing(key: Key) -> None:
    resources = [each for each in (A, B) if each.key != key]
    with pytest.raises(Invalid, match="spec: what is this"):
        speaker(*resources, unread={key: "spec: what is this"})
    other = Key(key.kind, "", "node.z" if key.kind == BGPConfiguration.KIND else "z")
    assert speaker(A, B, unread={other: "spec: what is this"}).sessions


def test_peers_and_nodes_that_cannot_be_read_are_named() -> None:
    unread = {Key(BGPPeer.KIND, "", "x"): "spec: what", Key(Node.KIND, "", "z"): "spec: is this"}
    assert [(each.name, each.reason) for each in speaker(A, B, unread=unread).blocked] == [
        ("BGPPeer/x", "it cannot be read: spec: what"),
        ("mesh/z", "its Node cannot be read: spec: is this"),
    ]


@pytest.mark.parametrize(
    ("name", "spec", "says"),
    [
        ("default", {}, None),
        ("default", {"logSeverityScreen": "Info", "ignoredInterfaces": ["eth*"]}, None),
        ("default", {"programClusterRoutes": "EnabledNoEncapOnly", "ipv4NormalRoutePriority": 512}, None),
        ("default", {"logSeverityScreen": "Debug"}, "BGPConfiguration default: logSeverityScreen is not followed"),
        ("node.a", {"logSeverityScreen": "Debug"}, "BGPConfiguration node.a: logSeverityScreen is not followed"),
        ("node.b", {"logSeverityScreen": "Debug"}, None),
        ("default", {"programClusterRoutes": "Disabled"}, "BGPConfiguration default: programClusterRoutes is not"),
        ("node.a", {"nodeToNodeMeshEnabled": False}, "BGPConfiguration node.a: the mesh is one for all nodes"),
        ("node.a", {"nodeMeshPassword": PASSWORD}, "BGPConfiguration node.a: the mesh is one for all nodes"),
    ],
)
def test_what_is_set_and_not_followed_is_said(name: str, spec: dict[str, Any], says: str | None) -> None:
    said = speaker(A, made(BGPConfiguration, name, spec)).problems
    if says is None:
        assert said == ()
    else:
        (only,) = said
        assert only.startswith(says)


def test_an_as_number_of_nought_says_nothing() -> None:
    plain = node("a", "10.1.0.1/24", asNumber=0)
    assert speaker(plain, defaults(asNumber="0")).as_number == 64512
    assert speaker(plain, defaults(asNumber=65000)).as_number == 65000


def test_absent_addresses_of_a_node_on_a_loopback() -> None:
    found = speaker(node("a", "10.100.0.1/32"), NO_MESH, tor())
    lo = Link(name="lo", index=1, up=True, mtu=65536, addresses=(ip_interface("10.100.0.1/32"),))
    assert absent(found, Facts(links={"lo": lo})) == ()
    assert absent(found, Facts()) == ("this host has no address 10.100.0.1 (Node spec.bgp.ipv4Address)",)
