"""Addresses of services that a node tells its peers: pure, from a snapshot. calico.md 1.4, "Service ads".

    a configured range                                                                told as it stands, by every node
    a service with externalTrafficPolicy Local    each of its addresses in a range    where a ready endpoint is local
    other services, load balancer's addresses,    each of them in a range             by every node, when any endpoint
      serviceLoadBalancerAggregation Disabled                                           is ready; the range is not told
    other services, a range of one address        that address, once a service has    by every node
      of external or load balancer addresses        it

The ranges are BGPConfiguration's: clusterIPs in serviceClusterIPs, externalIPs in serviceExternalIPs, addresses that a
load balancer gave in serviceLoadBalancerIPs. What lies in none is never told: whoever writes a Service must not be able
to draw any address's traffic here. A node with the label that excludes it from load balancers tells nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from core import values
from core.addr import Address, Network, contains, host_prefix
from core.resources import BGPConfiguration, EndpointSlice, Node, Service
from core.resources.bgp import BGPConfigurationSpec, CIDREntry
from core.snapshot import Snapshot
from datastore.ipam.balancing import ingress

EXCLUDED: Final = "node.kubernetes.io/exclude-from-external-load-balancers"
"""The label of a node that takes no traffic for services from outside, whatever its value."""

TYPES: Final = frozenset({"ClusterIP", "NodePort", "LoadBalancer"})

ServiceName: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Ranges:
    cluster: tuple[Network, ...]
    external: tuple[Network, ...]
    balanced: tuple[Network, ...]
    aggregated: bool


@dataclass(slots=True)
class _Ready:
    """IP versions in which a service has ready endpoints, anywhere and here."""

    anywhere: set[int] = field(default_factory=set)
    here: set[int] = field(default_factory=set)


def told(snapshot: Snapshot, node: str) -> frozenset[Network]:
    """What `node` tells of services. Raises `ValueError`, naming the field, for a range that cannot be read."""
    ours, cluster = snapshot.get(Node, node), snapshot.get(BGPConfiguration, "default")
    if cluster is None or (ours is not None and EXCLUDED in ours.metadata.labels):
        return frozenset()
    ranges = _ranges(cluster.spec)
    if not (ranges.cluster or ranges.external or ranges.balanced):
        return frozenset()
    found = {(key.namespace, key.name): each for key, each in snapshot.of(Service).items() if _eligible(each)}
    ready = _ready(snapshot.of(EndpointSlice).values(), found.keys(), node)
    single = {prefix for name, each in found.items() for prefix in _single(each, ready[name], ranges)}
    return frozenset({*_whole(ranges), *single})


def _ranges(spec: BGPConfigurationSpec) -> _Ranges:
    return _Ranges(
        cluster=_networks("serviceClusterIPs", spec.service_cluster_ips),
        external=_networks("serviceExternalIPs", spec.service_external_ips),
        balanced=_networks("serviceLoadBalancerIPs", spec.service_load_balancer_ips),
        aggregated=spec.service_load_balancer_aggregation != "Disabled",
    )


def _networks(name: str, entries: Sequence[CIDREntry]) -> tuple[Network, ...]:
    found: list[Network] = []
    for index, entry in enumerate(entries):
        try:
            found.append(values.network_or_address(entry.cidr))
        except ValueError as error:
            raise ValueError(f"BGPConfiguration default spec.{name}[{index}].cidr: {error}") from None
    return tuple(found)


def _eligible(service: Service) -> bool:
    return service.spec.type in TYPES and service.spec.cluster_ip not in ("", "None")


def _ready(slices: Iterable[EndpointSlice], wanted: Iterable[ServiceName], node: str) -> Mapping[ServiceName, _Ready]:
    found = {name: _Ready() for name in wanted}
    versions = {"IPv4": 4, "IPv6": 6}
    for each in slices:
        service = found.get((each.metadata.namespace, each.service))
        version = versions.get(each.address_type)
        if service is None or version is None:
            continue
        for endpoint in each.endpoints:
            if endpoint.ready:
                service.anywhere.add(version)
                if endpoint.node_name == node:
                    service.here.add(version)
    return found


def _whole(ranges: _Ranges) -> Iterator[Network]:
    yield from ranges.cluster
    yield from (each for each in ranges.external if not _one(each))
    yield from (each for each in ranges.balanced if ranges.aggregated and not _one(each))


def _single(service: Service, ready: _Ready, ranges: _Ranges) -> Iterator[Network]:
    if service.spec.external_traffic_policy == "Local":
        addresses = [
            *_within(_cluster_ips(service), ranges.cluster),
            *_within(service.spec.external_ips, ranges.external),
            *_within(_balanced_ips(service), ranges.balanced),
        ]
        yield from (host_prefix(each) for each in addresses if each.version in ready.here)
        return
    yield from map(host_prefix, _within(service.spec.external_ips, list(filter(_one, ranges.external))))
    for address in _within(_balanced_ips(service), ranges.balanced):
        prefix = host_prefix(address)
        if prefix in ranges.balanced or (not ranges.aggregated and address.version in ready.anywhere):
            yield prefix


def _cluster_ips(service: Service) -> Iterable[str]:
    return service.spec.cluster_ips or [service.spec.cluster_ip]


def _balanced_ips(service: Service) -> Iterable[str]:
    return map(str, ingress.addresses(service))


def _within(texts: Iterable[str], ranges: Sequence[Network]) -> list[Address]:
    """The addresses that lie in one of `ranges`. One that cannot be read lies in none."""
    found: list[Address] = []
    for text in texts:
        try:
            address = values.address(text)
        except ValueError:
            continue
        if any(contains(each, address) for each in ranges):
            found.append(address)
    return found


def _one(prefix: Network) -> bool:
    return prefix.prefixlen == prefix.max_prefixlen
