"""Rules for networking.k8s.io/v1 NetworkPolicy: Kubernetes' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from core import values
from core.addr import contains
from core.errors import Problem
from core.resources import KubernetesNetworkPolicy
from core.resources.policy import (
    IPBlockPeer,
    KubernetesNetworkPolicySpec,
    KubernetesPeer,
    KubernetesPort,
    LabelSelector,
)
from core.validate.checks import conflict, once, one_of, reads
from core.validate.metadata import check_labels, label_value, qualified_name

OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")


def network_policy(given: KubernetesNetworkPolicy) -> Iterator[Problem]:
    """A NetworkPolicy of Kubernetes'."""
    yield from policy_spec(given.spec)


def policy_spec(spec: KubernetesNetworkPolicySpec) -> Iterator[Problem]:
    """What a NetworkPolicy of Kubernetes' says, or a staged one."""
    yield from label_selector("spec.podSelector", spec.pod_selector)
    yield from once("spec.policyTypes", spec.policy_types)
    for index, ingress in enumerate(spec.ingress or ()):
        yield from _rule(f"spec.ingress[{index}]", "from", ingress.from_, ingress.ports)
    for index, egress in enumerate(spec.egress or ()):
        yield from _rule(f"spec.egress[{index}]", "to", egress.to, egress.ports)


def _rule(path: str, side: str, peers: Sequence[KubernetesPeer], ports: Sequence[KubernetesPort]) -> Iterator[Problem]:
    for index, peer in enumerate(peers):
        yield from _peer(f"{path}.{side}[{index}]", peer)
    for index, port in enumerate(ports):
        yield from _port(f"{path}.ports[{index}]", port)


def _peer(path: str, peer: KubernetesPeer) -> Iterator[Problem]:
    if peer == KubernetesPeer():
        yield Problem(path=path, why="is empty: a podSelector, a namespaceSelector or an ipBlock is wanted")
    if peer.ip_block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            yield conflict(f"{path}.ipBlock", "podSelector or namespaceSelector")
        yield from _block(f"{path}.ipBlock", peer.ip_block)
    if peer.pod_selector is not None:
        yield from label_selector(f"{path}.podSelector", peer.pod_selector)
    if peer.namespace_selector is not None:
        yield from label_selector(f"{path}.namespaceSelector", peer.namespace_selector)


def _block(path: str, block: IPBlockPeer) -> Iterator[Problem]:
    wrong = list(reads(f"{path}.cidr", block.cidr, prefix))
    yield from wrong
    for index, text in enumerate(block.except_):
        here = f"{path}.except[{index}]"
        unread = list(reads(here, text, prefix))
        yield from unread
        if wrong or unread:
            continue
        whole, part = values.loose_network(block.cidr), values.loose_network(text)
        if not contains(whole, part) or whole == part:
            yield Problem(path=here, why=f"{text} is not a part of {block.cidr}")


def prefix(text: str) -> None:
    """A prefix with its length; Kubernetes tolerates host bits."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length; write it as address/length")
    values.loose_network(text)


def _port(path: str, port: KubernetesPort) -> Iterator[Problem]:
    yield from one_of(f"{path}.protocol", port.protocol, ("TCP", "UDP", "SCTP"))
    if isinstance(port.port, int):
        yield from reads(f"{path}.port", port.port, values.port_number)
    elif port.port is not None:
        yield from reads(f"{path}.port", port.port, values.port_name)
    if port.end_port is None:
        return
    if not isinstance(port.port, int):
        yield Problem(path=f"{path}.endPort", why="needs a port that is a number")
    elif port.end_port < port.port:
        yield Problem(path=f"{path}.endPort", why=f"{port.end_port} is below port {port.port}")
    else:
        yield from reads(f"{path}.endPort", port.end_port, values.port_number)


def label_selector(path: str, selector: LabelSelector) -> Iterator[Problem]:
    """A label selector of Kubernetes'."""
    yield from check_labels(f"{path}.matchLabels", selector.match_labels)
    for index, line in enumerate(selector.match_expressions):
        here = f"{path}.matchExpressions[{index}]"
        yield from reads(f"{here}.key", line.key, qualified_name)
        yield from one_of(f"{here}.operator", line.operator or "''", OPERATORS)
        if line.operator in ("In", "NotIn") and not line.values:
            yield Problem(path=f"{here}.values", why=f"are required with {line.operator}")
        if line.operator in ("Exists", "DoesNotExist") and line.values:
            yield Problem(path=f"{here}.values", why=f"must be absent with {line.operator}")
        for position, value in enumerate(line.values):
            yield from reads(f"{here}.values[{position}]", value, label_value)
