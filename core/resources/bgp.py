"""Kinds that configure the speakers: BGPConfiguration, BGPPeer, BGPFilter."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from core.names import Kind
from core.resources.base import Base, Resource, calico


class SecretKeyRef(Base, frozen=True, kw_only=True):
    """A key of a Secret in a namespace of the system's. `optional` is read and not followed: a password that is
    named is needed."""

    name: str = ""
    key: str = ""
    optional: bool | None = None


class Password(Base, frozen=True, kw_only=True):
    """Where a password lies."""

    secret_key_ref: SecretKeyRef | None = None


class BFDSpec(Base, frozen=True, kw_only=True):
    """BFD with a peer (muslin's own): intervals as durations (`300ms`), lost after `multiplier` missed packets."""

    minimum_send_interval: str = "300ms"
    minimum_recv_interval: str = "300ms"
    multiplier: int = 3


class BGPPeerSpec(Base, frozen=True, kw_only=True):
    """A session of some nodes with one remote (`peerIP`) or with nodes (`peerSelector`). calico.md 1.4.

    muslin's own: `holdTime`, `passive`, `maxPrefixesIn` and `maxPrefixesOut`, `longLivedRestartTime`, `bfd`.
    `failureDetectionMode` is as in Calico Enterprise: `None` or `BFDIfDirectlyConnected`.
    """

    node: str = ""
    node_selector: str = ""
    peer_ip: str = field(default="", name="peerIP")
    as_number: int | str | None = None
    local_as_number: int | str | None = field(default=None, name="localASNumber")
    peer_selector: str = ""
    keep_original_next_hop: bool = False
    next_hop_mode: str | None = None
    password: Password | None = None
    source_address: str = ""
    max_restart_time: str | None = None
    keepalive_time: str | None = None
    num_allowed_local_as_numbers: int | None = field(default=None, name="numAllowedLocalASNumbers")
    ttl_security: int | None = field(default=None, name="ttlSecurity")
    reachable_by: str = ""
    filters: list[str] = []
    local_workload_selector: str = ""
    reverse_peering: str | None = None
    hold_time: str | None = None
    passive: bool = False
    max_prefixes_in: int | None = None
    max_prefixes_out: int | None = None
    long_lived_restart_time: str | None = None
    failure_detection_mode: str | None = None
    bfd: BFDSpec | None = None


class BGPPeer(Resource, frozen=True, kw_only=True):
    """A BGP session, or a rule for several."""

    KIND: ClassVar[Kind] = calico("bgppeers", "BGPPeer")
    spec: BGPPeerSpec = BGPPeerSpec()


class CIDREntry(Base, frozen=True, kw_only=True):
    """A prefix in a list of a BGPConfiguration."""

    cidr: str = ""


class Community(Base, frozen=True, kw_only=True):
    """A named community."""

    name: str = ""
    value: str = ""


class PrefixAdvertisement(Base, frozen=True, kw_only=True):
    """Communities for every route inside a prefix."""

    cidr: str = ""
    communities: list[str] = []


class BGPConfigurationSpec(Base, frozen=True, kw_only=True):
    """Defaults of the cluster's speakers. calico.md 1.4."""

    log_severity_screen: str = ""
    node_to_node_mesh_enabled: bool | None = None
    as_number: int | str | None = None
    listen_port: int | None = None
    bind_mode: str | None = None
    node_mesh_password: Password | None = None
    node_mesh_max_restart_time: str | None = None
    service_cluster_ips: list[CIDREntry] = field(default_factory=list, name="serviceClusterIPs")
    service_external_ips: list[CIDREntry] = field(default_factory=list, name="serviceExternalIPs")
    service_load_balancer_ips: list[CIDREntry] = field(default_factory=list, name="serviceLoadBalancerIPs")
    service_load_balancer_aggregation: str | None = None
    communities: list[Community] = []
    prefix_advertisements: list[PrefixAdvertisement] = []
    ignored_interfaces: list[str] = []
    local_workload_peering_ipv4: str = field(default="", name="localWorkloadPeeringIPV4")
    local_workload_peering_ipv6: str = field(default="", name="localWorkloadPeeringIPV6")
    program_cluster_routes: str | None = None
    ipv4_normal_route_priority: int | None = field(default=None, name="ipv4NormalRoutePriority")
    ipv6_normal_route_priority: int | None = field(default=None, name="ipv6NormalRoutePriority")


class BGPConfiguration(Resource, frozen=True, kw_only=True):
    """`default` for the cluster, `node.NAME` for one node."""

    KIND: ClassVar[Kind] = calico("bgpconfigurations", "BGPConfiguration")
    spec: BGPConfigurationSpec = BGPConfigurationSpec()


class PrefixLength(Base, frozen=True, kw_only=True):
    """Bounds of a prefix length."""

    min: int | None = None
    max: int | None = None


class CommunityMatch(Base, frozen=True, kw_only=True):
    """Communities a route must carry."""

    values: list[str] = []


class AddCommunity(Base, frozen=True, kw_only=True):
    """A community given to the route."""

    value: str


class PrependASPath(Base, frozen=True, kw_only=True):
    """AS numbers put before the route's path, in this order."""

    prefix: list[int | str]


class SetPriority(Base, frozen=True, kw_only=True):
    """The metric given to the route."""

    value: int


class SetLocalPreference(Base, frozen=True, kw_only=True):
    """The local preference given to the route (muslin's own)."""

    value: int


class FilterOperation(Base, frozen=True, kw_only=True):
    """What an accepting filter rule changes; exactly one is set."""

    add_community: AddCommunity | None = None
    prepend_as_path: PrependASPath | None = field(default=None, name="prependASPath")
    set_priority: SetPriority | None = None
    set_local_preference: SetLocalPreference | None = None


class BGPFilterRule(Base, frozen=True, kw_only=True):
    """One filter rule; all that is set must match. `action` Accept or Reject."""

    action: str
    cidr: str = ""
    match_operator: str = ""
    prefix_length: PrefixLength | None = None
    source: str = ""
    interface: str = ""
    peer_type: str | None = None
    communities: CommunityMatch | None = None
    as_path_prefix: list[int | str] = field(default_factory=list, name="asPathPrefix")
    priority: int | None = None
    operations: list[FilterOperation] = []


class BGPFilterSpec(Base, frozen=True, kw_only=True):
    """Ordered rules per family and direction."""

    import_v4: list[BGPFilterRule] = field(default_factory=list, name="importV4")
    export_v4: list[BGPFilterRule] = field(default_factory=list, name="exportV4")
    import_v6: list[BGPFilterRule] = field(default_factory=list, name="importV6")
    export_v6: list[BGPFilterRule] = field(default_factory=list, name="exportV6")


class BGPFilter(Resource, frozen=True, kw_only=True):
    """Named filters that peers refer to."""

    KIND: ClassVar[Kind] = calico("bgpfilters", "BGPFilter")
    spec: BGPFilterSpec = BGPFilterSpec()
