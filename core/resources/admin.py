"""Kubernetes' policies of cluster administrators (policy.networking.k8s.io, the network-policy-api project).

    v1alpha1   AdminNetworkPolicy, BaselineAdminNetworkPolicy     before, and after, the namespaces' own policies
    v1alpha2   ClusterNetworkPolicy                               both in one kind, by `tier`

The two versions say the same in different words: `action` Allow is Accept, `ports` are `protocols`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Final

from msgspec import field

from core.names import Kind
from core.resources.base import Base, Resource
from core.resources.policy import Action, LabelSelector

GROUP: Final = "policy.networking.k8s.io"


class NamespacedPods(Base, frozen=True, kw_only=True):
    """Pods by the labels of their namespaces and their own; an empty selector means all."""

    namespace_selector: LabelSelector = LabelSelector()
    pod_selector: LabelSelector


class Subject(Base, frozen=True, kw_only=True):
    """Whom a policy applies to: all pods of namespaces, or some pods. Exactly one is set."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None


class AdminPeer(Base, frozen=True, kw_only=True):
    """One peer of a rule; exactly one field is set. Only pods and namespaces are for ingress."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    nodes: LabelSelector | None = None
    networks: list[str] = []
    domain_names: list[str] = []


class PortNumber(Base, frozen=True, kw_only=True):
    """One port; protocol TCP when absent."""

    protocol: str = "TCP"
    port: int


class ProtocolPortRange(Base, frozen=True, kw_only=True):
    """Ports `start` to `end`, both included; protocol TCP when absent."""

    protocol: str = "TCP"
    start: int
    end: int


class AdminPort(Base, frozen=True, kw_only=True):
    """One entry of v1alpha1's `ports`; exactly one field is set. A named port is of whatever protocol the pod says."""

    port_number: PortNumber | None = None
    port_range: ProtocolPortRange | None = None
    named_port: str | None = None


class AdminRule(Base, frozen=True, kw_only=True):
    """What rules of both v1alpha1 kinds and both directions have in common."""

    name: str = ""
    action: Action
    ports: list[AdminPort] | None = None


class AdminIngress(AdminRule, frozen=True, kw_only=True):
    """A rule for what reaches the subject."""

    from_: list[AdminPeer] = field(name="from")


class AdminEgress(AdminRule, frozen=True, kw_only=True):
    """A rule for what leaves the subject."""

    to: list[AdminPeer]


class BaselineAdminNetworkPolicySpec(Base, frozen=True, kw_only=True):
    """Rules of Allow and Deny for what no other policy decided."""

    subject: Subject
    ingress: list[AdminIngress] = []
    egress: list[AdminEgress] = []


class AdminNetworkPolicySpec(BaselineAdminNetworkPolicySpec, frozen=True, kw_only=True):
    """Rules of Allow, Deny and Pass; the lower `priority` (0-1000) is asked first."""

    priority: int


class AdminNetworkPolicy(Resource, frozen=True, kw_only=True):
    """A policy that no namespace can override, but for what it passes on."""

    KIND: ClassVar[Kind] = Kind(GROUP, "adminnetworkpolicies", "AdminNetworkPolicy", "v1alpha1", False)
    spec: AdminNetworkPolicySpec
    status: Mapping[str, Any] | None = None


class BaselineAdminNetworkPolicy(Resource, frozen=True, kw_only=True):
    """What holds where namespaces say nothing. There is one, called `default`."""

    KIND: ClassVar[Kind] = Kind(GROUP, "baselineadminnetworkpolicies", "BaselineAdminNetworkPolicy", "v1alpha1", False)
    spec: BaselineAdminNetworkPolicySpec
    status: Mapping[str, Any] | None = None


class ClusterTier(StrEnum):
    """Before the namespaces' own policies, or after them."""

    ADMIN = "Admin"
    BASELINE = "Baseline"


class ClusterAction(StrEnum):
    """What a rule does; Accept is Calico's Allow."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"  # noqa: S105 - Kubernetes' word, not a secret


class PortRange(Base, frozen=True, kw_only=True):
    """Ports `start` to `end`, both included; `start` is below `end`."""

    start: int
    end: int


class PortMatch(Base, frozen=True, kw_only=True):
    """A port or a range; exactly one is set."""

    number: int | None = None
    range: PortRange | None = None


class ProtocolMatch(Base, frozen=True, kw_only=True):
    """What is asked of one protocol."""

    destination_port: PortMatch | None = None


class ClusterProtocol(Base, frozen=True, kw_only=True):
    """One entry of `protocols`; exactly one field is set."""

    tcp: ProtocolMatch | None = None
    udp: ProtocolMatch | None = None
    sctp: ProtocolMatch | None = None
    destination_named_port: str | None = None


class ClusterRule(Base, frozen=True, kw_only=True):
    """What rules of both directions have in common."""

    name: str = ""
    action: ClusterAction
    protocols: list[ClusterProtocol] | None = None


class ClusterIngress(ClusterRule, frozen=True, kw_only=True):
    """A rule for what reaches the subject."""

    from_: list[AdminPeer] = field(name="from")


class ClusterEgress(ClusterRule, frozen=True, kw_only=True):
    """A rule for what leaves the subject."""

    to: list[AdminPeer]


class ClusterNetworkPolicySpec(Base, frozen=True, kw_only=True):
    """Of the policies of a tier, the one with the lower `priority` (0-1000) is asked first."""

    tier: ClusterTier
    priority: int
    subject: Subject
    ingress: list[ClusterIngress] = []
    egress: list[ClusterEgress] = []


class ClusterNetworkPolicy(Resource, frozen=True, kw_only=True):
    """A policy of the cluster's administrators."""

    KIND: ClassVar[Kind] = Kind(GROUP, "clusternetworkpolicies", "ClusterNetworkPolicy", "v1alpha2", False)
    spec: ClusterNetworkPolicySpec
    status: Mapping[str, Any] | None = None
