"""Random clusters and packets for them, small enough that everything meets everything."""

from __future__ import annotations

from dataclasses import dataclass, field

import policy_draw as st
from policy_cluster import key, namespace, pod
from policy_oracle import Flow
from policy_worlds_kinds import admin_policy, endpoint_slice, node
from policy_worlds_rules import (
    LOCAL,
    NAMESPACES,
    NETS,
    OTHER_PORTS,
    OUTSIDE,
    PODS,
    PORTS,
    SPOOFED,
    kube_policy,
    labels,
    orders,
    own,
    policy,
    rule,
)

from core.names import Key
from core.resources import (
    GlobalNetworkSet,
    HostEndpoint,
    Metadata,
    NetworkSet,
    Profile,
    Resource,
    ServiceAccount,
    Tier,
)
from core.resources.network import HostEndpointSpec
from core.resources.policy import Action, Direction, NetworkSetSpec, ProfileSpec, TierSpec

__all__ = ["EVERYWHERE", "HOSTS", "LOCAL", "OUTSIDE", "PODS", "World", "flows", "passing", "worlds"]

HOSTS = {"h": ["192.168.7.7"], "h6": ["fd99::7"], "any": []}
"""Host endpoints and the addresses expected of them."""

ELSEWHERE = ["192.168.9.9", "fd99::9"]
"""Addresses of interfaces that only `*` covers."""

ALLOWING = "projectcalico-default-allow"


def some(each: st.Strategy) -> st.Strategy:
    """None or few of them, each named differently."""
    return st.one_of(st.just([]), st.lists(each, max_size=2, unique_by=lambda found: found.key))


@dataclass(frozen=True)
class World:
    """A cluster; the pods and the host endpoints of the node that is looked at."""

    resources: list[Resource]
    local: list[Key]
    hosts: list[Key] = field(default_factory=list)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    found: list[Resource] = [namespace(name, draw(labels)) for name in NAMESPACES]
    found.append(ServiceAccount(metadata=Metadata(name="robot", namespace="a", labels=draw(labels))))
    profiles = st.sampled_from(["kns.a", "kns.b", "ksa.a.robot", "custom", "absent", "projectcalico-default-allow"])
    for (home, name), addresses in PODS.items():
        found.append(
            pod(
                home,
                name,
                addresses,
                draw(own),
                PORTS if name in ("p0", "p2") else OTHER_PORTS if name == "p1" else (),
                profiles=draw(st.one_of(*[st.just([f"kns.{home}"])] * 3, st.lists(profiles, max_size=3, unique=True))),
                service_account_name=draw(st.sampled_from(["", "robot"])),
                allow_spoofed_source_prefixes=[SPOOFED] if name == "p4" else [],
            )
        )
    found += draw(st.lists(st.integers(0, 99).flatmap(policy), min_size=2, max_size=6, unique_by=lambda each: each.key))
    found += draw(st.lists(st.integers(0, 3).flatmap(kube_policy), max_size=2, unique_by=lambda each: each.key))
    found += draw(some(st.integers(0, 3).flatmap(lambda number: policy(number, staged=True))))
    found += draw(some(st.integers(0, 3).flatmap(lambda number: kube_policy(number, staged=True))))
    found += draw(some(st.integers(0, 3).flatmap(admin_policy)))
    found += draw(some(st.integers(0, 9).flatmap(endpoint_slice)))
    found += draw(st.lists(st.sampled_from(["n1", "n2"]).flatmap(node), max_size=2, unique_by=lambda each: each.key))
    nets_of = st.builds(NetworkSetSpec, nets=st.lists(st.sampled_from(NETS), max_size=2, unique=True))
    for home in draw(st.lists(st.sampled_from(NAMESPACES), max_size=2, unique=True)):
        found.append(NetworkSet(metadata=Metadata(name="s", namespace=home, labels=draw(own)), spec=draw(nets_of)))
    if draw(st.booleans()):
        found.append(GlobalNetworkSet(metadata=Metadata(name="g", labels=draw(own)), spec=draw(nets_of)))
    for name, addresses in HOSTS.items():
        found.append(
            HostEndpoint(
                metadata=Metadata(name=name, labels=draw(own)),
                spec=HostEndpointSpec(
                    node="n1",
                    interface_name="*" if name == "any" else "",
                    expected_ips=addresses,
                    ports=[PORTS[0]] if name == "h" else [],
                    profiles=draw(st.lists(st.sampled_from(["custom", "absent", ALLOWING]), max_size=2, unique=True)),
                ),
            )
        )
    defaults = st.sampled_from([None, Action.DENY, Action.PASS])
    for tier in draw(st.lists(st.sampled_from(["first", "second", "default"]), max_size=3, unique=True)):
        found.append(
            Tier(metadata=Metadata(name=tier), spec=TierSpec(order=draw(orders), default_action=draw(defaults)))
        )
    if draw(st.booleans()):
        spec = ProfileSpec(
            labels_to_apply=draw(labels),
            ingress=draw(st.lists(rule(of_profile=True), max_size=2)),
            egress=draw(st.lists(rule(of_profile=True), max_size=2)),
        )
        found.append(Profile(metadata=Metadata(name="custom"), spec=spec))
    hosts = [Key(HostEndpoint.KIND, "", name) for name in HOSTS]
    return World(draw(st.permutations(found)), [key(*each) for each in LOCAL], hosts)


def addresses_of(endpoint: Key, *, source: bool) -> list[str]:
    """Its own, and as a source also what it may pretend to be. A host's may be ones that nobody expects."""
    if endpoint.kind == HostEndpoint.KIND:
        return HOSTS[endpoint.name] or ELSEWHERE
    name = next(each for each in LOCAL if key(*each) == endpoint)
    return [*PODS[name], *(["10.0.2.2", "10.0.2.3"] if source and name[1] == "p4" else [])]


EVERYWHERE = [*(address for each in PODS.values() for address in each), *OUTSIDE]


@st.composite
def flows(draw: st.DrawFn, endpoint: Key, direction: Direction) -> Flow:
    """A packet that leaves or reaches `endpoint`."""
    egress = direction is Direction.EGRESS
    own = draw(st.sampled_from(addresses_of(endpoint, source=egress)))
    other = draw(st.sampled_from([each for each in EVERYWHERE if (":" in each) == (":" in own) and each != own]))
    return draw(flow_between(own if egress else other, other if egress else own))


@st.composite
def passing(draw: st.DrawFn) -> Flow:
    """A packet between any two: what a host's interface carries for others."""
    source = draw(st.sampled_from(EVERYWHERE))
    others = [each for each in EVERYWHERE if (":" in each) == (":" in source) and each != source]
    return draw(flow_between(source, draw(st.sampled_from(others))))


@st.composite
def flow_between(draw: st.DrawFn, source: str, destination: str) -> Flow:
    protocol = draw(st.sampled_from([6, 6, 6, 6, 17, 17, 17, 132, 132, 1, 58, 47, 136, 50]))
    ported = protocol in (6, 17, 132)
    port = st.sampled_from([80, 81, 53, 8080, 443, 90, 1000, 0, 65535])
    return Flow(
        source=source,
        destination=destination,
        protocol=protocol,
        sport=draw(port) if ported else None,
        dport=draw(port) if ported else None,
        icmp=draw(st.sampled_from([(8, 0), (8, 1), (128, 0), (3, 1), (0, 0)])) if protocol in (1, 58) else None,
    )
