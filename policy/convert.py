"""Manifests to policy values: every kind of policy becomes one, every profile too, tiers in their order.

    convert_policy(manifest, known) ──> policy, what was closed        known: the services and nodes that it names
    convert_profile, tier_order                                        one manifest each
    convert(snapshot, doubt)                                           all of a snapshot, with what they depend on

What cannot be enforced as written is closed, and said in `problems`: an Allow or Log rule that asks for it matches
nothing; a Deny rule matches all else that it says; a Pass rule becomes such a Deny, since what it hands on to
might allow. A policy whose own selector cannot be read selects all that it could and denies it. So does one that
cannot be read at all, before every tier; what other objects leave in doubt that cannot be read, `policy.doubt` closes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from core.errors import MuslinError
from core.names import Key
from core.resources import Node
from core.resources.network import Namespace, ServiceAccount
from core.resources.policy import BUILT_IN_TIERS, Action, Direction, Profile, Tier
from core.snapshot import Snapshot
from policy import drafts
from policy.admin import NO_NODES, Nodes
from policy.doubt import Doubt
from policy.drafts import PolicyManifest, Said
from policy.model import Match, Plane, Policy, ProfileRules, Rule, TierOrder
from policy.rules import convert_rules
from policy.scope import endpoint_selector
from policy.services import NO_SERVICES, ServiceName, Services, services

BEFORE_ALL: Final = TierOrder("", -math.inf, Action.DENY, unreadable=True)
"""Where policies that cannot be read stand."""

ALLOW_ALL_PROFILE: Final = "projectcalico-default-allow"
ALLOW_ALL: Final = (Rule(0, Action.ALLOW, Match()),)


@dataclass(frozen=True, slots=True)
class Known:
    """What converting a policy reads besides its manifest: `policy.drafts.needs` says which of it."""

    services: Services = NO_SERVICES
    nodes: Nodes = NO_NODES


@dataclass(frozen=True, slots=True)
class Converted:
    """All policy of a snapshot. `tiers` in the order asked, each with its policies in the order asked: of all planes,
    and the staged ones too."""

    tiers: tuple[tuple[TierOrder, tuple[Policy, ...]], ...]
    profiles: Mapping[str, ProfileRules]
    problems: Mapping[Key, str]


def convert(snapshot: Snapshot, doubt: Doubt) -> Converted:
    """Everything that could apply to an endpoint of a workload or a host, closed where it is in doubt."""
    problems: dict[Key, str] = {}
    policies: dict[str, list[Policy]] = defaultdict(list)
    manifests = list(drafts.policies(snapshot))
    known = known_to(snapshot, manifests)
    leaving = drafts.outgoing(snapshot)
    for manifest in manifests:
        policy, closed = convert_policy(manifest, known)
        policy = replace(policy, outgoing=True) if policy.key in leaving else policy
        policies[policy.tier].append(doubt.close(policy))
        if closed:
            problems[policy.key] = "; ".join(closed)
    tiers = sorted((tier_order(snapshot, name) for name in policies), key=lambda tier: tier.sort_key)
    for policy in (each for tier in tiers if tier.missing for each in policies[tier.name]):
        said = f"there is no tier {policy.tier}: it is asked after all tiers that are there, and its end denies"
        problems[policy.key] = "; ".join(filter(None, (problems.get(policy.key), said)))
    profiles = {name: doubt.close(rules) for name, rules in _profiles(snapshot, problems).items()}
    unreadable = unreadable_policies(snapshot)
    return Converted(
        (
            *([(BEFORE_ALL, unreadable)] if unreadable else ()),
            *((tier, tuple(sorted(policies[tier.name], key=lambda policy: policy.sort_key))) for tier in tiers),
        ),
        MappingProxyType(profiles),
        MappingProxyType(dict(sorted(problems.items()))),
    )


def known_to(snapshot: Snapshot, manifests: Iterable[PolicyManifest]) -> Known:
    """What converting all of `manifests` reads."""
    named: set[ServiceName] = set()
    nodes = False
    for manifest in manifests:
        needed = drafts.needs(manifest)
        named |= needed.services
        nodes |= needed.nodes
    unread = any(key.kind == Node.KIND for key in snapshot.problems)
    return Known(services(snapshot, named), Nodes(snapshot.of(Node), unread) if nodes else NO_NODES)


def unreadable_policies(snapshot: Snapshot) -> tuple[Policy, ...]:
    """What stands for the policies that cannot be read: each denies all that it could apply to, both ways.

    A staged one that cannot be read denies nothing, as it would not if it could.
    """
    return tuple(
        Policy(
            key=key,
            kind=key.kind.name,
            tier=BEFORE_ALL.name,
            order=-math.inf,
            selector=endpoint_selector("", key.namespace),
            types=frozenset(Direction),
            planes=frozenset(Plane) if key.kind in drafts.OF_HOSTS else drafts.WORKLOADS,
            fault=fault,
        )
        for key, fault in sorted(snapshot.problems.items())
        if key.kind in drafts.ENFORCED
    )


def tier_order(snapshot: Snapshot, name: str) -> TierOrder:
    """A tier that policies name, there or not."""
    if Key(Tier.KIND, "", name) in snapshot.problems:
        return TierOrder(name, -math.inf, Action.DENY, unreadable=True)
    manifest = snapshot.get(Tier, name)
    order, default = BUILT_IN_TIERS.get(name, (math.inf, Action.DENY))
    if manifest is None:
        return TierOrder(name, order, default, missing=name not in BUILT_IN_TIERS)
    given = manifest.spec
    return TierOrder(name, order if given.order is None else given.order, given.default_action or default)


def convert_policy(manifest: PolicyManifest, known: Known) -> tuple[Policy, list[str]]:
    """One policy, and what of it was closed, in words. Reads nothing but what `policy.drafts.needs(manifest)` names.

    Whether it is outgoing, which its staged counterpart says, and what `policy.doubt` closes is added by others.
    """
    draft = drafts.draft(manifest, known.nodes)
    namespace = manifest.key.namespace
    closed: list[str] = []
    try:
        selector, types, of = draft.selects(), draft.types, draft.rules
    except (MuslinError, ValueError) as error:
        # Nobody can tell whom it protects: everything within its reach is closed.
        selector, types, of = endpoint_selector("", namespace), frozenset(Direction), _nothing
        closed.append(f"selector: {error}; all endpoints in its reach are denied")
    rules: dict[Direction, tuple[Rule, ...]] = {}
    for direction in Direction:
        rules[direction], unsaid = _rules(of, direction, namespace, known.services)
        closed += unsaid
    policy = Policy(
        key=manifest.key,
        kind=draft.kind,
        tier=draft.tier,
        order=draft.order,
        selector=selector,
        types=types,
        planes=draft.planes,
        staged=draft.staged,
        ingress=rules[Direction.INGRESS],
        egress=rules[Direction.EGRESS],
    )
    return policy, closed


def _rules(
    of: Callable[[Direction], Said], direction: Direction, namespace: str, known: Services
) -> tuple[tuple[Rule, ...], list[str]]:
    try:
        manifests, closed = of(direction)
        rules, unsaid = convert_rules(manifests, namespace, known)
    except ValueError as error:
        return (), [f"{direction.lower()} {error}; no {direction.lower()} rule of it holds"]
    return rules, [*closed, *(f"{direction.lower()} {each}" for each in unsaid)]


def _nothing(_: Direction) -> Said:
    return (), []


def _profiles(snapshot: Snapshot, problems: dict[Key, str]) -> dict[str, ProfileRules]:
    """Those written down, and those that namespaces and service accounts stand for."""
    profiles = {ALLOW_ALL_PROFILE: ProfileRules(ALLOW_ALL_PROFILE, ingress=ALLOW_ALL, egress=ALLOW_ALL)}
    for key in snapshot.of(Namespace):
        profiles[f"kns.{key.name}"] = ProfileRules(f"kns.{key.name}", ingress=ALLOW_ALL, egress=ALLOW_ALL)
    for key in snapshot.of(ServiceAccount):
        name = f"ksa.{key.namespace}.{key.name}"
        profiles[name] = ProfileRules(name)
    for key, manifest in snapshot.of(Profile).items():
        ingress, closed_in = convert_rules(enumerate(manifest.spec.ingress), "")
        egress, closed_out = convert_rules(enumerate(manifest.spec.egress), "")
        if closed_in or closed_out:
            problems[key] = "; ".join((*closed_in, *closed_out))
        profiles[key.name] = ProfileRules(key.name, ingress=ingress, egress=egress)
    for key in snapshot.problems:
        if key.kind == Profile.KIND:
            profiles[key.name] = ProfileRules(key.name, exists=False)
    return profiles
