"""Random clusters and packets for them, small enough that everything meets everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import policy_draw as st
from policy_cluster import key, namespace, pod
from policy_oracle import Flow

from core.names import Key
from core.resources import (
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    HostEndpoint,
    KubernetesNetworkPolicy,
    Metadata,
    NetworkPolicy,
    NetworkSet,
    Profile,
    Resource,
    ServiceAccount,
    Tier,
)
from core.resources.network import EndpointPort, HostEndpointSpec
from core.resources.policy import (
    ICMP,
    Action,
    Direction,
    EntityRule,
    GlobalNetworkPolicySpec,
    IPBlockPeer,
    KubernetesEgress,
    KubernetesIngress,
    KubernetesNetworkPolicySpec,
    KubernetesPeer,
    KubernetesPort,
    LabelSelector,
    LabelSelectorRequirement,
    NetworkPolicySpec,
    NetworkSetSpec,
    ProfileSpec,
    Rule,
    ServiceAccountMatch,
    ServiceMatch,
    TierSpec,
)

NAMESPACES = ("a", "b")
PORTS = [EndpointPort(name="http", port=80, protocol="TCP"), EndpointPort(name="dns", port=53, protocol="UDP")]
OTHER_PORTS = [EndpointPort(name="http", port=number, protocol="TCP") for number in (8080, 443)]

PODS = {
    ("a", "p0"): ["10.0.0.1", "fd00::1"],
    ("a", "p1"): ["10.0.0.2", "10.0.0.9", "fd00::2"],
    ("b", "p2"): ["10.0.1.1", "fd00::1:1"],
    ("b", "p3"): ["10.0.1.2"],
    ("b", "p4"): ["10.0.2.1", "fd00::2:1"],
}
SPOOFED = "10.0.2.0/30"
LOCAL = (("a", "p0"), ("a", "p1"), ("b", "p2"), ("b", "p4"))
OUTSIDE = ["192.168.0.1", "192.168.7.7", "10.0.2.2", "10.0.2.3", "8.8.8.8", "fd99::1", "2001:db8::5"]
NETS = [
    "10.0.0.0/24",
    "10.0.0.0/16",
    "10.0.0.2/32",
    "10.0.0.8/29",
    "10.0.2.2/31",
    "192.168.0.0/16",
    "192.168.0.1/32",
    "0.0.0.0/0",
    "fd00::/64",
    "fd00::1:0/112",
    "::/0",
]

labels = st.dictionaries(st.sampled_from(["app", "env"]), st.sampled_from(["web", "db", "w"]), max_size=2)
claims = [{"pcns.app": "web"}, {"projectcalico.org/namespace": "a"}, {"projectcalico.org/orchestrator": "k8s"}]
own = st.one_of(*[labels] * 4, *[labels.map(lambda drawn, claim=claim: drawn | claim) for claim in claims])
test = st.sampled_from(
    [
        "all()",
        "app == 'web'",
        "app != 'web'",
        "has(env)",
        "!has(app)",
        "env in {'web', 'db'}",
        'env not in {"w"}',
        "app starts with 'w'",
        "app contains 'b'",
        "env ends with 'b'",
        "projectcalico.org/namespace == 'a'",
        "kubernetes.io/metadata.name == 'b'",
    ]
)
selector = st.one_of(
    test,
    st.builds("{} && {}".format, test, test),
    st.builds("{} || {}".format, test, test),
    st.builds("!({} && {})".format, test, test),
)
maybe = st.one_of(st.just(""), st.just(""), st.just(""), selector)
rarely = st.one_of(*[st.just("")] * 4, selector)
namespaces = st.one_of(*[st.just("")] * 6, st.just("all()"), st.just("global()"), selector)
ports = st.lists(st.sampled_from([80, 81, 53, 8080, "80:89", "1:1024", "1000:65535", "http", "dns", 443]), max_size=2)
nets = st.lists(st.sampled_from(NETS), max_size=2, unique=True)
few_nets = st.one_of(*[st.just([])] * 4, nets)
accounts = st.one_of(
    *[st.none()] * 8,
    st.builds(
        ServiceAccountMatch,
        names=st.lists(st.sampled_from(["robot", "nobody"]), max_size=2, unique=True),
        selector=rarely,
    ),
)
services = st.one_of(*[st.none()] * 20, st.just(ServiceMatch(name="s", namespace="a")))
actions = st.sampled_from([Action.ALLOW, Action.ALLOW, Action.DENY, Action.PASS, Action.LOG])
orders = st.one_of(st.none(), st.sampled_from([1.0, 2.0, 1000.0]))
types = st.one_of(st.none(), st.lists(st.sampled_from(list(Direction)), min_size=1, max_size=2, unique=True))
tiers = st.sampled_from(["", "", "default", "first", "second", "missing", "kube-baseline"])


@st.composite
def entity(draw: st.DrawFn, *, with_ports: bool) -> EntityRule:
    if not with_ports and draw(st.integers(0, 4)) < 3:
        return EntityRule()
    return EntityRule(
        nets=draw(few_nets),
        not_nets=draw(few_nets),
        selector=draw(maybe),
        not_selector=draw(rarely),
        namespace_selector=draw(namespaces),
        service_accounts=draw(accounts),
        services=draw(services),
        ports=draw(ports) if with_ports else [],
        not_ports=draw(st.one_of(st.just([]), ports)) if with_ports else [],
    )


@st.composite
def rule(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from([None, None, "TCP", "TCP", "UDP", "SCTP", "ICMP", "ICMPv6", 47]))
    ported = protocol in ("TCP", "UDP", "SCTP")
    icmp = protocol in ("ICMP", "ICMPv6")
    icmps = st.one_of(st.none(), st.builds(ICMP, type=st.sampled_from([8, 128, 3]), code=st.sampled_from([None, 0, 1])))
    return Rule(
        action=draw(actions),
        ip_version=draw(st.sampled_from([None, None, None, 4, 6])),
        protocol=protocol,
        not_protocol=draw(st.sampled_from([None, None, None, "TCP", "ICMP", 47])),
        icmp=draw(icmps) if icmp else None,
        not_icmp=draw(icmps) if icmp else None,
        source=draw(entity(with_ports=ported and draw(st.integers(0, 3)) == 0)),
        destination=draw(entity(with_ports=ported and draw(st.integers(0, 3)) > 0)),
    )


rules = st.one_of(st.none(), *[st.lists(rule(), min_size=1, max_size=4)] * 4)


@st.composite
def policy(draw: st.DrawFn, number: int) -> Resource:
    spec: dict[str, Any] = {
        "tier": draw(tiers),
        "order": draw(orders),
        "selector": draw(maybe),
        "service_account_selector": draw(rarely),
        "ingress": draw(rules),
        "egress": draw(rules),
        "types": draw(types),
    }
    name = draw(st.sampled_from([f"p{number}", f"p{number}", "same"]))
    if draw(st.booleans()):
        home = draw(st.sampled_from(NAMESPACES))
        return NetworkPolicy(metadata=Metadata(name=name, namespace=home), spec=NetworkPolicySpec(**spec))
    rare = st.integers(0, 15).map(lambda drawn: drawn == 0)
    spec |= {"do_not_track": draw(rare), "pre_dnat": draw(rare), "namespace_selector": draw(rarely)}
    return GlobalNetworkPolicy(metadata=Metadata(name=name), spec=GlobalNetworkPolicySpec(**spec))


requirement = st.builds(
    LabelSelectorRequirement,
    key=st.sampled_from(["app", "env"]),
    operator=st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    values=st.lists(st.sampled_from(["web", "db"]), min_size=1, max_size=2, unique=True),
)
kube_selector = st.builds(LabelSelector, match_labels=labels, match_expressions=st.lists(requirement, max_size=1))
kube_peer = st.one_of(
    st.builds(KubernetesPeer, pod_selector=kube_selector),
    st.builds(KubernetesPeer, namespace_selector=kube_selector),
    st.builds(KubernetesPeer, pod_selector=kube_selector, namespace_selector=kube_selector),
    st.builds(
        KubernetesPeer,
        ip_block=st.builds(
            IPBlockPeer,
            cidr=st.sampled_from(["10.0.0.0/16", "0.0.0.0/0", "fd00::/64"]),
            except_=st.sampled_from([[], ["10.0.0.2/32"], ["10.0.1.0/24"]]),
        ),
    ),
)
kube_port = st.one_of(
    st.builds(KubernetesPort, protocol=st.sampled_from([None, "UDP", "SCTP"]), port=st.sampled_from([None, 80, 53])),
    st.builds(KubernetesPort, port=st.sampled_from([79, 80]), end_port=st.sampled_from([81, 8080])),
    st.builds(KubernetesPort, port=st.just("http")),
    st.builds(KubernetesPort, protocol=st.just("UDP"), port=st.just("dns")),
)
peers = st.lists(kube_peer, max_size=2)
kube_ports = st.lists(kube_port, max_size=2)


@st.composite
def kube_policy(draw: st.DrawFn, number: int) -> Resource:
    ingress = st.lists(st.builds(KubernetesIngress, from_=peers, ports=kube_ports), max_size=2)
    egress = st.lists(st.builds(KubernetesEgress, to=peers, ports=kube_ports), max_size=2)
    return KubernetesNetworkPolicy(
        metadata=Metadata(name=f"k{number}", namespace=draw(st.sampled_from(NAMESPACES))),
        spec=KubernetesNetworkPolicySpec(
            pod_selector=draw(kube_selector),
            ingress=draw(st.one_of(st.none(), ingress)),
            egress=draw(st.one_of(st.none(), egress)),
            policy_types=draw(types),
        ),
    )


@dataclass(frozen=True)
class World:
    resources: list[Resource]
    local: list[Key]


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
    some = st.builds(NetworkSetSpec, nets=st.lists(st.sampled_from(NETS), max_size=2, unique=True))
    for home in draw(st.lists(st.sampled_from(NAMESPACES), max_size=2, unique=True)):
        found.append(NetworkSet(metadata=Metadata(name="s", namespace=home, labels=draw(own)), spec=draw(some)))
    if draw(st.booleans()):
        found.append(GlobalNetworkSet(metadata=Metadata(name="g", labels=draw(own)), spec=draw(some)))
        found.append(
            HostEndpoint(
                metadata=Metadata(name="h", labels=draw(own)),
                spec=HostEndpointSpec(node="n9", expected_ips=["192.168.7.7"], ports=[PORTS[0]]),
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
            ingress=draw(st.lists(rule(), max_size=2)),
            egress=draw(st.lists(rule(), max_size=2)),
        )
        found.append(Profile(metadata=Metadata(name="custom"), spec=spec))
    return World(draw(st.permutations(found)), [key(*each) for each in LOCAL])


def addresses_of(endpoint: Key, *, source: bool) -> list[str]:
    """Its own, and as a source also what it may pretend to be."""
    name = next(each for each in LOCAL if key(*each) == endpoint)
    return [*PODS[name], *(["10.0.2.2", "10.0.2.3"] if source and name[1] == "p4" else [])]


EVERYWHERE = [*(address for each in PODS.values() for address in each), *OUTSIDE]


@st.composite
def flows(draw: st.DrawFn, endpoint: Key, direction: Direction) -> Flow:
    """A packet that leaves or reaches `endpoint`."""
    egress = direction is Direction.EGRESS
    own = draw(st.sampled_from(addresses_of(endpoint, source=egress)))
    other = draw(st.sampled_from([each for each in EVERYWHERE if (":" in each) == (":" in own) and each != own]))
    protocol = draw(st.sampled_from([6, 6, 6, 17, 17, 132, 1, 58, 47]))
    ported = protocol in (6, 17, 132)
    port = st.sampled_from([80, 81, 53, 8080, 443, 90, 1000, 0, 65535])
    return Flow(
        source=own if egress else other,
        destination=other if egress else own,
        protocol=protocol,
        sport=draw(port) if ported else None,
        dport=draw(port) if ported else None,
        icmp=draw(st.sampled_from([(8, 0), (8, 1), (128, 0), (3, 1), (0, 0)])) if protocol in (1, 58) else None,
    )
