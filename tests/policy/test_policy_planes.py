"""A host's endpoint in each plane: which policies are asked there, and what becomes of a packet that none decides."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from policy_cluster import pod, resource, snapshot

from core.names import Key
from core.resources import HostEndpoint, Resource
from core.resources.policy import Direction
from policy.compile import Compiled, compile
from policy.evaluate import Packet, judge_by
from policy.model import Cause, Plane, Verdict

HOST = Key(HostEndpoint.KIND, "", "eth0")
POD, FAR, OWN = "10.0.0.1", "203.0.113.5", "192.168.0.1"
WAYS = [(plane, way) for plane in Plane if plane is not Plane.WORKLOAD for way in Direction]


def calico(kind: str, name: str, **spec: Any) -> Resource:
    return resource(
        {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, "labels": {}}, "spec": spec}
    )


def policy(name: str, *, action: str = "Deny", **spec: Any) -> Resource:
    rules = [{"action": action, "protocol": "TCP", "destination": {"ports": [80]}}]
    return calico("GlobalNetworkPolicy", name, ingress=rules, egress=rules, types=["Ingress", "Egress"], **spec)


def built(*more: Resource, addresses: Sequence[str] = (OWN,)) -> Compiled:
    host = calico("HostEndpoint", "eth0", node="n1", interfaceName="eth0", expectedIPs=list(addresses))
    return compile(snapshot([host, pod("shop", "web", [POD]), *more]), [], [HOST])


def asked(compiled: Compiled, plane: Plane, way: Direction, port: int = 80, local: str = OWN) -> tuple[Verdict, Cause]:
    table = compiled.tables[compiled.hosts[HOST, plane, way]]
    packet = Packet(peer=ip_address(FAR), protocol=6, sport=40000, dport=port)
    number = compiled.identity.of(packet.peer)
    decision = judge_by(table, number, packet, ip_address(local)).enforced
    return decision.verdict, decision.reason.cause


AFTER_ALL = {
    Plane.HOST: (Verdict.DENY, Cause.NO_PROFILE_RULE),
    Plane.FORWARD: (Verdict.ALLOW, Cause.NO_FORWARD_RULE),
    Plane.PRE_DNAT: (Verdict.CONTINUE, Cause.UNDECIDED),
    Plane.UNTRACKED: (Verdict.CONTINUE, Cause.UNDECIDED),
}


def test_without_policy_each_plane_has_its_own_end() -> None:
    compiled = built()
    found = {(plane, way): asked(compiled, plane, way) for plane, way in WAYS if (HOST, plane, way) in compiled.hosts}
    assert found == {
        (plane, way): AFTER_ALL[plane] for plane, way in WAYS if (plane, way) != (Plane.PRE_DNAT, Direction.EGRESS)
    }


@pytest.mark.parametrize(
    ("spec", "planes"),
    [
        ({}, {Plane.HOST}),
        ({"applyOnForward": True}, {Plane.HOST, Plane.FORWARD}),
        ({"applyOnForward": True, "doNotTrack": True}, {Plane.UNTRACKED}),
    ],
)
def test_a_policy_is_asked_in_its_planes_alone(spec: dict[str, Any], planes: set[Plane]) -> None:
    compiled = built(policy("p", **spec))
    for plane, way in compiled_ways(compiled):
        rule = (Verdict.DENY, Cause.RULE)
        assert (asked(compiled, plane, way) == rule) is (plane in planes)
        if plane is Plane.UNTRACKED:
            assert asked(compiled, plane, way, 81) == AFTER_ALL[plane], "no end of a tier"
        elif plane in planes:
            assert asked(compiled, plane, way, 81) == (Verdict.DENY, Cause.END_OF_TIER)


def compiled_ways(compiled: Compiled) -> list[tuple[Plane, Direction]]:
    return [(plane, way) for _, plane, way in compiled.hosts]


def test_what_comes_before_translation_is_judged_on_its_way_in() -> None:
    rules = [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]
    spec = {"preDNAT": True, "applyOnForward": True, "types": ["Ingress"], "ingress": rules}
    compiled = built(calico("GlobalNetworkPolicy", "p", **spec))
    assert asked(compiled, Plane.PRE_DNAT, Direction.INGRESS) == (Verdict.ALLOW, Cause.RULE)
    assert asked(compiled, Plane.PRE_DNAT, Direction.INGRESS, 81) == AFTER_ALL[Plane.PRE_DNAT]
    assert asked(compiled, Plane.HOST, Direction.INGRESS) == AFTER_ALL[Plane.HOST]


@pytest.mark.parametrize("addresses", [(), (OWN,)])
def test_what_is_forwarded_need_not_be_for_the_host(addresses: tuple[str, ...]) -> None:
    rules = [{"action": "Deny", "destination": {"nets": [f"{POD}/32"]}}, {"action": "Allow"}]
    compiled = built(
        calico("GlobalNetworkPolicy", "p", applyOnForward=True, types=["Ingress"], ingress=rules), addresses=addresses
    )
    assert asked(compiled, Plane.FORWARD, Direction.INGRESS, local=POD) == (Verdict.DENY, Cause.RULE)
    assert asked(compiled, Plane.FORWARD, Direction.INGRESS) == (Verdict.ALLOW, Cause.RULE)
    assert asked(compiled, Plane.HOST, Direction.INGRESS, local=POD)[0] is Verdict.DENY, "a host has more than it says"


def test_a_staged_policy_is_never_enforced() -> None:
    rules = [{"action": "Deny"}]
    staged = calico("StagedGlobalNetworkPolicy", "p", types=["Ingress"], ingress=rules, applyOnForward=True)
    compiled = built(staged)
    for plane in (Plane.HOST, Plane.FORWARD):
        assert asked(compiled, plane, Direction.INGRESS) == AFTER_ALL[plane]
    table = compiled.tables[compiled.hosts[HOST, Plane.FORWARD, Direction.INGRESS]]
    packet = Packet(peer=ip_address(FAR), protocol=6, sport=40000, dport=80)
    pending = judge_by(table, compiled.identity.of(packet.peer), packet, ip_address(OWN)).pending
    assert pending is not None
    assert pending.verdict is Verdict.DENY
