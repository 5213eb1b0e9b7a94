"""Rules for policies of cluster administrators: those of the upstream CRDs, the experimental channel's included."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from core import values
from core.errors import Problem
from core.resources import AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy
from core.resources.admin import (
    AdminEgress,
    AdminIngress,
    AdminPeer,
    AdminPort,
    BaselineAdminNetworkPolicySpec,
    ClusterAction,
    ClusterEgress,
    ClusterIngress,
    ClusterProtocol,
    NamespacedPods,
    PortMatch,
    PortRange,
    ProtocolMatch,
    ProtocolPortRange,
    Subject,
)
from core.resources.base import Base
from core.resources.policy import Action, LabelSelector
from core.validate.checks import at_most, each, once, one_of, reads, within
from core.validate.kubernetes import label_selector, prefix

MOST_PRIORITY: Final = 1000
MOST_NAME: Final = 100
MOST_NETWORKS: Final = 25
MOST_DOMAINS: Final = 25
MOST: Final = 100
"""Rules, peers and ports of v1alpha1, each."""

MOST_OF_CLUSTER: Final = 25
"""Rules, peers and protocols of v1alpha2, each."""

INGRESS_PEERS: Final = ("namespaces", "pods")

_LABEL: Final = r"[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?"
_DOMAIN: Final = re.compile(rf"(\*\.)?({_LABEL}\.)+{_LABEL}\.?")


def admin_network_policy(given: AdminNetworkPolicy) -> Iterator[Problem]:
    """An AdminNetworkPolicy."""
    yield from within("spec.priority", given.spec.priority, 0, MOST_PRIORITY)
    yield from _first_version(given.spec, (Action.ALLOW, Action.DENY, Action.PASS))


def baseline_admin_network_policy(given: BaselineAdminNetworkPolicy) -> Iterator[Problem]:
    """A BaselineAdminNetworkPolicy."""
    yield from _first_version(given.spec, (Action.ALLOW, Action.DENY))


def _first_version(spec: BaselineAdminNetworkPolicySpec, actions: Collection[Action]) -> Iterator[Problem]:
    yield from _subject("spec.subject", spec.subject)
    rules: Sequence[tuple[str, Sequence[AdminIngress | AdminEgress]]] = (
        ("spec.ingress", spec.ingress),
        ("spec.egress", spec.egress),
    )
    for field, each_way in rules:
        yield from at_most(field, each_way, MOST)
        for index, rule in enumerate(each_way):
            path = f"{field}[{index}]"
            yield from one_of(f"{path}.action", rule.action, actions)
            named = any(port.named_port is not None for port in rule.ports or ())
            yield from _rule(path, rule, MOST, named=named)
            yield from _given("ports", path, rule.ports, MOST)
            for position, port in enumerate(rule.ports or ()):
                yield from _port(f"{path}.ports[{position}]", port)


def cluster_network_policy(given: ClusterNetworkPolicy) -> Iterator[Problem]:
    """A ClusterNetworkPolicy."""
    spec = given.spec
    yield from within("spec.priority", spec.priority, 0, MOST_PRIORITY)
    yield from _subject("spec.subject", spec.subject)
    rules: Sequence[tuple[str, Sequence[ClusterIngress | ClusterEgress]]] = (
        ("spec.ingress", spec.ingress),
        ("spec.egress", spec.egress),
    )
    for field, each_way in rules:
        yield from at_most(field, each_way, MOST_OF_CLUSTER)
        for index, rule in enumerate(each_way):
            path = f"{field}[{index}]"
            named = any(protocol.destination_named_port is not None for protocol in rule.protocols or ())
            yield from _rule(path, rule, MOST_OF_CLUSTER, named=named)
            yield from _given("protocols", path, rule.protocols, MOST_OF_CLUSTER)
            for position, protocol in enumerate(rule.protocols or ()):
                yield from _protocol(f"{path}.protocols[{position}]", protocol)


def _rule(
    path: str, rule: AdminIngress | AdminEgress | ClusterIngress | ClusterEgress, most: int, *, named: bool
) -> Iterator[Problem]:
    """A rule's name and peers."""
    if len(rule.name) > MOST_NAME:
        yield Problem(path=f"{path}.name", why=f"has {len(rule.name)} characters; at most {MOST_NAME} are allowed")
    ingress = isinstance(rule, AdminIngress | ClusterIngress)
    side, peers = ("from", rule.from_) if isinstance(rule, AdminIngress | ClusterIngress) else ("to", rule.to)
    if not peers:
        yield Problem(path=f"{path}.{side}", why="is empty: at least one peer is wanted")
    yield from at_most(f"{path}.{side}", peers, most)
    for index, peer in enumerate(peers):
        here = f"{path}.{side}[{index}]"
        yield from _exactly_one(here, peer)
        yield from _peer(here, peer)
        outside = _set(peer) - {*INGRESS_PEERS}
        if outside and ingress:
            yield Problem(path=f"{here}.{min(outside)}", why="is for egress rules only")
        elif outside and named:
            yield Problem(path=f"{here}.{min(outside)}", why="has no named ports, which this rule asks for")
        if peer.domain_names and rule.action not in (Action.ALLOW, ClusterAction.ACCEPT):
            yield Problem(path=f"{here}.domainNames", why=f"is for Accept rules only, not for {rule.action}")


def _peer(path: str, peer: AdminPeer) -> Iterator[Problem]:
    yield from _selector(f"{path}.namespaces", peer.namespaces)
    yield from _selector(f"{path}.nodes", peer.nodes)
    if peer.pods is not None:
        yield from _pods(f"{path}.pods", peer.pods)
    yield from at_most(f"{path}.networks", peer.networks, MOST_NETWORKS)
    yield from once(f"{path}.networks", peer.networks)
    yield from each(f"{path}.networks", peer.networks, prefix)
    yield from at_most(f"{path}.domainNames", peer.domain_names, MOST_DOMAINS)
    yield from once(f"{path}.domainNames", peer.domain_names)
    for index, domain in enumerate(peer.domain_names):
        if not _DOMAIN.fullmatch(domain):
            yield Problem(path=f"{path}.domainNames[{index}]", why=f"{domain!r} is not a domain or *.domain")


def _subject(path: str, subject: Subject) -> Iterator[Problem]:
    yield from _exactly_one(path, subject)
    yield from _selector(f"{path}.namespaces", subject.namespaces)
    if subject.pods is not None:
        yield from _pods(f"{path}.pods", subject.pods)


def _pods(path: str, pods: NamespacedPods) -> Iterator[Problem]:
    yield from label_selector(f"{path}.namespaceSelector", pods.namespace_selector)
    yield from label_selector(f"{path}.podSelector", pods.pod_selector)


def _selector(path: str, selector: LabelSelector | None) -> Iterator[Problem]:
    if selector is not None:
        yield from label_selector(path, selector)


def _port(path: str, port: AdminPort) -> Iterator[Problem]:
    yield from _exactly_one(path, port)
    if port.port_number is not None:
        yield from one_of(f"{path}.portNumber.protocol", port.port_number.protocol or "''", ("TCP", "UDP", "SCTP"))
        yield from reads(f"{path}.portNumber.port", port.port_number.port, values.port_number)
    if port.port_range is not None:
        yield from one_of(f"{path}.portRange.protocol", port.port_range.protocol or "''", ("TCP", "UDP", "SCTP"))
        yield from _range(f"{path}.portRange", port.port_range)
    if port.named_port is not None:
        yield from reads(f"{path}.namedPort", port.named_port, values.port_name)


def _protocol(path: str, protocol: ClusterProtocol) -> Iterator[Problem]:
    yield from _exactly_one(path, protocol)
    for field, match in (("tcp", protocol.tcp), ("udp", protocol.udp), ("sctp", protocol.sctp)):
        if match is not None:
            yield from _destination(f"{path}.{field}", match)
    if protocol.destination_named_port is not None:
        yield from reads(f"{path}.destinationNamedPort", protocol.destination_named_port, values.port_name)


def _destination(path: str, match: ProtocolMatch) -> Iterator[Problem]:
    port = match.destination_port
    if port is None:
        yield Problem(path=f"{path}.destinationPort", why="is required")
        return
    yield from _exactly_one(f"{path}.destinationPort", port)
    yield from _port_match(f"{path}.destinationPort", port)


def _port_match(path: str, port: PortMatch) -> Iterator[Problem]:
    if port.number is not None:
        yield from reads(f"{path}.number", port.number, values.port_number)
    if port.range is not None:
        yield from _range(f"{path}.range", port.range)


def _range(path: str, ports: PortRange | ProtocolPortRange) -> Iterator[Problem]:
    wrong = [
        *reads(f"{path}.start", ports.start, values.port_number),
        *reads(f"{path}.end", ports.end, values.port_number),
    ]
    yield from wrong
    if not wrong and ports.start >= ports.end:
        yield Problem(path=f"{path}.end", why=f"{ports.end} is not above start {ports.start}")


def _given(field: str, path: str, items: Sequence[Base] | None, most: int) -> Iterator[Problem]:
    """A list that may be absent but not empty: empty could be read as all, or as none."""
    if items is not None and not items:
        yield Problem(path=f"{path}.{field}", why="is empty: leave it out to mean all traffic")
    yield from at_most(f"{path}.{field}", items, most)


def _exactly_one(path: str, given: Base) -> Iterator[Problem]:
    found = _set(given)
    choices = ", ".join(given.__struct_encode_fields__)
    if len(found) > 1:
        yield Problem(path=path, why=f"has {' and '.join(sorted(found))}: exactly one of {choices} is wanted")
    elif not found:
        yield Problem(path=path, why=f"is empty: exactly one of {choices} is wanted")


def _set(given: Base) -> set[str]:
    """The fields that are set, by their names in manifests."""
    pairs = zip(given.__struct_fields__, given.__struct_encode_fields__, strict=True)
    return {name for field, name in pairs if getattr(given, field) not in (None, [])}
