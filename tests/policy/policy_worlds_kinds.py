"""Random administrators' policies, and the services and nodes that rules name."""

from __future__ import annotations

import policy_draw as st
from policy_worlds_rules import NAMESPACES, PODS, kube_selector, labels

from core.resources import (
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    ClusterNetworkPolicy,
    EndpointSlice,
    Metadata,
    Node,
    Resource,
)
from core.resources.admin import (
    AdminEgress,
    AdminIngress,
    AdminNetworkPolicySpec,
    AdminPeer,
    AdminPort,
    BaselineAdminNetworkPolicySpec,
    ClusterAction,
    ClusterEgress,
    ClusterIngress,
    ClusterNetworkPolicySpec,
    ClusterProtocol,
    ClusterTier,
    NamespacedPods,
    PortMatch,
    PortNumber,
    PortRange,
    ProtocolMatch,
    ProtocolPortRange,
    Subject,
)
from core.resources.network import NodeAddress, NodeBGPSpec, NodeSpec
from core.resources.policy import Action
from core.resources.service import SERVICE_NAME, EndpointConditions, SliceEndpoint, SlicePort

NODES = {"n1": "192.168.0.1/24", "n2": "10.0.2.3/24"}

pods = st.builds(NamespacedPods, namespace_selector=kube_selector, pod_selector=kube_selector)
subject = st.one_of(st.builds(Subject, namespaces=kube_selector), st.builds(Subject, pods=pods))
inside = st.one_of(st.builds(AdminPeer, namespaces=kube_selector), st.builds(AdminPeer, pods=pods))
networks = st.lists(
    st.sampled_from(["10.0.0.0/23", "0.0.0.0/0", "192.168.0.0/16", "fd00::/16", "::/0"]),
    min_size=1,
    max_size=3,
    unique=True,
)
outside = st.one_of(st.builds(AdminPeer, networks=networks), st.builds(AdminPeer, nodes=kube_selector))
protocol = st.sampled_from(["TCP", "TCP", "UDP", "SCTP"])
port = st.sampled_from([80, 81, 53, 443])
numbered = st.one_of(
    st.builds(AdminPort, port_number=st.builds(PortNumber, protocol=protocol, port=port)),
    st.builds(AdminPort, port_range=st.builds(ProtocolPortRange, protocol=protocol, start=port, end=st.just(8080))),
)
named = st.builds(AdminPort, named_port=st.sampled_from(["http", "dns"]))
match = st.builds(
    ProtocolMatch,
    destination_port=st.one_of(
        st.builds(PortMatch, number=port),
        st.builds(PortMatch, range=st.builds(PortRange, start=port, end=st.just(8080))),
    ),
)
said = st.one_of(
    st.builds(ClusterProtocol, tcp=match), st.builds(ClusterProtocol, udp=match), st.builds(ClusterProtocol, sctp=match)
)
called = st.builds(ClusterProtocol, destination_named_port=st.sampled_from(["http", "dns"]))
cluster_actions = st.sampled_from(list(ClusterAction))


@st.composite
def first_version(draw: st.DrawFn, actions: st.Strategy) -> dict[str, list[AdminIngress | AdminEgress]]:
    """Rules of v1alpha1. What lies outside has no named ports."""
    some = st.one_of(st.none(), st.lists(st.one_of(numbered, named), min_size=1, max_size=2))
    plain = st.one_of(st.none(), st.lists(numbered, min_size=1, max_size=2))
    few = st.lists(inside, min_size=1, max_size=2)
    ingress = st.builds(AdminIngress, action=actions, from_=few, ports=some)
    egress = st.one_of(
        st.builds(AdminEgress, action=actions, to=few, ports=some),
        st.builds(AdminEgress, action=actions, to=st.lists(outside, min_size=1, max_size=2), ports=plain),
    )
    return {"ingress": draw(st.lists(ingress, max_size=2)), "egress": draw(st.lists(egress, max_size=2))}


@st.composite
def second_version(draw: st.DrawFn) -> dict[str, list[ClusterIngress | ClusterEgress]]:
    some = st.one_of(st.none(), st.lists(st.one_of(said, called), min_size=1, max_size=2))
    plain = st.one_of(st.none(), st.lists(said, min_size=1, max_size=2))
    few = st.lists(inside, min_size=1, max_size=2)
    ingress = st.builds(ClusterIngress, action=cluster_actions, from_=few, protocols=some)
    egress = st.one_of(
        st.builds(ClusterEgress, action=cluster_actions, to=few, protocols=some),
        st.builds(ClusterEgress, action=cluster_actions, to=st.lists(outside, min_size=1, max_size=2), protocols=plain),
    )
    return {"ingress": draw(st.lists(ingress, max_size=2)), "egress": draw(st.lists(egress, max_size=2))}


@st.composite
def admin_policy(draw: st.DrawFn, number: int) -> Resource:
    metadata = Metadata(name=f"a{number}")
    priority = draw(st.integers(0, 2))
    kind = draw(st.integers(0, 2))
    if kind == 0:
        passing = first_version(st.sampled_from([Action.ALLOW, Action.DENY, Action.PASS]))
        spec = AdminNetworkPolicySpec(priority=priority, subject=draw(subject), **draw(passing))
        return AdminNetworkPolicy(metadata=metadata, spec=spec)
    if kind == 1:
        deciding = first_version(st.sampled_from([Action.ALLOW, Action.DENY]))
        baseline = BaselineAdminNetworkPolicySpec(subject=draw(subject), **draw(deciding))
        return BaselineAdminNetworkPolicy(metadata=Metadata(name="default"), spec=baseline)
    tier = draw(st.sampled_from(list(ClusterTier)))
    cluster = ClusterNetworkPolicySpec(tier=tier, priority=priority, subject=draw(subject), **draw(second_version()))
    return ClusterNetworkPolicy(metadata=metadata, spec=cluster)


@st.composite
def endpoint_slice(draw: st.DrawFn, number: int) -> Resource:
    """Some endpoints of a service, of one family."""
    version = draw(st.sampled_from([4, 4, 6]))
    known = [*(address for each in PODS.values() for address in each), "8.8.8.8", "2001:db8::5"]
    address = st.sampled_from([each for each in known if (":" in each) == (version == 6)]).map(lambda each: [each])
    conditions = st.builds(EndpointConditions, ready=st.sampled_from([None, True, True, False]))
    home, service = draw(st.sampled_from(NAMESPACES)), draw(st.sampled_from(["s", "s", "t", "other"]))
    ports = st.builds(SlicePort, protocol=protocol, port=st.sampled_from([80, 53, 8080, None]))
    return EndpointSlice(
        metadata=Metadata(name=f"s{number}", namespace=home, labels={SERVICE_NAME: service}),
        address_type=f"IPv{version}",
        endpoints=draw(st.lists(st.builds(SliceEndpoint, addresses=address, conditions=conditions), max_size=3)),
        ports=draw(st.lists(ports, max_size=2)),
    )


@st.composite
def node(draw: st.DrawFn, name: str) -> Resource:
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4_address=NODES[name]), addresses=[NodeAddress(address="fd99::1")])
    return Node(metadata=Metadata(name=name, labels=draw(labels)), spec=spec)
