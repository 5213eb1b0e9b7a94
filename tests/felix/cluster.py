"""Small words for cluster states: resources, snapshots and facts as the tests write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import MappingProxyType

from core.names import workload_endpoint_name, workload_interface
from core.resources import (
    FelixConfiguration,
    GlobalNetworkPolicy,
    IPAMBlock,
    IPPool,
    Metadata,
    Namespace,
    NetworkPolicy,
    Node,
    Resource,
    WorkloadEndpoint,
)
from core.resources.ipam import BlockSpec
from core.resources.network import (
    FelixConfigurationSpec,
    IPPoolSpec,
    NodeBGPSpec,
    NodeSpec,
    WorkloadEndpointSpec,
)
from core.resources.policy import Action, EntityRule, GlobalNetworkPolicySpec, NetworkPolicySpec, Rule
from core.snapshot import Snapshot
from datastore.ipam.block import block_name
from felix.model import Config
from linux.model import Facts, Link, Via

REVISION = 7
CONFIG = Config(node="a", datastore="unix:/nowhere", run_dir=Path("/nowhere"))


def pool(name: str, cidr: str, **fields: object) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **fields))  # type: ignore[arg-type]


def node(name: str, address: str = "", tunnel: str = "", v6: str = "", **annotations: str) -> Node:
    bgp = NodeBGPSpec(ipv4_address=address, ipv6_address=v6, ipv4_ipip_tunnel_addr=tunnel) if address or v6 else None
    return Node(metadata=Metadata(name=name, annotations=annotations), spec=NodeSpec(bgp=bgp))


def block(
    cidr: str,
    owner: str,
    allocations: Mapping[str, str] = MappingProxyType({}),
    borrowers: Mapping[str, str] = MappingProxyType({}),
) -> IPAMBlock:
    spec = BlockSpec(cidr=cidr, affinity=f"host:{owner}", allocations=allocations, borrowers=borrowers)
    return IPAMBlock(metadata=Metadata(name=block_name(ip_network(cidr))), spec=spec)


def namespace(name: str, **labels: str) -> Namespace:
    return Namespace(metadata=Metadata(name=name, labels=labels))


def pod(
    name: str,
    *addresses: str,
    on: str = "a",
    namespace: str = "shop",
    interface: str = "",
    container: str = "",
    profiles: tuple[str, ...] = (),
    **labels: str,
) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=on,
        container_id=container,
        pod=name,
        endpoint="eth0",
        ip_networks=[str(ip_network(each)) for each in addresses],
        profiles=list(profiles) or [f"kns.{namespace}"],
        interface_name=interface or workload_interface(namespace, name),
    )
    labels = {"projectcalico.org/namespace": namespace, "projectcalico.org/orchestrator": "k8s", **labels}
    return WorkloadEndpoint(
        metadata=Metadata(name=workload_endpoint_name(on, name), namespace=namespace, labels=labels), spec=spec
    )


def deny(name: str, namespace: str, selector: str = "all()") -> NetworkPolicy:
    spec = NetworkPolicySpec(selector=selector, ingress=[Rule(action=Action.DENY)], egress=[Rule(action=Action.DENY)])
    return NetworkPolicy(metadata=Metadata(name=name, namespace=namespace), spec=spec)


def allow_from(name: str, namespace: str, selector: str, source: str, port: int, protocol: str) -> NetworkPolicy:
    rule = Rule(
        action=Action.ALLOW,
        protocol=protocol,
        source=EntityRule(selector=source),
        destination=EntityRule(ports=[port]),
    )
    spec = NetworkPolicySpec(selector=selector, order=10, ingress=[rule])
    return NetworkPolicy(metadata=Metadata(name=name, namespace=namespace), spec=spec)


def global_deny(name: str, selector: str) -> GlobalNetworkPolicy:
    spec = GlobalNetworkPolicySpec(selector=selector, order=1, ingress=[Rule(action=Action.DENY)])
    return GlobalNetworkPolicy(metadata=Metadata(name=name), spec=spec)


def felix(name: str = "default", **fields: object) -> FelixConfiguration:
    return FelixConfiguration(metadata=Metadata(name=name), spec=FelixConfigurationSpec(**fields))  # type: ignore[arg-type]


def snapshot(resources: Iterable[Resource], revision: int = REVISION) -> Snapshot:
    return Snapshot().apply(revision, [(each.key, each) for each in resources])


def link(name: str, index: int, *addresses: str, up: bool = True, mtu: int = 1500) -> Link:
    return Link(name=name, index=index, up=up, mtu=mtu, addresses=tuple(map(ip_interface, addresses)))


def facts(*links: Link, default: tuple[str, int] | None = None) -> Facts:
    vias = (
        (Via(destination=ip_network("0.0.0.0/0"), gateway=ip_address(default[0]), device=default[1]),)
        if default
        else ()
    )
    return Facts(links=MappingProxyType({each.name: each for each in links}), gateways=vias)
