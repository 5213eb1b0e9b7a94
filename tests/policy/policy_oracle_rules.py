"""What single rules match, by the book: Calico's, Kubernetes' and administrators', each in its own words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from policy_oracle_labels import (
    PROTOCOLS,
    Cluster,
    Thing,
    addresses,
    kube_selects,
    prefixed,
    selected,
    within,
)

from core.resources import EndpointSlice, Node, WorkloadEndpoint


@dataclass(frozen=True)
class Flow:
    """The first packet of a flow."""

    source: str
    destination: str
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None

    @property
    def version(self) -> int:
        return ip_address(self.source).version


def number(protocol: Any) -> Any:
    return PROTOCOLS.get(protocol, int(protocol) if isinstance(protocol, str) and protocol.isdigit() else protocol)


class Rules:
    """Whether a rule of the cluster matches a flow."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    # Calico's

    def calico(self, rule: Any, flow: Flow, own: str) -> bool:
        if rule.ip_version is not None and rule.ip_version != flow.version:
            return False
        if rule.protocol is not None and number(rule.protocol) != flow.protocol:
            return False
        if rule.not_protocol is not None and number(rule.not_protocol) == flow.protocol:
            return False
        real = flow.icmp if flow.protocol == {4: 1, 6: 58}[flow.version] else None
        if rule.icmp is not None and rule.icmp.type is not None and not same_icmp(rule.icmp, real):
            return False
        if rule.not_icmp is not None and rule.not_icmp.type is not None and same_icmp(rule.not_icmp, real):
            return False
        return self.side(rule.source, flow, flow.source, flow.sport, own, source=True) and self.side(
            rule.destination, flow, flow.destination, flow.dport, own, source=False
        )

    def side(self, side: Any, flow: Flow, address: str, port: int | None, own: str, *, source: bool) -> bool:
        here = self.cluster.here(address)
        about = scope(side, own)
        meant = [thing for thing in here if selected(about, thing.labels)]
        if about and not meant:
            return False
        if side.not_selector and any(selected(side.not_selector, thing.labels) for thing in here):
            return False
        if side.nets and not any(within(address, net) for net in side.nets):
            return False
        if any(within(address, net) for net in side.not_nets):
            return False
        if side.services is not None and not self.answers(side.services, flow, address, own, source=source):
            return False
        if side.ports and not port_in(side.ports, flow.protocol, port, meant):
            return False
        return not (side.not_ports and port_in(side.not_ports, flow.protocol, port, here))

    def answers(self, service: Any, flow: Flow, address: str, own: str, *, source: bool) -> bool:
        """Whether the address (and port, of a destination) is one of a ready endpoint of the service."""
        for each in self.cluster.of(EndpointSlice):
            if each.metadata.namespace != (service.namespace or own):
                continue
            if each.metadata.labels.get("kubernetes.io/service-name") != service.name:
                continue
            ready = [endpoint for endpoint in each.endpoints if endpoint.conditions.ready in (None, True)]
            if not any(ip_address(address) == ip_address(text) for endpoint in ready for text in endpoint.addresses):
                continue
            if source or (flow.protocol, flow.dport) in [(PROTOCOLS[port.protocol], port.port) for port in each.ports]:
                return True
        return False

    # Kubernetes'

    def kubernetes(self, rule: Any, flow: Flow, direction: str, namespace: str) -> bool:
        peers = rule.from_ if direction == "Ingress" else rule.to
        address = flow.source if direction == "Ingress" else flow.destination
        if peers and not any(self.kube_peer(peer, address, self.pods(address), namespace) for peer in peers):
            return False
        if not rule.ports:
            return True
        servers = self.cluster.here(flow.destination)  # where no labels are asked for, a host's named port is one too
        blocks = [each for each in peers if each.ip_block is not None]
        if direction == "Egress" and peers and not any(self.kube_peer(each, address, [], namespace) for each in blocks):
            pods = self.pods(flow.destination)
            meant = [each for each in pods if any(self.means(peer, each, namespace) for peer in peers)]
            servers = [self.cluster.thing(each) for each in meant]
        return any(self.kube_port(port, flow, servers) for port in rule.ports)

    def kube_port(self, port: Any, flow: Flow, servers: list[Thing]) -> bool:
        if PROTOCOLS[port.protocol or "TCP"] != flow.protocol:
            return False
        if port.port is None:
            return True
        if isinstance(port.port, int):
            return flow.dport is not None and port.port <= flow.dport <= (port.end_port or port.port)
        return called(port.port, flow, servers)

    def pods(self, address: str) -> list[Any]:
        return [each for each in self.cluster.of(WorkloadEndpoint) if address in addresses(each)]

    def means(self, peer: Any, pod: Any, namespace: str) -> bool:
        return any(self.kube_peer(peer, address, [pod], namespace) for address in addresses(pod))

    def kube_peer(self, peer: Any, address: str, pods: list[Any], namespace: str) -> bool:
        if peer.ip_block is not None:
            return within(address, peer.ip_block.cidr) and not any(
                within(address, net) for net in peer.ip_block.except_
            )
        for pod in pods:
            if peer.namespace_selector is None:
                near = pod.metadata.namespace == namespace
            else:
                near = kube_selects(peer.namespace_selector, self.cluster.namespace_labels(pod.metadata.namespace))
            if near and (peer.pod_selector is None or kube_selects(peer.pod_selector, self.cluster.thing(pod).labels)):
                return True
        return False

    # Administrators'

    def subject(self, subject: Any, pod: Any) -> bool:
        home = self.cluster.namespace_labels(pod.metadata.namespace)
        if subject.pods is None:
            return kube_selects(subject.namespaces, home)
        near = kube_selects(subject.pods.namespace_selector, home)
        return near and kube_selects(subject.pods.pod_selector, self.cluster.thing(pod).labels)

    def admin(self, rule: Any, flow: Flow, direction: str) -> bool:
        peers = rule.from_ if direction == "Ingress" else rule.to
        address = flow.source if direction == "Ingress" else flow.destination
        if not any(self.admin_peer(peer, address) for peer in peers):
            return False
        servers = self.pods(flow.destination)
        if direction == "Egress":
            servers = [each for each in servers if any(self.admin_means(peer, each) for peer in peers)]
        things = [self.cluster.thing(each) for each in servers]
        asked = rule.protocols if hasattr(rule, "protocols") else rule.ports
        return not asked or any(admin_port(each, flow, things) for each in asked)

    def admin_peer(self, peer: Any, address: str) -> bool:
        if peer.networks:
            return any(within(address, net) for net in peer.networks)
        if peer.nodes is not None:
            return any(
                kube_selects(peer.nodes, node.metadata.labels) and address in node_addresses(node)
                for node in self.cluster.of(Node)
            )
        return any(self.admin_means(peer, pod) for pod in self.pods(address))

    def admin_means(self, peer: Any, pod: Any) -> bool:
        return (peer.namespaces is not None or peer.pods is not None) and self.subject(peer, pod)


def admin_port(asked: Any, flow: Flow, servers: list[Thing]) -> bool:
    """One entry of `ports` (v1alpha1) or `protocols` (v1alpha2)."""
    name = asked.named_port if hasattr(asked, "named_port") else asked.destination_named_port
    if name is not None:
        return called(name, flow, servers)
    if hasattr(asked, "port_number"):
        span = asked.port_number or asked.port_range
        first, last = (span.port, span.port) if asked.port_number else (span.start, span.end)
        protocol = span.protocol
    else:
        protocol, match = next(
            (word, each) for word, each in (("TCP", asked.tcp), ("UDP", asked.udp), ("SCTP", asked.sctp)) if each
        )
        port = match.destination_port
        first, last = (port.number, port.number) if port.range is None else (port.range.start, port.range.end)
    return PROTOCOLS[protocol] == flow.protocol and flow.dport is not None and first <= flow.dport <= last


def node_addresses(node: Any) -> list[str]:
    found = [node.spec.bgp.ipv4_address, node.spec.bgp.ipv6_address] if node.spec.bgp else []
    return [text.split("/")[0] for text in [*found, *(each.address for each in node.spec.addresses)] if text]


def called(name: str, flow: Flow, servers: list[Thing]) -> bool:
    return any((name, flow.protocol, flow.dport) in server.ports for server in servers)


def port_in(ports: list[int | str], protocol: int, port: int | None, things: list[Thing]) -> bool:
    for each in ports:
        numbers = re.fullmatch(r"(\d+)(?::(\d+))?", str(each))
        if numbers:
            if port is not None and int(numbers[1]) <= port <= int(numbers[2] or numbers[1]):
                return True
        elif any(found == (each, protocol, port) for thing in things for found in thing.ports):
            return True
    return False


def same_icmp(wanted: Any, real: tuple[int, int] | None) -> bool:
    return real is not None and real[0] == wanted.type and wanted.code in (None, real[1])


def scope(side: Any, own: str) -> str:
    """Everything an entity says about labels but notSelector, as one selector; blank when it says nothing.

    A policy of a namespace that says anything about labels, notSelector too, says it of its namespace.
    """
    selector, namespaces, accounts = side.selector, side.namespace_selector, side.service_accounts
    terms = []
    if selector or namespaces or accounts is not None or (own and side.not_selector):
        if namespaces == "global()":
            terms.append("!has(projectcalico.org/namespace)")
        elif namespaces:
            terms.append(prefixed(namespaces, "pcns."))
        elif own:
            terms.append(f"projectcalico.org/namespace == '{own}'")
        else:
            terms.append("all()")
    if selector:
        terms.append(selector)
    if accounts is not None and accounts.names:
        names = ", ".join(f"'{name}'" for name in accounts.names)
        terms.append(f"pcsa.projectcalico.org/name in {{{names}}}")
    if accounts is not None and accounts.selector:
        terms.append(prefixed(accounts.selector, "pcsa."))
    return " && ".join(f"({term})" for term in terms)
