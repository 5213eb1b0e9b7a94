"""Rules for pools, blocks, nodes, endpoints and felix's settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_network
from typing import Final

from core import values
from core.addr import Network, contains
from core.errors import Problem
from core.resources import (
    EncapMode,
    FelixConfiguration,
    HostEndpoint,
    IPPool,
    Node,
    WorkloadEndpoint,
)
from core.resources.network import EndpointPort, IPPoolSpec, NodeBGPSpec, WorkloadEndpointSpec
from core.validate.checks import (
    at_most,
    conflict,
    each,
    interface_name,
    name,
    one_of,
    reads,
    selector,
    when_set,
    within,
)

BLOCK_SIZES: Final = {4: (20, 32), 6: (116, 128)}
"""Shortest and longest prefix of a block, by IP version."""

LINK_LOCAL: Final = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))

USES: Final = ("Workload", "Tunnel", "LoadBalancer")

MOST_FAILSAFES: Final = 256
"""Failsafe ports of one direction."""

_CONTAINER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # as CNI has it

ipv4 = partial(values.address, version=4)
ipv6 = partial(values.address, version=6)


def ip_pool(pool: IPPool) -> Iterator[Problem]:
    """An IPPool."""
    spec = pool.spec
    if not spec.cidr:
        yield Problem(path="spec.cidr", why="is required")
    else:
        unread = list(reads("spec.cidr", spec.cidr, values.network))
        yield from unread or _pool_network(spec, values.network(spec.cidr))
    yield from _encapsulation(spec)
    yield from selector("spec.nodeSelector", spec.node_selector)
    yield from selector("spec.namespaceSelector", spec.namespace_selector)
    yield from one_of("spec.assignmentMode", spec.assignment_mode, ("Automatic", "Manual"))
    for index, use in enumerate(spec.allowed_uses):
        yield from one_of(f"spec.allowedUses[{index}]", use or "''", USES)
    if "LoadBalancer" in spec.allowed_uses:
        yield from _load_balancer(spec)


def _pool_network(spec: IPPoolSpec, network: Network) -> Iterator[Problem]:
    shortest, longest = BLOCK_SIZES[network.version]
    yield from within("spec.blockSize", spec.block_size, shortest, longest)
    block = spec.block_size or (26 if network.version == 4 else 122)
    if network.prefixlen > block and not spec.disabled:
        yield Problem(path="spec.cidr", why=f"{spec.cidr} is smaller than one block (/{block}); set a larger blockSize")
    for local in LINK_LOCAL:
        if contains(local, network) or contains(network, local):
            yield Problem(path="spec.cidr", why=f"{spec.cidr} overlaps the link-local range {local}")
    if network.version == 6 and spec.ipip_mode is not EncapMode.NEVER:
        yield Problem(path="spec.ipipMode", why="IP-in-IP carries IPv4 only; an IPv6 pool has ipipMode Never")


def _encapsulation(spec: IPPoolSpec) -> Iterator[Problem]:
    if spec.vxlan_mode is EncapMode.FALLBACK:
        yield Problem(path="spec.vxlanMode", why="'Fallback' is a mode of ipipMode; one of Never, Always, CrossSubnet")
    if spec.ipip_mode is not EncapMode.NEVER and spec.vxlan_mode is not EncapMode.NEVER:
        yield conflict("spec.vxlanMode", "ipipMode", "one of them must be Never")


def _load_balancer(spec: IPPoolSpec) -> Iterator[Problem]:
    if set(spec.allowed_uses) != {"LoadBalancer"}:
        yield Problem(path="spec.allowedUses", why="LoadBalancer cannot be combined with another use")
    if spec.ipip_mode is not EncapMode.NEVER or spec.vxlan_mode is not EncapMode.NEVER:
        yield Problem(path="spec.ipipMode", why="a LoadBalancer pool has no encapsulation")
    if spec.disable_bgp_export:
        yield conflict("spec.disableBGPExport", "allowedUses LoadBalancer")
    if spec.node_selector not in ("", "all()"):
        yield Problem(path="spec.nodeSelector", why="a LoadBalancer pool belongs to all(): no node owns its addresses")
    if spec.namespace_selector:
        yield conflict("spec.namespaceSelector", "allowedUses LoadBalancer")


def node(given: Node) -> Iterator[Problem]:
    """A Node."""
    spec = given.spec
    if spec.bgp is not None:
        yield from _node_bgp(spec.bgp)
    yield from when_set("spec.ipv4VXLANTunnelAddr", spec.ipv4_vxlan_tunnel_addr, ipv4)
    yield from when_set("spec.ipv6VXLANTunnelAddr", spec.ipv6_vxlan_tunnel_addr, ipv6)
    yield from when_set("spec.vxlanTunnelMACAddr", spec.vxlan_tunnel_mac_addr, values.mac)
    yield from when_set("spec.vxlanTunnelMACAddrV6", spec.vxlan_tunnel_mac_addr_v6, values.mac)
    if spec.wireguard is not None:
        path = "spec.wireguard"
        yield from when_set(f"{path}.interfaceIPv4Address", spec.wireguard.interface_ipv4_address, ipv4)
        yield from when_set(f"{path}.interfaceIPv6Address", spec.wireguard.interface_ipv6_address, ipv6)
    for index, address in enumerate(spec.addresses):
        path = f"spec.addresses[{index}]"
        yield from reads(f"{path}.address", address.address, values.network_or_address)
        yield from one_of(f"{path}.type", address.type, ("CalicoNodeIP", "InternalIP", "ExternalIP"))


def _node_bgp(bgp: NodeBGPSpec) -> Iterator[Problem]:
    if bgp == NodeBGPSpec():
        yield Problem(path="spec.bgp", why="is empty; leave it out or give it an ipv4Address or ipv6Address")
    yield from when_set("spec.bgp.ipv4Address", bgp.ipv4_address, partial(values.interface, version=4))
    yield from when_set("spec.bgp.ipv6Address", bgp.ipv6_address, partial(values.interface, version=6))
    yield from when_set("spec.bgp.asNumber", bgp.as_number, values.as_number)
    yield from when_set("spec.bgp.routeReflectorClusterID", bgp.route_reflector_cluster_id, ipv4)
    yield from when_set("spec.bgp.ipv4IPIPTunnelAddr", bgp.ipv4_ipip_tunnel_addr, ipv4)
    yield from when_set("spec.bgp.interfaceName", bgp.interface_name, interface_name)
    yield from one_of("spec.bgp.maintenance", bgp.maintenance, ("GracefulShutdown", "Withdrawn"))


def host_endpoint(given: HostEndpoint) -> Iterator[Problem]:
    """A HostEndpoint."""
    spec = given.spec
    if not spec.node:
        yield Problem(path="spec.node", why="is required")
    yield from when_set("spec.node", spec.node, name)
    if not spec.interface_name and not spec.expected_ips:
        yield Problem(path="spec.interfaceName", why="is required, unless expectedIPs are given")
    if spec.interface_name != "*":
        yield from when_set("spec.interfaceName", spec.interface_name, interface_name)
    yield from each("spec.expectedIPs", spec.expected_ips, values.address)
    yield from each("spec.profiles", spec.profiles, name)
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if not port.name:
            yield Problem(path=f"{path}.name", why="is required")
        yield from _endpoint_port(path, port)


def workload_endpoint(given: WorkloadEndpoint) -> Iterator[Problem]:
    """A WorkloadEndpoint."""
    spec = given.spec
    for field, text in (("node", spec.node), ("pod", spec.pod), ("workload", spec.workload)):
        yield from when_set(f"spec.{field}", text, name)
    if len(spec.container_id) > 253 or (spec.container_id and not _CONTAINER_ID.fullmatch(spec.container_id)):
        yield Problem(path="spec.containerID", why=f"{spec.container_id!r} is not a container's id")
    yield from when_set("spec.interfaceName", spec.interface_name, interface_name)
    yield from when_set("spec.mac", spec.mac, values.mac)
    yield from when_set("spec.ipv4Gateway", spec.ipv4_gateway, ipv4)
    yield from when_set("spec.ipv6Gateway", spec.ipv6_gateway, ipv6)
    yield from when_set("spec.serviceAccountName", spec.service_account_name, name)
    yield from each("spec.profiles", spec.profiles, name)
    yield from each("spec.ipNetworks", spec.ip_networks, _one_address)
    yield from each("spec.allowSpoofedSourcePrefixes", spec.allow_spoofed_source_prefixes, values.network)
    yield from _nats(spec)
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if not port.name and not port.host_port:
            yield Problem(path=f"{path}.name", why="is required, unless there is a hostPort")
        yield from _endpoint_port(path, port)


def _nats(spec: WorkloadEndpointSpec) -> Iterator[Problem]:
    for index, nat in enumerate(spec.ip_nats):
        path = f"spec.ipNATs[{index}]"
        wrong = [
            *reads(f"{path}.internalIP", nat.internal_ip, values.address),
            *reads(f"{path}.externalIP", nat.external_ip, values.address),
        ]
        yield from wrong
        if wrong:
            continue
        inner, outer = values.address(nat.internal_ip), values.address(nat.external_ip)
        if inner.version != outer.version:
            yield Problem(path=f"{path}.externalIP", why=f"is IPv{outer.version}, internalIP is IPv{inner.version}")
        if str(inner) not in {text.partition("/")[0] for text in spec.ip_networks}:
            yield Problem(path=f"{path}.internalIP", why=f"{inner} is none of the endpoint's ipNetworks")


def _endpoint_port(path: str, port: EndpointPort) -> Iterator[Problem]:
    yield from when_set(f"{path}.name", port.name, values.port_name)
    yield from reads(f"{path}.port", port.port, values.port_number)
    yield from within(f"{path}.hostPort", port.host_port, 0, 65535)
    yield from when_set(f"{path}.hostIP", port.host_ip, values.address)
    yield from reads(f"{path}.protocol", port.protocol, with_ports)


def with_ports(value: int | str) -> int:
    """A protocol that has ports."""
    number = values.protocol(value)
    if number not in values.WITH_PORTS:
        raise ValueError(f"protocol {value} has no ports; TCP, UDP or SCTP is wanted")
    return number


def _one_address(text: str) -> Network:
    network = values.network_or_address(text)
    if network.prefixlen != network.max_prefixlen:
        raise ValueError(f"{text!r} holds more than one address; a /32 or /128 is wanted")
    return network


def felix_configuration(given: FelixConfiguration) -> Iterator[Problem]:
    """A FelixConfiguration."""
    spec = given.spec
    actions = ("Drop", "Accept", "Return")
    yield from one_of("spec.defaultEndpointToHostAction", spec.default_endpoint_to_host_action, actions)
    yield from within("spec.ipipMTU", spec.ipip_mtu, 0, 65535)
    yield from when_set("spec.routeRefreshInterval", spec.route_refresh_interval, values.duration)
    exclusions = ("IPPoolsOnly", "IPPoolsAndHostIPs")
    yield from one_of("spec.natOutgoingExclusions", spec.nat_outgoing_exclusions, exclusions)
    cutting = ("Enabled", "Disabled")
    yield from one_of("spec.policyCutConnections", spec.policy_cut_connections, cutting)
    for field, ports in (
        ("failsafeInboundHostPorts", spec.failsafe_inbound_host_ports),
        ("failsafeOutboundHostPorts", spec.failsafe_outbound_host_ports),
    ):
        yield from at_most(f"spec.{field}", ports, MOST_FAILSAFES)
        for index, port in enumerate(ports or ()):
            path = f"spec.{field}[{index}]"
            yield from reads(f"{path}.protocol", port.protocol.upper(), with_ports)
            yield from within(f"{path}.port", port.port, 0, 65535)
            yield from when_set(f"{path}.net", port.net, values.network_or_address)
