"""Small clusters as resources, and packets of theirs as both the tables and the oracle want them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec

from core.names import Key, workload_endpoint_name
from core.resources import BY_MANIFEST, Metadata, Namespace, Resource, WorkloadEndpoint
from core.resources.network import EndpointPort, WorkloadEndpointSpec
from core.snapshot import Snapshot
from policy.evaluate import Packet


def resource(manifest: Mapping[str, Any]) -> Resource:
    """A manifest as its class."""
    return msgspec.convert(dict(manifest), BY_MANIFEST[manifest["apiVersion"], manifest["kind"]])


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Namespace:
    return Namespace(metadata=Metadata(name=name, labels=labels or {}))


def pod(
    home: str,
    name: str,
    addresses: Iterable[str],
    labels: Mapping[str, str] | None = None,
    ports: Iterable[EndpointPort] = (),
    **spec: Any,
) -> WorkloadEndpoint:
    """A pod's endpoint as the CNI plugin would write it."""
    return WorkloadEndpoint(
        metadata=Metadata(name=workload_endpoint_name("n1", name), namespace=home, labels=labels or {}),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node="n1",
            pod=name,
            endpoint="eth0",
            ip_networks=[f"{address}/{ip_address(address).max_prefixlen}" for address in addresses],
            ports=list(ports),
            **{"profiles": [f"kns.{home}"], **spec},
        ),
    )


def snapshot(resources: Iterable[Resource]) -> Snapshot:
    return Snapshot().apply(1, [(each.key, each) for each in resources])


def key(home: str, name: str) -> Key:
    return Key(WorkloadEndpoint.KIND, home, workload_endpoint_name("n1", name))


def packet(
    source: str,
    destination: str,
    protocol: int,
    *,
    ingress: bool,
    sport: int | None = None,
    dport: int | None = None,
    icmp: tuple[int, int] | None = None,
) -> Packet:
    """A flow's first packet, seen from one end."""
    here, there = (destination, source) if ingress else (source, destination)
    return Packet(
        peer=ip_address(there), local=ip_address(here), protocol=protocol, sport=sport, dport=dport, icmp=icmp
    )
