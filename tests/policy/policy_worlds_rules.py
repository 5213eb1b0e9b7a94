"""Random rules and policies of every kind, about the pods and addresses of `policy_worlds`."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import policy_draw as st

from core.resources import (
    GlobalNetworkPolicy,
    KubernetesNetworkPolicy,
    Metadata,
    NetworkPolicy,
    Resource,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
)
from core.resources.network import EndpointPort
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
    Rule,
    ServiceAccountMatch,
    ServiceMatch,
)
from core.resources.staged import (
    StagedAction,
    StagedGlobalNetworkPolicySpec,
    StagedKubernetesNetworkPolicySpec,
    StagedNetworkPolicySpec,
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
names = st.lists(st.sampled_from(["http", "dns", "none"]), min_size=1, max_size=2, unique=True)
nets = st.lists(st.sampled_from(NETS), max_size=2, unique=True)
many_nets = st.lists(
    st.builds(
        lambda host, length: str(ip_network(f"10.0.{host}/{length}", strict=False)),
        st.sampled_from(["0.1", "0.9", "1.2", "2.3", "2.129"]),
        st.integers(8, 32),
    ),
    min_size=20,
    max_size=60,
    unique=True,
)
few_nets = st.one_of(*[st.just([])] * 24, *[nets] * 5, many_nets)
accounts = st.one_of(
    *[st.none()] * 8,
    st.builds(
        ServiceAccountMatch,
        names=st.lists(st.sampled_from(["robot", "nobody"]), max_size=2, unique=True),
        selector=rarely,
    ),
)
services = st.sampled_from([ServiceMatch(name=name, namespace=home) for home in NAMESPACES for name in ("s", "t")])
actions = st.sampled_from([Action.ALLOW, Action.ALLOW, Action.DENY, Action.PASS, Action.LOG])
orders = st.one_of(st.none(), st.sampled_from([1.0, 2.0, 1000.0]))
types = st.one_of(st.none(), st.lists(st.sampled_from(list(Direction)), min_size=1, max_size=2, unique=True))
tiers = st.sampled_from(["", "", "default", "first", "second", "missing", "kube-baseline", "kube-admin"])
PROTOCOLS = (None, None, "TCP", "TCP", "UDP", "SCTP", "ICMP", "ICMPv6", 47, "UDPLite", "6", 50, 89)


@st.composite
def entity(draw: st.DrawFn, *, with_ports: bool, service: bool = False) -> EntityRule:
    if service:
        return EntityRule(services=draw(services))
    if not with_ports and draw(st.integers(0, 4)) < 3:
        return EntityRule()
    return EntityRule(
        nets=draw(few_nets),
        not_nets=draw(few_nets),
        selector=draw(maybe),
        not_selector=draw(rarely),
        namespace_selector=draw(namespaces),
        service_accounts=draw(accounts),
        ports=draw(ports) if with_ports else [],
        not_ports=draw(st.one_of(st.just([]), ports)) if with_ports else [],
    )


@st.composite
def rule(draw: st.DrawFn, *, of_profile: bool = False) -> Rule:
    protocol = draw(st.sampled_from(PROTOCOLS))
    ported = protocol in ("TCP", "UDP", "SCTP", "6")
    named = EntityRule(ports=draw(names)) if protocol is None and draw(st.integers(0, 9)) == 0 else None
    serviced = draw(st.integers(0, 11)) if not of_profile else None
    icmp = protocol in ("ICMP", "ICMPv6")
    icmps = st.one_of(st.none(), st.builds(ICMP, type=st.sampled_from([8, 128, 3]), code=st.sampled_from([None, 0, 1])))
    not_icmp = draw(icmps) if icmp or draw(st.integers(0, 7)) == 0 else None
    besides = st.sampled_from([None, None, None, "TCP", "ICMP", 47, "UDPLite"])
    return Rule(
        action=draw(actions),
        ip_version=draw(st.sampled_from([None, None, None, 4, 6])),
        protocol=protocol,
        not_protocol=None if not_icmp and protocol is None else draw(besides),
        icmp=draw(icmps) if icmp else None,
        not_icmp=not_icmp,
        source=draw(entity(with_ports=ported and draw(st.integers(0, 3)) == 0, service=serviced == 0)),
        destination=named or draw(entity(with_ports=ported and draw(st.integers(0, 3)) > 0, service=serviced == 1)),
    )


staged_actions = st.sampled_from([*[StagedAction.SET] * 4, *StagedAction])
rules = st.one_of(st.none(), *[st.lists(rule(), min_size=1, max_size=4)] * 4)


@st.composite
def policy(draw: st.DrawFn, number: int, *, staged: bool = False) -> Resource:
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
    if staged:
        spec["staged_action"] = draw(staged_actions)
    if draw(st.booleans()):
        metadata = Metadata(name=name, namespace=draw(st.sampled_from(NAMESPACES)))
        if staged:
            return StagedNetworkPolicy(metadata=metadata, spec=StagedNetworkPolicySpec(**spec))
        return NetworkPolicy(metadata=metadata, spec=NetworkPolicySpec(**spec))
    early = draw(st.integers(0, 11))
    spec |= {
        "do_not_track": early == 0,
        "pre_dnat": early == 1,
        "apply_on_forward": True if early < 6 else None,
        "namespace_selector": draw(rarely),
    }
    if staged:
        return StagedGlobalNetworkPolicy(metadata=Metadata(name=name), spec=StagedGlobalNetworkPolicySpec(**spec))
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
def kube_policy(draw: st.DrawFn, number: int, *, staged: bool = False) -> Resource:
    ingress = st.lists(st.builds(KubernetesIngress, from_=peers, ports=kube_ports), max_size=2)
    egress = st.lists(st.builds(KubernetesEgress, to=peers, ports=kube_ports), max_size=2)
    metadata = Metadata(name=f"k{number}", namespace=draw(st.sampled_from(NAMESPACES)))
    spec: dict[str, Any] = {
        "pod_selector": draw(kube_selector),
        "ingress": draw(st.one_of(st.none(), ingress)),
        "egress": draw(st.one_of(st.none(), egress)),
        "policy_types": draw(types),
    }
    if staged:
        action = draw(staged_actions)
        return StagedKubernetesNetworkPolicy(
            metadata=metadata, spec=StagedKubernetesNetworkPolicySpec(staged_action=action, **spec)
        )
    return KubernetesNetworkPolicy(metadata=metadata, spec=KubernetesNetworkPolicySpec(**spec))
