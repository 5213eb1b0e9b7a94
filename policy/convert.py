"""Manifests to policy values: every kind of policy becomes one, every profile too, tiers in their order.

What cannot be enforced as written is closed, and said in `problems`: an Allow or Log rule that asks for it matches
nothing; a Deny rule matches all else that it says; a Pass rule becomes such a Deny, since what it hands on to
might allow. A policy whose own selector cannot be read selects all that it could and denies it. So does one that
cannot be read at all, before every tier; what other objects leave in doubt that cannot be read, `policy.doubt` closes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from core.errors import MuslinError
from core.names import Key
from core.resources.network import Namespace, ServiceAccount
from core.resources.policy import (
    BUILT_IN_TIERS,
    Action,
    Direction,
    GlobalNetworkPolicy,
    KubernetesNetworkPolicy,
    LabelSelector,
    NetworkPolicy,
    NetworkPolicySpec,
    Profile,
    Tier,
)
from core.resources.policy import Rule as RuleManifest
from core.selector import Selector
from core.snapshot import Snapshot
from policy import kubernetes
from policy.doubt import Doubt
from policy.model import Match, Policy, ProfileRules, Rule, TierOrder
from policy.rules import convert_rules
from policy.scope import endpoint_selector

DEFAULT_TIER: Final = "default"
KUBERNETES_ORDER: Final = 1000.0
BEFORE_ALL: Final = TierOrder("", -math.inf, Action.DENY, unreadable=True)
"""Where policies that cannot be read stand."""

ALLOW_ALL_PROFILE: Final = "projectcalico-default-allow"
ALLOW_ALL: Final = (Rule(0, Action.ALLOW, Match()),)


@dataclass(frozen=True, slots=True)
class Converted:
    """All policy of a snapshot. `tiers` in the order asked, each with its policies in the order asked."""

    tiers: tuple[tuple[TierOrder, tuple[Policy, ...]], ...]
    profiles: Mapping[str, ProfileRules]
    problems: Mapping[Key, str]


def convert(snapshot: Snapshot, doubt: Doubt) -> Converted:
    """Everything that could apply to a workload endpoint, closed where it is in doubt."""
    problems: dict[Key, str] = {}
    policies: dict[str, list[Policy]] = defaultdict(list)
    for policy, closed in _policies(snapshot):
        policies[policy.tier].append(doubt.close(policy))
        if closed:
            problems[policy.key] = "; ".join(closed)
    tiers = sorted((_tier(snapshot, name) for name in policies), key=lambda tier: tier.sort_key)
    for policy in (each for tier in tiers if tier.missing for each in policies[tier.name]):
        said = f"there is no tier {policy.tier}: it is asked after all tiers that are there, and its end denies"
        problems[policy.key] = "; ".join(filter(None, (problems.get(policy.key), said)))
    profiles = {name: doubt.close(rules) for name, rules in _profiles(snapshot, problems).items()}
    unreadable = _unreadable(snapshot)
    return Converted(
        (
            *([(BEFORE_ALL, unreadable)] if unreadable else ()),
            *((tier, tuple(sorted(policies[tier.name], key=lambda policy: policy.sort_key))) for tier in tiers),
        ),
        MappingProxyType(profiles),
        MappingProxyType(dict(sorted(problems.items()))),
    )


def _unreadable(snapshot: Snapshot) -> tuple[Policy, ...]:
    """What stands for the policies that cannot be read: each denies all that it could apply to, both ways."""
    kinds = {NetworkPolicy.KIND, GlobalNetworkPolicy.KIND, KubernetesNetworkPolicy.KIND}
    return tuple(
        Policy(
            key=key,
            kind=key.kind.name,
            tier=BEFORE_ALL.name,
            order=-math.inf,
            selector=endpoint_selector("", key.namespace),
            types=frozenset(Direction),
            fault=fault,
        )
        for key, fault in sorted(snapshot.problems.items())
        if key.kind in kinds
    )


def _tier(snapshot: Snapshot, name: str) -> TierOrder:
    if Key(Tier.KIND, "", name) in snapshot.problems:
        return TierOrder(name, -math.inf, Action.DENY, unreadable=True)
    manifest = snapshot.get(Tier, name)
    order, default = BUILT_IN_TIERS.get(name, (math.inf, Action.DENY))
    if manifest is None:
        return TierOrder(name, order, default, missing=name not in BUILT_IN_TIERS)
    given = manifest.spec
    return TierOrder(name, order if given.order is None else given.order, given.default_action or default)


def _policies(snapshot: Snapshot) -> Iterable[tuple[Policy, list[str]]]:
    for key, namespaced in snapshot.of(NetworkPolicy).items():
        yield _calico(key, namespaced.spec, "NetworkPolicy", "")
    for key, cluster in snapshot.of(GlobalNetworkPolicy).items():
        # These two are about hosts: they are asked before connections are tracked, or before addresses are translated.
        if not (cluster.spec.do_not_track or cluster.spec.pre_dnat):
            yield _calico(key, cluster.spec, "GlobalNetworkPolicy", cluster.spec.namespace_selector)
    for key, foreign in snapshot.of(KubernetesNetworkPolicy).items():
        spec = foreign.spec
        yield _policy(
            key,
            kind="KubernetesNetworkPolicy",
            tier=DEFAULT_TIER,
            order=KUBERNETES_ORDER,
            types=kubernetes.directions(spec),
            selects=partial(_kubernetes_selector, spec.pod_selector, key.namespace),
            ingress=partial(kubernetes.ingress_rules, spec),
            egress=partial(kubernetes.egress_rules, spec),
        )


def _kubernetes_selector(pods: LabelSelector, namespace: str) -> Selector:
    return endpoint_selector(kubernetes.pods(pods), namespace)


def _calico(key: Key, spec: NetworkPolicySpec, kind: str, namespace_selector: str) -> tuple[Policy, list[str]]:
    return _policy(
        key,
        kind=kind,
        tier=spec.tier or DEFAULT_TIER,
        order=math.inf if spec.order is None else spec.order,
        types=_types(spec),
        selects=lambda: endpoint_selector(
            spec.selector,
            key.namespace,
            namespace_selector=namespace_selector,
            service_account_selector=spec.service_account_selector,
        ),
        ingress=lambda: enumerate(spec.ingress or ()),
        egress=lambda: enumerate(spec.egress or ()),
    )


def _types(spec: NetworkPolicySpec) -> frozenset[Direction]:
    """As given; else egress alone when only egress has rules, both when both have, ingress otherwise."""
    if spec.types is not None and spec.types:
        return frozenset(spec.types)
    found = {Direction.EGRESS} if spec.egress else set()
    if spec.ingress or not spec.egress:
        found.add(Direction.INGRESS)
    return frozenset(found)


def _policy(
    key: Key,
    *,
    kind: str,
    tier: str,
    order: float,
    types: frozenset[Direction],
    selects: Callable[[], Selector],
    ingress: Callable[[], Iterable[tuple[int, RuleManifest]]],
    egress: Callable[[], Iterable[tuple[int, RuleManifest]]],
) -> tuple[Policy, list[str]]:
    closed: list[str] = []
    rules: dict[Direction, tuple[Rule, ...]] = {}
    try:
        selector = selects()
    except (MuslinError, ValueError) as error:
        # Nobody can tell whom it protects: everything within its reach is closed.
        selector = endpoint_selector("", key.namespace)
        closed.append(f"selector: {error}; all endpoints in its reach are denied")
        types = frozenset(Direction)
        ingress = egress = tuple
    for direction, manifests in ((Direction.INGRESS, ingress), (Direction.EGRESS, egress)):
        try:
            rules[direction], unsaid = convert_rules(manifests(), key.namespace)
        except ValueError as error:
            rules[direction], unsaid = (), [f"{error}; no {direction.lower()} rule of it holds"]
        closed.extend(f"{direction.lower()} {each}" for each in unsaid)
    return (
        Policy(
            key=key,
            kind=kind,
            tier=tier,
            order=order,
            selector=selector,
            types=types,
            ingress=rules[Direction.INGRESS],
            egress=rules[Direction.EGRESS],
        ),
        closed,
    )


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
