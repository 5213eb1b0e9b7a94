"""Kinds that describe the network: pools, blocks, nodes, workloads, hosts, felix's settings, namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, ClassVar

from msgspec import field

from core.addr import Address, Interface, Network
from core.names import Kind
from core.resources.base import Base, Resource, calico


class EncapMode(StrEnum):
    """When a pool's traffic between nodes is encapsulated.

    `Fallback` is muslin's own: natively while BGP carries the block, through the tunnel otherwise.
    """

    NEVER = "Never"
    ALWAYS = "Always"
    CROSS_SUBNET = "CrossSubnet"
    FALLBACK = "Fallback"


class IPPoolSpec(Base, frozen=True, kw_only=True):
    """A range that pods get addresses from. `blockSize` defaults to 26 for IPv4 and 122 for IPv6."""

    cidr: str = ""
    block_size: int | None = None
    ipip_mode: EncapMode = EncapMode.NEVER
    vxlan_mode: EncapMode = EncapMode.NEVER
    nat_outgoing: bool = False
    disabled: bool = False
    disable_bgp_export: bool = field(default=False, name="disableBGPExport")
    node_selector: str = ""
    namespace_selector: str = ""
    allowed_uses: list[str] = []
    assignment_mode: str | None = None

    @property
    def network(self) -> Network:
        """The pool's prefix."""
        return ip_network(self.cidr)

    @property
    def block_length(self) -> int:
        """Prefix length of its blocks."""
        return self.block_size or (26 if self.network.version == 4 else 122)


class IPPool(Resource, frozen=True, kw_only=True):
    """A pool of pod addresses and how traffic to it is carried."""

    KIND: ClassVar[Kind] = calico("ippools", "IPPool")
    FINALIZER: ClassVar[str] = "muslin.io/addresses-in-use"
    spec: IPPoolSpec
    status: Mapping[str, Any] | None = None

    @property
    def terminating(self) -> bool:
        """Whether it has been deleted and waits, under its finalizer, for its last address: it gives none any more."""
        return self.metadata.deletion_timestamp is not None


class NodeBGPSpec(Base, frozen=True, kw_only=True):
    """How a node speaks BGP and reaches the others. Addresses carry their subnet: `10.1.0.5/24`.

    `maintenance` is muslin's own: `GracefulShutdown` or `Withdrawn` while the node is drained.
    """

    ipv4_address: str = field(default="", name="ipv4Address")
    ipv6_address: str = field(default="", name="ipv6Address")
    as_number: int | str | None = None
    route_reflector_cluster_id: str = field(default="", name="routeReflectorClusterID")
    ipv4_ipip_tunnel_addr: str = field(default="", name="ipv4IPIPTunnelAddr")
    interface_name: str = ""
    maintenance: str = ""

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The node's addresses with their subnets, IPv4 first."""
        return tuple(ip_interface(text) for text in (self.ipv4_address, self.ipv6_address) if text)

    @property
    def tunnel_address(self) -> Address | None:
        """The address of the IP-in-IP device, when one is allocated."""
        return ip_address(self.ipv4_ipip_tunnel_addr) if self.ipv4_ipip_tunnel_addr else None


class NodeAddress(Base, frozen=True, kw_only=True):
    """An address by which a node is known."""

    address: str
    type: str = ""


class OrchRef(Base, frozen=True, kw_only=True):
    """The name another orchestrator gives the node."""

    orchestrator: str = ""
    node_name: str = ""


class NodeWireguardSpec(Base, frozen=True, kw_only=True):
    """Addresses of the node's WireGuard interfaces."""

    interface_ipv4_address: str = field(default="", name="interfaceIPv4Address")
    interface_ipv6_address: str = field(default="", name="interfaceIPv6Address")


class NodeInterface(Base, frozen=True, kw_only=True):
    """An interface of the node and its addresses."""

    name: str = ""
    addresses: list[str] = []


class NodeSpec(Base, frozen=True, kw_only=True):
    """A host of the cluster."""

    bgp: NodeBGPSpec | None = None
    addresses: list[NodeAddress] = []
    orch_refs: list[OrchRef] = []
    ipv4_vxlan_tunnel_addr: str = field(default="", name="ipv4VXLANTunnelAddr")
    ipv6_vxlan_tunnel_addr: str = field(default="", name="ipv6VXLANTunnelAddr")
    vxlan_tunnel_mac_addr: str = field(default="", name="vxlanTunnelMACAddr")
    vxlan_tunnel_mac_addr_v6: str = field(default="", name="vxlanTunnelMACAddrV6")
    wireguard: NodeWireguardSpec | None = None
    interfaces: list[NodeInterface] = []


class Node(Resource, frozen=True, kw_only=True):
    """A host of the cluster, its addresses and labels."""

    KIND: ClassVar[Kind] = calico("nodes", "Node")
    spec: NodeSpec = NodeSpec()
    status: Mapping[str, Any] | None = None

    def address(self, version: int) -> Address | None:
        """The node's address of IP `version`; None when it has none."""
        found = (i.ip for i in (self.spec.bgp.interfaces if self.spec.bgp else ()) if i.version == version)
        return next(found, None)

    def subnet(self, version: int) -> Network | None:
        """The subnet the node's address of IP `version` lies in."""
        found = (i.network for i in (self.spec.bgp.interfaces if self.spec.bgp else ()) if i.version == version)
        return next(found, None)


class EndpointPort(Base, frozen=True, kw_only=True):
    """A named port; `name` may be absent only where there is a `hostPort`."""

    name: str = ""
    port: int
    protocol: int | str
    host_port: int = 0
    host_ip: str = field(default="", name="hostIP")


class IPNAT(Base, frozen=True, kw_only=True):
    """A floating address of an endpoint."""

    internal_ip: str = field(default="", name="internalIP")
    external_ip: str = field(default="", name="externalIP")


class WorkloadEndpointSpec(Base, frozen=True, kw_only=True):
    """One interface of one pod. `ipNetworks` are /32s and /128s; `interfaceName` is the host's end."""

    orchestrator: str = ""
    workload: str = ""
    node: str = ""
    container_id: str = field(default="", name="containerID")
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: list[str] = []
    ip_nats: list[IPNAT] = field(default_factory=list, name="ipNATs")
    ipv4_gateway: str = field(default="", name="ipv4Gateway")
    ipv6_gateway: str = field(default="", name="ipv6Gateway")
    profiles: list[str] = []
    interface_name: str = ""
    mac: str = ""
    ports: list[EndpointPort] = []
    allow_spoofed_source_prefixes: list[str] = []

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The pod's addresses."""
        return tuple(ip_interface(text).ip for text in self.ip_networks)


class WorkloadEndpoint(Resource, frozen=True, kw_only=True):
    """A pod's interface; written by the CNI plugin (or a lab)."""

    KIND: ClassVar[Kind] = calico("workloadendpoints", "WorkloadEndpoint", namespaced=True)
    spec: WorkloadEndpointSpec


class HostEndpointSpec(Base, frozen=True, kw_only=True):
    """An interface of a host (`*`: all that have no endpoint of their own)."""

    node: str = ""
    interface_name: str = ""
    expected_ips: list[str] = field(default_factory=list, name="expectedIPs")
    profiles: list[str] = []
    ports: list[EndpointPort] = []


class HostEndpoint(Resource, frozen=True, kw_only=True):
    """A host's interface under policy."""

    KIND: ClassVar[Kind] = calico("hostendpoints", "HostEndpoint")
    spec: HostEndpointSpec = HostEndpointSpec()


class ProtoPort(Base, frozen=True, kw_only=True):
    """A port that host endpoints never close; `net` is where the other end must be, "" anywhere."""

    protocol: str = "TCP"
    port: int
    net: str = ""


class FelixConfigurationSpec(Base, frozen=True, kw_only=True):
    """The settings of felix that muslin knows; an unknown one is refused rather than ignored.

    `policyCutConnections` is muslin's own: `Enabled` (the default) ends a connection that policy comes to deny,
    `Disabled` lets it live, as Calico does. Failsafe ports: None is felix's own list, an empty list is none.
    """

    default_endpoint_to_host_action: str | None = None
    ipip_mtu: int | None = field(default=None, name="ipipMTU")
    route_refresh_interval: str | None = None
    nat_outgoing_exclusions: str | None = field(default=None, name="natOutgoingExclusions")
    failsafe_inbound_host_ports: list[ProtoPort] | None = None
    failsafe_outbound_host_ports: list[ProtoPort] | None = None
    policy_cut_connections: str | None = None


class FelixConfiguration(Resource, frozen=True, kw_only=True):
    """`default` for the cluster, `node.NAME` for one node."""

    KIND: ClassVar[Kind] = calico("felixconfigurations", "FelixConfiguration")
    spec: FelixConfigurationSpec = FelixConfigurationSpec()


class Namespace(Resource, frozen=True, kw_only=True):
    """Kubernetes' namespace: its labels feed namespaceSelector, its profile allows what no policy selects."""

    KIND: ClassVar[Kind] = Kind("core", "namespaces", "Namespace", "v1", False)
    spec: Mapping[str, Any] | None = None
    status: Mapping[str, Any] | None = None


class Pod(Resource, frozen=True, kw_only=True):
    """Kubernetes' pod. Its labels, annotations and service account are what the CNI plugin gives the endpoint."""

    KIND: ClassVar[Kind] = Kind("core", "pods", "Pod", "v1", True)
    spec: Mapping[str, Any] | None = None
    status: Mapping[str, Any] | None = None

    @property
    def service_account(self) -> str:
        """The name of its service account."""
        named = (self.spec or {}).get("serviceAccountName")
        return named if isinstance(named, str) and named else "default"


class ServiceAccount(Resource, frozen=True, kw_only=True):
    """Kubernetes' service account: its labels feed serviceAccountSelector."""

    KIND: ClassVar[Kind] = Kind("core", "serviceaccounts", "ServiceAccount", "v1", True)
    secrets: list[Mapping[str, Any]] = []
    image_pull_secrets: list[Mapping[str, Any]] = []
    automount_service_account_token: bool | None = None
