"""Policy kinds: NetworkPolicy, GlobalNetworkPolicy, Tier, Profile, network sets, and Kubernetes' NetworkPolicy."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any, ClassVar, Final

from msgspec import field

from core.addr import Network
from core.names import Kind
from core.resources.base import Base, Resource, calico


class Action(StrEnum):
    """What a rule does with what it matches. Log goes on to the next rule; Pass leaves the tier."""

    ALLOW = "Allow"
    DENY = "Deny"
    LOG = "Log"
    PASS = "Pass"  # noqa: S105 - Calico's word, not a secret


BUILT_IN_TIERS: Final[Mapping[str, tuple[float, Action]]] = MappingProxyType(
    {
        "adminnetworkpolicy": (1_000.0, Action.PASS),
        "kube-admin": (1_000.0, Action.PASS),
        "default": (1_000_000.0, Action.DENY),
        "baselineadminnetworkpolicy": (10_000_000.0, Action.PASS),
        "kube-baseline": (10_000_000.0, Action.PASS),
    }
)
"""Order and default action of the tiers that always exist, written down or not.

Kubernetes' v1alpha1 policies have the tiers of their own names, as Calico gave them; v1alpha2's the `kube-` ones."""


class Direction(StrEnum):
    """Seen from the endpoint the policy selects."""

    INGRESS = "Ingress"
    EGRESS = "Egress"


class ICMP(Base, frozen=True, kw_only=True):
    """`type` 0-254, and `code` 0-255 which needs a type."""

    type: int | None = None
    code: int | None = None


class ServiceMatch(Base, frozen=True, kw_only=True):
    """A Kubernetes Service as peer."""

    name: str = ""
    namespace: str = ""


class ServiceAccountMatch(Base, frozen=True, kw_only=True):
    """Service accounts: `names` ORed, ANDed with `selector`."""

    names: list[str] = []
    selector: str = ""


class EntityRule(Base, frozen=True, kw_only=True):
    """One side of a rule; all that is set must hold. Ports are numbers, "a:b" ranges or names."""

    nets: list[str] = []
    not_nets: list[str] = []
    selector: str = ""
    not_selector: str = ""
    namespace_selector: str = ""
    ports: list[int | str] = []
    not_ports: list[int | str] = []
    service_accounts: ServiceAccountMatch | None = None
    services: ServiceMatch | None = None


class HTTPPath(Base, frozen=True, kw_only=True):
    """One HTTP path, exact or by prefix."""

    exact: str = ""
    prefix: str = ""


class HTTPMatch(Base, frozen=True, kw_only=True):
    """HTTP match; parsed so that it can be refused with a reason (it needs a proxy)."""

    methods: list[str] = []
    paths: list[HTTPPath] = []


class RuleMetadata(Base, frozen=True, kw_only=True):
    """Free annotations of a rule."""

    annotations: Mapping[str, str] = {}


class Rule(Base, frozen=True, kw_only=True):
    """One rule; all that is set must match. `protocol` is a name (TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite) or 1-255."""

    action: Action
    ip_version: int | None = field(default=None, name="ipVersion")
    protocol: int | str | None = None
    not_protocol: int | str | None = None
    icmp: ICMP | None = None
    not_icmp: ICMP | None = field(default=None, name="notICMP")
    source: EntityRule = EntityRule()
    destination: EntityRule = EntityRule()
    http: HTTPMatch | None = None
    metadata: RuleMetadata | None = None


class NetworkPolicySpec(Base, frozen=True, kw_only=True):
    """`order` absent sorts last. `types` absent is inferred from the rules given."""

    tier: str = "default"
    order: float | None = None
    selector: str = ""
    service_account_selector: str = ""
    ingress: list[Rule] | None = None
    egress: list[Rule] | None = None
    types: list[Direction] | None = None
    performance_hints: list[str] = []


class GlobalNetworkPolicySpec(NetworkPolicySpec, frozen=True, kw_only=True):
    """As NetworkPolicy, for endpoints of every namespace and for hosts."""

    namespace_selector: str = ""
    do_not_track: bool = False
    pre_dnat: bool = field(default=False, name="preDNAT")
    apply_on_forward: bool | None = None


class NetworkPolicy(Resource, frozen=True, kw_only=True):
    """Calico's namespaced policy."""

    KIND: ClassVar[Kind] = calico("networkpolicies", "NetworkPolicy", namespaced=True)
    spec: NetworkPolicySpec


class GlobalNetworkPolicy(Resource, frozen=True, kw_only=True):
    """Calico's cluster-wide policy."""

    KIND: ClassVar[Kind] = calico("globalnetworkpolicies", "GlobalNetworkPolicy")
    spec: GlobalNetworkPolicySpec


class TierSpec(Base, frozen=True, kw_only=True):
    """`order` absent sorts last; `defaultAction` is what an end of tier does: Deny or Pass."""

    order: float | None = None
    default_action: Action | None = None


class Tier(Resource, frozen=True, kw_only=True):
    """An ordered group of policies."""

    KIND: ClassVar[Kind] = calico("tiers", "Tier")
    spec: TierSpec = TierSpec()


class NetworkSetSpec(Base, frozen=True, kw_only=True):
    """Addresses and prefixes that carry the object's labels; host bits in them are tolerated and mean nothing."""

    nets: list[str] = []

    @property
    def networks(self) -> tuple[Network, ...]:
        """The prefixes, without host bits."""
        return tuple(ip_network(text, strict=False) for text in self.nets)


class NetworkSet(Resource, frozen=True, kw_only=True):
    """External addresses, selectable from its namespace."""

    KIND: ClassVar[Kind] = calico("networksets", "NetworkSet", namespaced=True)
    spec: NetworkSetSpec = NetworkSetSpec()


class GlobalNetworkSet(Resource, frozen=True, kw_only=True):
    """External addresses, selectable from everywhere."""

    KIND: ClassVar[Kind] = calico("globalnetworksets", "GlobalNetworkSet")
    spec: NetworkSetSpec = NetworkSetSpec()


class ProfileSpec(Base, frozen=True, kw_only=True):
    """Labels an endpoint inherits, and rules asked when no policy applies."""

    labels_to_apply: Mapping[str, str] = {}
    ingress: list[Rule] = []
    egress: list[Rule] = []


class Profile(Resource, frozen=True, kw_only=True):
    """What endpoints fall back to. A namespace gives one (`kns.NAME`: allow all) without being written down."""

    KIND: ClassVar[Kind] = calico("profiles", "Profile")
    spec: ProfileSpec = ProfileSpec()


class LabelSelectorRequirement(Base, frozen=True, kw_only=True):
    """One line of matchExpressions."""

    key: str
    operator: str
    values: list[str] = []


class LabelSelector(Base, frozen=True, kw_only=True):
    """Kubernetes' own selector; empty selects everything."""

    match_labels: Mapping[str, str] = {}
    match_expressions: list[LabelSelectorRequirement] = []


class IPBlockPeer(Base, frozen=True, kw_only=True):
    """A prefix less some of its parts."""

    cidr: str
    except_: list[str] = field(default_factory=list, name="except")


class KubernetesPeer(Base, frozen=True, kw_only=True):
    """Pods, namespaces or a block; a block stands alone."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlockPeer | None = None


class KubernetesPort(Base, frozen=True, kw_only=True):
    """Protocol TCP when absent; `port` a number or a name; `endPort` needs a number."""

    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class KubernetesIngress(Base, frozen=True, kw_only=True):
    """Absent or empty lists mean everything."""

    from_: list[KubernetesPeer] = field(default_factory=list, name="from")
    ports: list[KubernetesPort] = []


class KubernetesEgress(Base, frozen=True, kw_only=True):
    """Absent or empty lists mean everything."""

    to: list[KubernetesPeer] = []
    ports: list[KubernetesPort] = []


class KubernetesNetworkPolicySpec(Base, frozen=True, kw_only=True):
    """Absent rule lists and empty ones differ from absent `policyTypes` only; see calico.md 1.8."""

    pod_selector: LabelSelector = LabelSelector()
    ingress: list[KubernetesIngress] | None = None
    egress: list[KubernetesEgress] | None = None
    policy_types: list[Direction] | None = None


class KubernetesNetworkPolicy(Resource, frozen=True, kw_only=True):
    """networking.k8s.io/v1 NetworkPolicy."""

    KIND: ClassVar[Kind] = Kind("networking.k8s.io", "networkpolicies", "NetworkPolicy", "v1", True)
    spec: KubernetesNetworkPolicySpec
    status: Mapping[str, Any] | None = None
