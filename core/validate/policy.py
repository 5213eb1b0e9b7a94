"""Rules for Calico's policies, tiers, profiles and network sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from core import values
from core.errors import Problem
from core.resources import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Profile, Tier
from core.resources.policy import (
    BUILT_IN_TIERS,
    ICMP,
    Action,
    Direction,
    EntityRule,
    GlobalNetworkPolicySpec,
    NetworkPolicySpec,
    Rule,
)
from core.validate.checks import at_most, conflict, each, name, once, one_of, reads, selector, when_set, within
from core.validate.metadata import check_annotations, check_labels
from core.validate.network import with_ports

MOST_RULES: Final = 1024
MOST_NETS: Final = 256
MOST_PORTS: Final = 50

_ICMP: Final = {"ICMP": 4, "ICMPv6": 6, 1: 4, 58: 6, "1": 4, "58": 6}


def network_policy(given: NetworkPolicy) -> Iterator[Problem]:
    """A NetworkPolicy of Calico's."""
    yield from policy_spec(given.spec)


def global_network_policy(given: GlobalNetworkPolicy) -> Iterator[Problem]:
    """A GlobalNetworkPolicy."""
    yield from global_policy_spec(given.spec)


def global_policy_spec(spec: GlobalNetworkPolicySpec) -> Iterator[Problem]:
    """What a GlobalNetworkPolicy says, or a staged one."""
    yield from policy_spec(spec)
    yield from selector("spec.namespaceSelector", spec.namespace_selector)
    if spec.do_not_track and spec.pre_dnat:
        yield conflict("spec.preDNAT", "doNotTrack")
    if (spec.do_not_track or spec.pre_dnat) and not spec.apply_on_forward:
        yield Problem(path="spec.applyOnForward", why="must be true with preDNAT or doNotTrack")
    if spec.pre_dnat and spec.egress:
        yield Problem(path="spec.egress", why="a preDNAT policy has no egress rules: it acts before routing")
    if spec.pre_dnat and Direction.EGRESS in (spec.types or ()):
        yield Problem(path="spec.types", why="a preDNAT policy is for Ingress only: it acts before routing")
    for path, side in _services(spec):
        if side.services is not None and not side.services.namespace:
            yield Problem(path=f"{path}.services.namespace", why="is required: a global policy lies in no namespace")


def policy_spec(spec: NetworkPolicySpec) -> Iterator[Problem]:
    """What a policy of Calico's says, of whichever kind."""
    yield from when_set("spec.tier", spec.tier, name)
    yield from _order(spec.order)
    yield from selector("spec.selector", spec.selector)
    yield from selector("spec.serviceAccountSelector", spec.service_account_selector)
    yield from once("spec.types", spec.types)
    yield from once("spec.performanceHints", spec.performance_hints)
    for index, hint in enumerate(spec.performance_hints):
        yield from one_of(f"spec.performanceHints[{index}]", hint or "''", ("AssumeNeededOnEveryNode",))
    yield from _rules("spec.ingress", spec.ingress or ())
    yield from _rules("spec.egress", spec.egress or ())
    for path, side in _wrong_side(spec):
        if side.services is not None:
            where = "an egress rule's destination or an ingress rule's source"
            yield Problem(path=f"{path}.services", why=f"services are for {where} only")


def _order(order: float | None) -> Iterator[Problem]:
    if order is not None and not math.isfinite(order):
        yield Problem(path="spec.order", why=f"{order} is not a number to sort by")


def _services(spec: NetworkPolicySpec) -> Iterator[tuple[str, EntityRule]]:
    """The sides of rules that may name services."""
    yield from ((f"spec.ingress[{index}].source", rule.source) for index, rule in enumerate(spec.ingress or ()))
    yield from ((f"spec.egress[{index}].destination", rule.destination) for index, rule in enumerate(spec.egress or ()))


def _wrong_side(spec: NetworkPolicySpec) -> Iterator[tuple[str, EntityRule]]:
    """The sides of rules that may not."""
    for index, rule in enumerate(spec.ingress or ()):
        yield f"spec.ingress[{index}].destination", rule.destination
    yield from ((f"spec.egress[{index}].source", rule.source) for index, rule in enumerate(spec.egress or ()))


def _rules(path: str, rules: Sequence[Rule]) -> Iterator[Problem]:
    yield from at_most(path, rules, MOST_RULES)
    for index, rule in enumerate(rules):
        yield from _rule(f"{path}[{index}]", rule)


def _rule(path: str, rule: Rule) -> Iterator[Problem]:
    if rule.ip_version not in (None, 4, 6):
        yield Problem(path=f"{path}.ipVersion", why=f"{rule.ip_version} is not 4 or 6")
    yield from when_set(f"{path}.protocol", rule.protocol, values.protocol)
    yield from when_set(f"{path}.notProtocol", rule.not_protocol, values.protocol)
    for field, protocol in (("protocol", rule.protocol), ("notProtocol", rule.not_protocol)):
        version = _ICMP.get(protocol) if protocol is not None else None
        if version and rule.ip_version in (4, 6) and rule.ip_version != version:
            yield Problem(path=f"{path}.ipVersion", why=f"{field} {protocol} is of IPv{version}")
    if rule.icmp is not None and rule.protocol not in _ICMP:
        yield Problem(path=f"{path}.protocol", why="must be ICMP or ICMPv6 with icmp")
    yield from _icmp(f"{path}.icmp", rule.icmp)
    yield from _icmp(f"{path}.notICMP", rule.not_icmp)
    yield from _side(f"{path}.source", rule.source)
    yield from _side(f"{path}.destination", rule.destination)
    yield from _ports_need_protocol(path, rule)
    yield from _families(path, rule)
    if rule.http is not None:
        yield Problem(path=f"{path}.http", why="needs a proxy beside every pod, which muslin does not run")
    if rule.metadata is not None:
        yield from check_annotations(f"{path}.metadata.annotations", rule.metadata.annotations)


def _icmp(path: str, icmp: ICMP | None) -> Iterator[Problem]:
    if icmp is None:
        return
    yield from within(f"{path}.type", icmp.type, 0, 254)
    yield from within(f"{path}.code", icmp.code, 0, 255)
    if icmp.code is not None and icmp.type is None:
        yield Problem(path=f"{path}.type", why="is required with code")


def _side(path: str, side: EntityRule) -> Iterator[Problem]:
    for field, nets in (("nets", side.nets), ("notNets", side.not_nets)):
        yield from at_most(f"{path}.{field}", nets, MOST_NETS)
        yield from each(f"{path}.{field}", nets, values.network)
    for index, net in enumerate(side.not_nets):
        if net.endswith("/0"):
            yield Problem(path=f"{path}.notNets[{index}]", why=f"{net} is everything: the rule could never match")
    yield from selector(f"{path}.selector", side.selector)
    yield from selector(f"{path}.notSelector", side.not_selector)
    yield from selector(f"{path}.namespaceSelector", side.namespace_selector, global_=True)
    for field, ports in (("ports", side.ports), ("notPorts", side.not_ports)):
        yield from at_most(f"{path}.{field}", ports, MOST_PORTS)
        yield from each(f"{path}.{field}", ports, values.port)
    if side.service_accounts is not None:
        yield from selector(f"{path}.serviceAccounts.selector", side.service_accounts.selector)
    yield from _service(path, side)


def _service(path: str, side: EntityRule) -> Iterator[Problem]:
    if side.services is None:
        return
    if not side.services.name:
        yield Problem(path=f"{path}.services.name", why="is required")
    yield from when_set(f"{path}.services.name", side.services.name, name)
    yield from when_set(f"{path}.services.namespace", side.services.namespace, name)
    others = {
        "selector": side.selector,
        "notSelector": side.not_selector,
        "namespaceSelector": side.namespace_selector,
        "serviceAccounts": side.service_accounts is not None,
        "nets": side.nets,
        "notNets": side.not_nets,
    }
    for field, given in others.items():
        if given:
            yield conflict(f"{path}.{field}", "services", "the service says which addresses")
    if path.endswith(".destination"):
        for field, given in (("ports", side.ports), ("notPorts", side.not_ports)):
            if given:
                yield conflict(f"{path}.{field}", "services", "the service says which ports")


def _ports_need_protocol(path: str, rule: Rule) -> Iterator[Problem]:
    given = {
        "source.ports": rule.source.ports,
        "source.notPorts": rule.source.not_ports,
        "destination.ports": rule.destination.ports,
        "destination.notPorts": rule.destination.not_ports,
    }
    fields = [field for field, ports in given.items() if ports]
    if rule.protocol is None:
        fields = [field for field in fields if field.endswith("notPorts") or not _all_named(given[field])]
    if not fields:
        return
    if rule.protocol is None:
        yield Problem(path=f"{path}.protocol", why=f"is required with {fields[0]}: TCP, UDP or SCTP")
    elif not list(reads("", rule.protocol, values.protocol)):
        yield from reads(f"{path}.protocol", rule.protocol, with_ports)


def _all_named(ports: Sequence[int | str]) -> bool:
    """Whether each endpoint says of which protocol these ports are."""
    return all(isinstance(port, str) and not port[:1].isdigit() for port in ports)


def _families(path: str, rule: Rule) -> Iterator[Problem]:
    """One rule speaks of one IP version: packets have one."""
    seen = {rule.ip_version} & {4, 6}
    for field, nets in (
        ("source.nets", rule.source.nets),
        ("source.notNets", rule.source.not_nets),
        ("destination.nets", rule.destination.nets),
        ("destination.notNets", rule.destination.not_nets),
    ):
        for index, net in enumerate(nets):
            version = 6 if ":" in net else 4
            if seen and version not in seen:
                yield Problem(
                    path=f"{path}.{field}[{index}]", why=f"{net} is IPv{version}; the rule is for IPv{seen.pop()}"
                )
                return
            seen.add(version)


def tier(given: Tier) -> Iterator[Problem]:
    """A Tier."""
    spec, own = given.spec, given.metadata.name
    yield from _order(spec.order)
    if spec.default_action not in (None, Action.DENY, Action.PASS):
        yield Problem(path="spec.defaultAction", why=f"{spec.default_action} is not Deny or Pass")
    if own in BUILT_IN_TIERS:
        order, action = BUILT_IN_TIERS[own]
        if spec.order != order:
            yield Problem(path="spec.order", why=f"the tier {own} has order {order:.0f}")
        if (spec.default_action or Action.DENY) is not action:
            yield Problem(path="spec.defaultAction", why=f"the tier {own} has defaultAction {action}")


def profile(given: Profile) -> Iterator[Problem]:
    """A Profile."""
    yield from check_labels("spec.labelsToApply", given.spec.labels_to_apply)
    yield from _rules("spec.ingress", given.spec.ingress)
    yield from _rules("spec.egress", given.spec.egress)
    for field, rules in (("ingress", given.spec.ingress), ("egress", given.spec.egress)):
        for index, rule in enumerate(rules):
            for side, entity in (("source", rule.source), ("destination", rule.destination)):
                if entity.services is not None:
                    path = f"spec.{field}[{index}].{side}.services"
                    yield Problem(path=path, why="is for rules of policies only, not of profiles")


def network_set(given: NetworkSet | GlobalNetworkSet) -> Iterator[Problem]:
    """A NetworkSet or GlobalNetworkSet; host bits in its prefixes are tolerated."""
    yield from each("spec.nets", given.spec.nets, partial(values.loose_network))
    if "projectcalico.org/namespace" in given.metadata.labels:
        yield Problem(path='metadata.labels["projectcalico.org/namespace"]', why="is set by muslin, from the namespace")
