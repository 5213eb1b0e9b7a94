"""Administrators' policies (policy.networking.k8s.io) as the rules of a Calico one: what differs is spelling.

    AdminNetworkPolicy             tier adminnetworkpolicy           order: its priority
    BaselineAdminNetworkPolicy     tier baselineadminnetworkpolicy
    ClusterNetworkPolicy           tier kube-admin, kube-baseline    order: its priority

A rule that cannot be said is closed as upstream asks: one that accepts matches nothing, any other denies everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

from core import values
from core.names import Key
from core.resources import AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, Node
from core.resources.admin import (
    AdminEgress,
    AdminIngress,
    AdminPeer,
    ClusterAction,
    ClusterEgress,
    ClusterIngress,
    ClusterTier,
    Subject,
)
from core.resources.policy import Action, Direction, EntityRule, KubernetesPort, LabelSelector, Rule
from core.selector import Selector, parse
from policy.kubernetes import ANY_PROTOCOL, IS_POD, grouped, namespaces, pods, selector_text
from policy.scope import endpoint_selector

AdminPolicy: TypeAlias = AdminNetworkPolicy | BaselineAdminNetworkPolicy | ClusterNetworkPolicy
AnyRule: TypeAlias = AdminIngress | AdminEgress | ClusterIngress | ClusterEgress

TIERS: Final[Mapping[ClusterTier, str]] = MappingProxyType(
    {ClusterTier.ADMIN: "kube-admin", ClusterTier.BASELINE: "kube-baseline"}
)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that a rule may mean. `unread` says that there are some that cannot be read."""

    known: Mapping[Key, Node] = field(default_factory=dict)
    unread: bool = False


NO_NODES = Nodes()


def tier_of(policy: AdminPolicy) -> str:
    """The tier it is asked in."""
    if isinstance(policy, ClusterNetworkPolicy):
        return TIERS[policy.spec.tier]
    return policy.KIND.name.lower()


def order_of(policy: AdminPolicy) -> float:
    """Where it stands in its tier."""
    return 0.0 if isinstance(policy, BaselineAdminNetworkPolicy) else float(policy.spec.priority)


def directions(policy: AdminPolicy) -> frozenset[Direction]:
    """Those it has rules for."""
    given = {Direction.INGRESS: policy.spec.ingress, Direction.EGRESS: policy.spec.egress}
    return frozenset(direction for direction, rules in given.items() if rules)


def asks_nodes(policy: AdminPolicy) -> bool:
    """Whether what its rules mean depends on the nodes of the cluster."""
    return any(peer.nodes is not None for rule in policy.spec.egress for peer in rule.to)


def subject_selector(subject: Subject) -> Selector:
    """The pods it applies to. Raises ValueError on an unknown operator."""
    if subject.pods is not None:
        meant = namespaces(subject.pods.namespace_selector)
        return endpoint_selector(pods(subject.pods.pod_selector), "", namespace_selector=meant)
    if subject.namespaces is None:
        raise ValueError("the subject is none of namespaces, pods")
    return endpoint_selector(IS_POD, "", namespace_selector=namespaces(subject.namespaces))


def rules(policy: AdminPolicy, direction: Direction, nodes: Nodes) -> tuple[list[tuple[int, Rule]], list[str]]:
    """The rules of one direction, each with its place in the manifest, and what was closed, in words."""
    given: Sequence[AnyRule] = policy.spec.ingress if direction is Direction.INGRESS else policy.spec.egress
    found: list[tuple[int, Rule]] = []
    closed: list[str] = []
    for place, rule in enumerate(given):
        action = Action.ALLOW if rule.action is ClusterAction.ACCEPT else Action(rule.action.value)
        try:
            found += [(place, each) for each in _said(rule, action, nodes)]
        except ValueError as error:
            closed.append(f"{direction.lower()} rule {place} ({rule.action}): {error}")
            if action is not Action.ALLOW:
                found.append((place, Rule(action=Action.DENY)))
    return found, closed


def _said(rule: AnyRule, action: Action, nodes: Nodes) -> list[Rule]:
    """One rule for each peer and protocol."""
    ports = _ports(rule)
    if isinstance(rule, AdminIngress | ClusterIngress):
        return [
            Rule(action=action, protocol=protocol or None, source=source, destination=EntityRule(ports=numbers))
            for source in _entities(rule.from_, nodes)
            for protocol, numbers in ports
        ]
    return [
        Rule(
            action=action,
            protocol=protocol or None,
            destination=EntityRule(
                nets=entity.nets, selector=entity.selector, namespace_selector=entity.namespace_selector, ports=numbers
            ),
        )
        for entity in _entities(rule.to, nodes)
        for protocol, numbers in ports
    ]


def _entities(peers: Iterable[AdminPeer], nodes: Nodes) -> list[EntityRule]:
    return [entity for peer in peers for entity in _entity(peer, nodes)]


def _entity(peer: AdminPeer, nodes: Nodes) -> list[EntityRule]:
    if peer.namespaces is not None:
        return [EntityRule(selector=IS_POD, namespace_selector=namespaces(peer.namespaces))]
    if peer.pods is not None:
        meant = namespaces(peer.pods.namespace_selector)
        return [EntityRule(selector=pods(peer.pods.pod_selector), namespace_selector=meant)]
    if peer.networks:
        return [EntityRule(nets=list(peer.networks))]
    if peer.nodes is not None:
        found = _addresses(peer.nodes, nodes)
        return [EntityRule(nets=found)] if found else []  # no nets would mean any address
    raise ValueError("domain names are not resolved" if peer.domain_names else "a peer of no kind that is known")


def _addresses(selector: LabelSelector, nodes: Nodes) -> list[str]:
    if nodes.unread:
        raise ValueError("there are nodes that cannot be read")
    meant = parse(selector_text(selector))
    return [
        str(net)
        for _, node in sorted(nodes.known.items())
        if meant.matches(node.metadata.labels)
        for net in _nets(node)
    ]


def _nets(node: Node) -> list[str]:
    """Every address by which a node is known."""
    own = [str(interface.ip) for interface in node.spec.bgp.interfaces] if node.spec.bgp else []
    given = [str(values.network_or_address(each.address).network_address) for each in node.spec.addresses]
    return list(dict.fromkeys([*own, *given]))


def _ports(rule: AnyRule) -> list[tuple[str, list[int | str]]]:
    """Protocols and their ports. A named port is of the protocol that its endpoint says."""
    entries, names = _entries(rule)
    if entries is None:
        return [(ANY_PROTOCOL, [])]
    return [*(grouped(entries) if entries else ()), *([(ANY_PROTOCOL, [*dict.fromkeys(names)])] if names else ())]


def _entries(rule: AnyRule) -> tuple[list[KubernetesPort] | None, list[str]]:
    if isinstance(rule, AdminIngress | AdminEgress):
        return _of_first_version(rule)
    if not rule.protocols:
        return None, []
    entries: list[KubernetesPort] = []
    names: list[str] = []
    for protocol in rule.protocols:
        if protocol.destination_named_port is not None:
            names.append(protocol.destination_named_port)
        for name, match in (("TCP", protocol.tcp), ("UDP", protocol.udp), ("SCTP", protocol.sctp)):
            if match is None:
                continue
            port = match.destination_port
            span = port.range if port is not None else None
            if span is not None:
                entries.append(KubernetesPort(protocol=name, port=span.start, end_port=span.end))
            else:
                entries.append(KubernetesPort(protocol=name, port=port.number if port is not None else None))
    return entries, names


def _of_first_version(rule: AdminIngress | AdminEgress) -> tuple[list[KubernetesPort] | None, list[str]]:
    if not rule.ports:
        return None, []
    entries: list[KubernetesPort] = []
    names: list[str] = []
    for port in rule.ports:
        if port.named_port is not None:
            names.append(port.named_port)
        if port.port_number is not None:
            entries.append(KubernetesPort(protocol=port.port_number.protocol, port=port.port_number.port))
        if port.port_range is not None:
            span = port.port_range
            entries.append(KubernetesPort(protocol=span.protocol, port=span.start, end_port=span.end))
    return entries, names
