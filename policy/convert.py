"""Manifests to policy values: every kind of policy becomes one, every profile too, tiers in their order.

    convert_policy(manifest, known) ──> policy, what was closed        known: the services and nodes that it names
    convert_profile, tier_order                                        one manifest each
    convert(snapshot, doubt), Conversion                               all of a snapshot, once or one after the other

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
from operator import itemgetter
from types import MappingProxyType
from typing import Final, TypeAlias

from core.errors import MuslinError
from core.memo import Memo
from core.names import Key
from core.resources import EndpointSlice, Namespace, Node, ServiceAccount
from core.resources.policy import BUILT_IN_TIERS, Action, Direction, Profile, Tier
from core.snapshot import Snapshot
from policy import drafts
from policy.admin import NO_NODES, Nodes
from policy.doubt import Doubt
from policy.drafts import Needs, PolicyManifest, Said
from policy.model import Match, Plane, Policy, ProfileRules, Rule, TierOrder
from policy.rules import convert_rules
from policy.scope import endpoint_selector
from policy.services import NO_SERVICES, ServiceName, Services, services

BEFORE_ALL: Final = TierOrder("", -math.inf, Action.DENY, unreadable=True)
"""Where policies that cannot be read stand."""

ALLOW_ALL_PROFILE: Final = "projectcalico-default-allow"
ALLOW_ALL: Final = (Rule(0, Action.ALLOW, Match()),)


_Tiers: TypeAlias = tuple[tuple[TierOrder, tuple[Policy, ...]], ...]
_Problems: TypeAlias = Mapping[Key, str]

_READ: Final = (*sorted({*drafts.ENFORCED, *drafts.STANDS_FOR}), Tier.KIND)
_READ_BY_SOME: Final = (EndpointSlice.KIND, Node.KIND)
_NOTHING: Final = Needs()
_READ_BY_PROFILES: Final = (Namespace.KIND, ServiceAccount.KIND, Profile.KIND)


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


@dataclass(frozen=True, slots=True)
class _Made:
    """A policy as it was made of a manifest, and what was read besides."""

    manifest: PolicyManifest
    needs: Needs
    read: object
    policy: Policy
    closed: str
    sort_key: tuple[float, str]


class Conversion:
    """Converts one snapshot after the other."""

    def __init__(self) -> None:
        self._faults: Mapping[Key, str] = {}
        self._made: dict[int, _Made] = {}
        self._unreadable: dict[Key, Policy] = {}
        self._needy = False
        self._memo = Memo()
        self._policies: tuple[list[object], tuple[_Tiers, _Problems]] | None = None
        self._profiles: tuple[list[object], tuple[Mapping[str, ProfileRules], _Problems]] | None = None
        self._converted: Converted | None = None

    def convert(self, snapshot: Snapshot, doubt: Doubt) -> Converted:
        """All of it, closed where it is in doubt; the same object while nothing of it changed."""
        if snapshot.problems != self._faults:
            self._faults = snapshot.problems
        tiers, unsaid = self._all_policies(snapshot, doubt)
        profiles, unsaid_too = self._all_profiles(snapshot, doubt)
        last = self._converted
        problems = dict(sorted({**unsaid, **unsaid_too}.items()))
        # A rule that meant nobody may come to be closed: its policy is the same, and what to tell of it is not.
        if last is None or last.tiers is not tiers or last.profiles is not profiles or last.problems != problems:
            last = self._converted = Converted(tiers, profiles, MappingProxyType(problems))
        return last

    def _all_policies(self, snapshot: Snapshot, doubt: Doubt) -> tuple[_Tiers, _Problems]:
        kinds = (*_READ, *(_READ_BY_SOME if self._needy else ()))
        made_of: list[object] = [doubt, self._faults, *(snapshot.tables.get(kind) for kind in kinds)]
        if self._policies is None or not _same(self._policies[0], made_of):
            tiers, problems = self._convert(snapshot, doubt)
            if self._policies is not None and self._policies[1][0] == tiers:
                tiers = self._policies[1][0]
            self._policies = made_of, (tiers, problems)
            self._memo.forget()
        return self._policies[1]

    def _convert(self, snapshot: Snapshot, doubt: Doubt) -> tuple[_Tiers, _Problems]:
        problems: dict[Key, str] = {}
        policies: dict[str, list[tuple[tuple[float, str], Policy]]] = defaultdict(list)
        leaving = drafts.outgoing(snapshot)
        for made in self._each(snapshot):
            policy = made.policy
            if leaving and policy.key in leaving:
                policy = self._memo(_leave, policy)
            policies[policy.tier].append((made.sort_key, self._memo(doubt.close, policy) if doubt else policy))
            if made.closed:
                problems[policy.key] = made.closed
        tiers = sorted((tier_order(snapshot, name) for name in policies), key=lambda tier: tier.sort_key)
        for _, policy in (each for tier in tiers if tier.missing for each in policies[tier.name]):
            said = f"there is no tier {policy.tier}: it is asked after all tiers that are there, and its end denies"
            problems[policy.key] = "; ".join(filter(None, (problems.get(policy.key), said)))
        unreadable = self._as_before(unreadable_policies(snapshot))
        ordered = [
            (tier, tuple(policy for _, policy in sorted(policies[tier.name], key=itemgetter(0)))) for tier in tiers
        ]
        return (*([(BEFORE_ALL, unreadable)] if unreadable else ()), *ordered), problems

    def _as_before(self, unreadable: tuple[Policy, ...]) -> tuple[Policy, ...]:
        """The same policies, those that are equal to ones of before as the objects of before."""
        before = self._unreadable
        self._unreadable = {policy.key: policy for policy in unreadable}
        for key, policy in self._unreadable.items():
            if before.get(key) == policy:
                self._unreadable[key] = before[key]
        return tuple(self._unreadable.values())

    def _each(self, snapshot: Snapshot) -> list[_Made]:
        """What each manifest became, made anew only where it, or what it reads, is another."""
        before, self._made = self._made, {}
        fresh: list[PolicyManifest] = []
        needy: list[PolicyManifest] = []
        order: list[PolicyManifest] = []
        for manifest in drafts.policies(snapshot):
            made = before.get(id(manifest))
            order.append(manifest)
            if made is None:
                fresh.append(manifest)
            elif made.read is not None:
                needy.append(manifest)
            else:
                self._made[id(manifest)] = made
        known = known_to(snapshot, (*fresh, *needy))
        self._needy = bool(needy)
        for manifest in (*fresh, *needy):
            made = before.get(id(manifest))
            needs = drafts.needs(manifest) if made is None else made.needs
            read = _read(needs, known)
            self._needy |= read is not None
            if made is None or made.read != read:
                policy, closed = convert_policy(manifest, known)
                made = _Made(manifest, needs, read, policy, "; ".join(closed), policy.sort_key)
            self._made[id(manifest)] = made
        return [self._made[id(manifest)] for manifest in order]

    def _all_profiles(self, snapshot: Snapshot, doubt: Doubt) -> tuple[Mapping[str, ProfileRules], _Problems]:
        made_of: list[object] = [doubt, self._faults, *(snapshot.tables.get(kind) for kind in _READ_BY_PROFILES)]
        if self._profiles is None or not _same(self._profiles[0], made_of):
            problems: dict[Key, str] = {}
            before = self._profiles[1][0] if self._profiles else {}
            found = {name: doubt.close(rules) for name, rules in profiles(snapshot, problems).items()}
            kept = {name: before[name] if before.get(name) == rules else rules for name, rules in found.items()}
            self._profiles = made_of, (before if kept == before else MappingProxyType(kept), problems)
        return self._profiles[1]


def _read(needs: Needs, known: Known) -> object:
    """What a manifest with these needs reads of what is known."""
    if needs == _NOTHING:
        return None
    answering = [(name, known.services.of(*name)) for name in sorted(needs.services)]
    return answering, known.nodes if needs.nodes else None


def _leave(policy: Policy) -> Policy:
    return replace(policy, outgoing=True)


def _same(ours: list[object], theirs: list[object]) -> bool:
    return len(ours) == len(theirs) and all(one is other for one, other in zip(ours, theirs, strict=True))


def convert(snapshot: Snapshot, doubt: Doubt) -> Converted:
    """All of one snapshot."""
    return Conversion().convert(snapshot, doubt)


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


def profiles(snapshot: Snapshot, problems: dict[Key, str]) -> dict[str, ProfileRules]:
    """Those written down, and those that namespaces and service accounts stand for."""
    found = {ALLOW_ALL_PROFILE: ProfileRules(ALLOW_ALL_PROFILE, ingress=ALLOW_ALL, egress=ALLOW_ALL)}
    for key in snapshot.of(Namespace):
        found[f"kns.{key.name}"] = ProfileRules(f"kns.{key.name}", ingress=ALLOW_ALL, egress=ALLOW_ALL)
    for key in snapshot.of(ServiceAccount):
        name = f"ksa.{key.namespace}.{key.name}"
        found[name] = ProfileRules(name)
    for key, manifest in snapshot.of(Profile).items():
        ingress, closed_in = convert_rules(enumerate(manifest.spec.ingress), "")
        egress, closed_out = convert_rules(enumerate(manifest.spec.egress), "")
        if closed_in or closed_out:
            problems[key] = "; ".join((*closed_in, *closed_out))
        found[key.name] = ProfileRules(key.name, ingress=ingress, egress=egress)
    for key in snapshot.problems:
        if key.kind == Profile.KIND:
            found[key.name] = ProfileRules(key.name, exists=False)
    return found
