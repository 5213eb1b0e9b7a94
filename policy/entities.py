"""Everything that has labels and addresses, as the classes of addresses need it."""

from __future__ import annotations

from collections.abc import Iterable

from core import labels, values
from core.addr import Address
from core.resources.network import EndpointPort, HostEndpoint, WorkloadEndpoint
from core.resources.policy import GlobalNetworkSet, NetworkSet
from core.snapshot import Snapshot
from policy.identity import Entity


def entities(snapshot: Snapshot) -> list[Entity]:
    """Pods, hosts' interfaces and network sets of the whole cluster, in the order of their names."""
    found = [
        Entity(
            labels=labels.workload(snapshot, pod),
            addresses=pod.spec.addresses,
            ports=named_ports(pod.spec.ports),
        )
        for _, pod in sorted(snapshot.of(WorkloadEndpoint).items())
    ]
    found += [
        Entity(
            labels=labels.host(snapshot, host),
            addresses=_addresses(host.spec.expected_ips),
            ports=named_ports(host.spec.ports),
        )
        for _, host in sorted(snapshot.of(HostEndpoint).items())
    ]
    found += [
        Entity(
            labels=labels.network_set(snapshot, each),
            nets=tuple(map(values.loose_network, each.spec.nets)),
        )
        for _, each in sorted(snapshot.of(NetworkSet).items())
    ]
    found += [
        Entity(labels=labels.network_set(snapshot, every), nets=tuple(map(values.loose_network, every.spec.nets)))
        for _, every in sorted(snapshot.of(GlobalNetworkSet).items())
    ]
    return found


def named_ports(ports: Iterable[EndpointPort]) -> tuple[tuple[str, int, int], ...]:
    """Name, protocol and number of each."""
    return tuple((port.name, values.protocol(port.protocol), port.port) for port in ports)


def _addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    return tuple(values.address(text) for text in texts)
