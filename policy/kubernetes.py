"""Kubernetes' NetworkPolicy as the rules of a Calico one: what differs is spelling and a few defaults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from msgspec.structs import replace

from core.resources.policy import (
    Action,
    Direction,
    EntityRule,
    KubernetesNetworkPolicySpec,
    KubernetesPeer,
    KubernetesPort,
    LabelSelector,
    LabelSelectorRequirement,
    Rule,
)
from policy.ranges import joined

IS_POD = "projectcalico.org/orchestrator == 'k8s'"

ANY_PROTOCOL = ""


def selector_text(selector: LabelSelector) -> str:
    """Kubernetes' label selector in Calico's grammar. Raises ValueError on an unknown operator."""
    terms = [f"{label} == {_quoted(value)}" for label, value in sorted(selector.match_labels.items())]
    terms += [_requirement(each) for each in selector.match_expressions]
    return " && ".join(terms) if terms else "all()"


def _requirement(requirement: LabelSelectorRequirement) -> str:
    values = ", ".join(map(_quoted, requirement.values))
    texts = {
        "In": f"{requirement.key} in {{{values}}}",
        "NotIn": f"{requirement.key} not in {{{values}}}",
        "Exists": f"has({requirement.key})",
        "DoesNotExist": f"!has({requirement.key})",
    }
    if requirement.operator not in texts:
        raise ValueError(f"{requirement.operator!r} is none of In, NotIn, Exists, DoesNotExist")
    return texts[requirement.operator]


def _quoted(value: str) -> str:
    if "'" in value:
        raise ValueError(f"label value {value!r} holds a quote")
    return f"'{value}'"


def pods(selector: LabelSelector | None) -> str:
    """The pods that `selector` means: nothing but pods, whatever else has such labels."""
    if selector is None or not (selector.match_labels or selector.match_expressions):
        return IS_POD
    return f"{IS_POD} && {selector_text(selector)}"


def directions(spec: KubernetesNetworkPolicySpec) -> frozenset[Direction]:
    """What the policy isolates. By Kubernetes' defaulting: ingress always, egress when it has egress rules."""
    if spec.policy_types:
        return frozenset(spec.policy_types)
    return frozenset({Direction.INGRESS, Direction.EGRESS} if spec.egress else {Direction.INGRESS})


def ingress_rules(spec: KubernetesNetworkPolicySpec) -> list[tuple[int, Rule]]:
    """Its ingress as Allow rules, in order, each with the place in the manifest of the rule it is a part of."""
    return [
        (
            place,
            Rule(action=Action.ALLOW, protocol=protocol or None, source=source, destination=EntityRule(ports=ports)),
        )
        for place, each in enumerate(spec.ingress or ())
        for source in _entities(each.from_)
        for protocol, ports in _ports(each.ports)
    ]


def egress_rules(spec: KubernetesNetworkPolicySpec) -> list[tuple[int, Rule]]:
    """Its egress, likewise."""
    return [
        (place, Rule(action=Action.ALLOW, protocol=protocol or None, destination=replace(entity, ports=ports)))
        for place, each in enumerate(spec.egress or ())
        for entity in _entities(each.to)
        for protocol, ports in _ports(each.ports)
    ]


def _entities(peers: Sequence[KubernetesPeer]) -> list[EntityRule]:
    return [_entity(peer) for peer in peers] if peers else [EntityRule()]


def _entity(peer: KubernetesPeer) -> EntityRule:
    if peer.ip_block is not None:
        return EntityRule(nets=[peer.ip_block.cidr], not_nets=list(peer.ip_block.except_))
    return EntityRule(selector=pods(peer.pod_selector), namespace_selector=namespaces(peer.namespace_selector))


def namespaces(selector: LabelSelector | None) -> str:
    """The namespaces that `selector` means. Of a namespaceSelector, `all()` is what lies in a namespace at all: without
    it `team not in {'a'}` would be true of hosts and global sets too."""
    return "" if selector is None else f"all() && {selector_text(selector)}"


def _ports(ports: Sequence[KubernetesPort]) -> list[tuple[str, list[int | str]]]:
    """As `grouped`. No entries: any protocol."""
    return grouped(ports) if ports else [(ANY_PROTOCOL, [])]


def grouped(ports: Sequence[KubernetesPort]) -> list[tuple[str, list[int | str]]]:
    """Per protocol, the ports; a protocol with no ports is wholly open."""
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    whole: set[str] = set()
    order: dict[str, None] = {}
    for each in ports:
        protocol = each.protocol or "TCP"
        order[protocol] = None
        if each.port is None:
            whole.add(protocol)
        elif isinstance(each.port, int):
            ranges[protocol].append((each.port, each.end_port or each.port))
        else:
            names[protocol].append(each.port)
    return [
        (protocol, [] if protocol in whole else [*_texts(ranges[protocol]), *dict.fromkeys(names[protocol])])
        for protocol in order
    ]


def _texts(ranges: list[tuple[int, int]]) -> list[int | str]:
    """Ranges joined where they touch, in Calico's spelling."""
    return [first if first == last else f"{first}:{last}" for first, last in joined(ranges)]
