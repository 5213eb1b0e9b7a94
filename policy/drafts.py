"""What each kind of policy says, in the words of one: a draft, before its selector and rules are converted.

NetworkPolicy, GlobalNetworkPolicy             as they are
KubernetesNetworkPolicy                        tier default, order 1000
Admin-, BaselineAdmin-, ClusterNetworkPolicy   `policy.admin`
Staged...                                      as what they stand for, staged; those that set nothing have no draft
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Final, TypeAlias, get_args

from core.names import Key, Kind
from core.resources import (
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    ClusterNetworkPolicy,
    GlobalNetworkPolicy,
    KubernetesNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
)
from core.resources.policy import Direction, GlobalNetworkPolicySpec, KubernetesNetworkPolicySpec, NetworkPolicySpec
from core.resources.policy import Rule as RuleManifest
from core.resources.staged import StagedAction
from core.selector import Selector
from core.snapshot import Snapshot
from policy import admin, kubernetes
from policy.admin import AdminPolicy, Nodes
from policy.model import Plane
from policy.rules import service_of
from policy.scope import endpoint_selector
from policy.services import ServiceName

StagedPolicy: TypeAlias = StagedNetworkPolicy | StagedGlobalNetworkPolicy | StagedKubernetesNetworkPolicy
CalicoPolicy: TypeAlias = NetworkPolicy | GlobalNetworkPolicy | StagedNetworkPolicy | StagedGlobalNetworkPolicy
KubernetesPolicy: TypeAlias = KubernetesNetworkPolicy | StagedKubernetesNetworkPolicy
PolicyManifest: TypeAlias = CalicoPolicy | KubernetesPolicy | AdminPolicy

Said: TypeAlias = tuple[Iterable[tuple[int, RuleManifest]], list[str]]
"""Rules as Calico spells them, each with its place in the manifest; and what is closed already, in words."""

STANDS_FOR: Final[Mapping[Kind, Kind]] = MappingProxyType(
    {
        StagedNetworkPolicy.KIND: NetworkPolicy.KIND,
        StagedGlobalNetworkPolicy.KIND: GlobalNetworkPolicy.KIND,
        StagedKubernetesNetworkPolicy.KIND: KubernetesNetworkPolicy.KIND,
    }
)
"""Staged kinds, and the kinds of what they would set or delete."""

ENFORCED: Final = frozenset(
    cls.KIND
    for cls in (
        NetworkPolicy,
        GlobalNetworkPolicy,
        KubernetesNetworkPolicy,
        AdminNetworkPolicy,
        BaselineAdminNetworkPolicy,
        ClusterNetworkPolicy,
    )
)
"""Kinds of policy that something follows from."""

OF_HOSTS: Final = frozenset({GlobalNetworkPolicy.KIND})
"""Kinds of policy that are for hosts too."""

WORKLOADS: Final = frozenset({Plane.WORKLOAD})

DEFAULT_TIER: Final = "default"
KUBERNETES_ORDER: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A policy as its manifest has it. `kind` is what stands for the kind where policies are sorted.

    `selects` and `rules` raise ValueError when the manifest cannot be understood.
    """

    kind: str
    tier: str
    order: float
    types: frozenset[Direction]
    selects: Callable[[], Selector]
    rules: Callable[[Direction], Said]
    planes: frozenset[Plane] = WORKLOADS
    staged: bool = False


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy means depends on these: the services it names, and the cluster's nodes."""

    services: frozenset[ServiceName] = frozenset()
    nodes: bool = False


def policies(snapshot: Snapshot) -> Iterator[PolicyManifest]:
    """Every policy that has a draft."""
    yield from snapshot.of(NetworkPolicy).values()
    yield from snapshot.of(GlobalNetworkPolicy).values()
    yield from snapshot.of(KubernetesNetworkPolicy).values()
    yield from snapshot.of(AdminNetworkPolicy).values()
    yield from snapshot.of(BaselineAdminNetworkPolicy).values()
    yield from snapshot.of(ClusterNetworkPolicy).values()
    yield from (each for each in _staged(snapshot) if each.spec.staged_action is StagedAction.SET)


def outgoing(snapshot: Snapshot) -> frozenset[Key]:
    """The policies that a staged one would replace or delete, there or not."""
    acting = (each for each in _staged(snapshot) if each.spec.staged_action in (StagedAction.SET, StagedAction.DELETE))
    return frozenset(Key(STANDS_FOR[each.KIND], each.key.namespace, each.key.name) for each in acting)


def _staged(snapshot: Snapshot) -> Iterator[StagedPolicy]:
    yield from snapshot.of(StagedNetworkPolicy).values()
    yield from snapshot.of(StagedGlobalNetworkPolicy).values()
    yield from snapshot.of(StagedKubernetesNetworkPolicy).values()


def needs(manifest: PolicyManifest) -> Needs:
    """What converting it reads besides itself."""
    if isinstance(manifest, get_args(AdminPolicy)):
        return Needs(nodes=admin.asks_nodes(manifest))
    if not isinstance(manifest.spec, NetworkPolicySpec):
        return Needs()
    sides = (
        side
        for rule in chain(manifest.spec.ingress or (), manifest.spec.egress or ())
        for side in (rule.source, rule.destination)
    )
    namespace = manifest.key.namespace
    return Needs(frozenset(service_of(side.services, namespace) for side in sides if side.services is not None))


def draft(manifest: PolicyManifest, nodes: Nodes) -> Draft:
    """What it says. Of `nodes` only administrators' policies read."""
    if isinstance(manifest, AdminNetworkPolicy | BaselineAdminNetworkPolicy | ClusterNetworkPolicy):
        return Draft(
            kind=manifest.KIND.name,
            tier=admin.tier_of(manifest),
            order=admin.order_of(manifest),
            types=admin.directions(manifest),
            selects=partial(admin.subject_selector, manifest.spec.subject),
            rules=lambda direction: admin.rules(manifest, direction, nodes),
        )
    if isinstance(manifest, KubernetesNetworkPolicy | StagedKubernetesNetworkPolicy):
        return _kubernetes(manifest)
    return _calico(manifest)


def _kubernetes(manifest: KubernetesPolicy) -> Draft:
    spec = manifest.spec
    return Draft(
        kind="KubernetesNetworkPolicy",
        tier=DEFAULT_TIER,
        order=KUBERNETES_ORDER,
        types=kubernetes.directions(spec),
        selects=lambda: endpoint_selector(kubernetes.pods(spec.pod_selector), manifest.key.namespace),
        rules=partial(_kubernetes_rules, spec),
        staged=manifest.KIND in STANDS_FOR,
    )


def _kubernetes_rules(spec: KubernetesNetworkPolicySpec, direction: Direction) -> Said:
    ingress = direction is Direction.INGRESS
    return (kubernetes.ingress_rules(spec) if ingress else kubernetes.egress_rules(spec)), []


def _calico(manifest: CalicoPolicy) -> Draft:
    spec, kind = manifest.spec, manifest.KIND
    return Draft(
        kind=STANDS_FOR.get(kind, kind).name,
        tier=spec.tier or DEFAULT_TIER,
        order=math.inf if spec.order is None else spec.order,
        types=_types(spec),
        selects=lambda: endpoint_selector(
            spec.selector,
            manifest.key.namespace,
            namespace_selector=spec.namespace_selector if isinstance(spec, GlobalNetworkPolicySpec) else "",
            service_account_selector=spec.service_account_selector,
        ),
        rules=partial(_calico_rules, spec),
        planes=_planes(spec) if isinstance(spec, GlobalNetworkPolicySpec) else WORKLOADS,
        staged=kind in STANDS_FOR,
    )


def _calico_rules(spec: NetworkPolicySpec, direction: Direction) -> Said:
    return enumerate((spec.ingress if direction is Direction.INGRESS else spec.egress) or ()), []


def _planes(spec: GlobalNetworkPolicySpec) -> frozenset[Plane]:
    """Where a policy of the cluster is asked. One of an early plane is for hosts, and asked in that plane only."""
    if spec.do_not_track:
        return frozenset({Plane.UNTRACKED})
    if spec.pre_dnat:
        return frozenset({Plane.PRE_DNAT})
    both = frozenset({Plane.WORKLOAD, Plane.HOST})
    return both | {Plane.FORWARD} if spec.apply_on_forward else both


def _types(spec: NetworkPolicySpec) -> frozenset[Direction]:
    """As given; else egress alone when only egress has rules, both when both have, ingress otherwise."""
    if spec.types is not None and spec.types:
        return frozenset(spec.types)
    found = {Direction.EGRESS} if spec.egress else set()
    if spec.ingress or not spec.egress:
        found.add(Direction.INGRESS)
    return frozenset(found)
