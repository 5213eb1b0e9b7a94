"""Rules for Kubernetes' services and their endpoint slices: Kubernetes' own, as far as policy reads them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from core import values
from core.errors import Problem
from core.resources import EndpointSlice, Service
from core.validate.checks import at_most, each, name, one_of, reads, when_set

ADDRESS_TYPES: Final = ("IPv4", "IPv6", "FQDN")
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")

MOST_ENDPOINTS: Final = 1000
MOST_ADDRESSES: Final = 100
MOST_PORTS: Final = 20_000


def service(given: Service) -> Iterator[Problem]:
    """A Service."""
    spec = given.spec
    yield from one_of("spec.type", spec.type, TYPES)
    if spec.cluster_ip != "None":
        yield from when_set("spec.clusterIP", spec.cluster_ip, values.address)
    if spec.cluster_ips != ["None"]:
        yield from each("spec.clusterIPs", spec.cluster_ips, values.address)
    yield from each("spec.externalIPs", spec.external_ips, values.address)
    yield from when_set("spec.loadBalancerIP", spec.load_balancer_ip, values.address)
    yield from each("spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges, values.loose_network)
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if not port.name and len(spec.ports) > 1:
            yield Problem(path=f"{path}.name", why="is required where there are several ports")
        yield from one_of(f"{path}.protocol", port.protocol, PROTOCOLS)
        yield from reads(f"{path}.port", port.port, values.port_number)


def endpoint_slice(given: EndpointSlice) -> Iterator[Problem]:
    """An EndpointSlice."""
    yield from one_of("addressType", given.address_type or "''", ADDRESS_TYPES)
    yield from at_most("endpoints", given.endpoints, MOST_ENDPOINTS)
    yield from at_most("ports", given.ports, MOST_PORTS)
    version = {"IPv4": 4, "IPv6": 6}.get(given.address_type)
    read = name if version is None else partial(values.address, version=version)
    for index, endpoint in enumerate(given.endpoints):
        path = f"endpoints[{index}].addresses"
        if not endpoint.addresses:
            yield Problem(path=path, why="is empty: an endpoint has an address")
        yield from at_most(path, endpoint.addresses, MOST_ADDRESSES)
        yield from each(path, endpoint.addresses, read)
    for index, port in enumerate(given.ports):
        yield from one_of(f"ports[{index}].protocol", port.protocol or "''", PROTOCOLS)
        if port.port is not None:
            yield from reads(f"ports[{index}].port", port.port, values.port_number)
