"""Everything that has labels and addresses, as the classes of addresses need it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from core import labels, values
from core.addr import Address, Network
from core.resources.network import EndpointPort, HostEndpoint, WorkloadEndpoint
from core.resources.policy import GlobalNetworkSet, NetworkSet
from core.snapshot import Snapshot
from policy.holders import Claims
from policy.identity import Entity

ANYWHERE: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

_Labelled: TypeAlias = WorkloadEndpoint | HostEndpoint | NetworkSet | GlobalNetworkSet
_LABELLED: Final = (WorkloadEndpoint, HostEndpoint, NetworkSet, GlobalNetworkSet)


def entities(snapshot: Snapshot, claims: Claims) -> list[Entity]:
    """Pods, hosts' interfaces and network sets of the whole cluster, in the order of their names.

    One that cannot be read may have any address: it lies everywhere, and surely nowhere.
    """
    found = []
    for key, pod in sorted(snapshot.of(WorkloadEndpoint).items()):
        for addresses, sure in ((claims.held.get(key), True), (claims.contested.get(key), False)):
            if addresses:
                found.append(
                    Entity(
                        labels=labels.workload(snapshot, pod),
                        addresses=tuple(addresses),
                        ports=named_ports(pod.spec.ports),
                        unknown=_unknown(snapshot, pod),
                        sure=sure,
                    )
                )
    found += [
        Entity(
            labels=labels.host(snapshot, host),
            addresses=_addresses(host.spec.expected_ips),
            ports=named_ports(host.spec.ports),
            unknown=_unknown(snapshot, host),
        )
        for _, host in sorted(snapshot.of(HostEndpoint).items())
    ]
    sets: list[NetworkSet | GlobalNetworkSet] = [
        *(each for _, each in sorted(snapshot.of(NetworkSet).items())),
        *(each for _, each in sorted(snapshot.of(GlobalNetworkSet).items())),
    ]
    found += [
        Entity(
            labels=labels.network_set(snapshot, each),
            nets=tuple(map(values.loose_network, each.spec.nets)),
            unknown=_unknown(snapshot, each),
        )
        for each in sets
    ]
    for key in sorted(snapshot.problems):
        if key.kind in {cls.KIND for cls in _LABELLED}:
            known, unknown = labels.of_unreadable(snapshot, key)
            found.append(Entity(labels=known, nets=ANYWHERE, unknown=unknown, sure=False))
    return found


def _unknown(snapshot: Snapshot, thing: _Labelled) -> labels.Unknown | None:
    return labels.unknown(snapshot, thing) if snapshot.problems else None


def named_ports(ports: Iterable[EndpointPort]) -> tuple[tuple[str, int, int], ...]:
    """Name, protocol and number of each."""
    return tuple((port.name, values.protocol(port.protocol), port.port) for port in ports)


def _addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    return tuple(values.address(text) for text in texts)
