"""Who answers for a service: the addresses and ports of its EndpointSlices, as rules mean them.

An endpoint counts unless its slice says that it is not ready. A slice that cannot be read may be of any service of its
namespace: then what is known of those services is what surely answers, and nobody can tell what else does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from core import values
from core.addr import Address, Network, host_prefix, order
from core.resources import EndpointSlice
from core.snapshot import Snapshot

ServiceName: TypeAlias = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Answering:
    """Who answers for one service. `ports`: protocol, numbers, and the addresses that have all of these.

    No address on one port of one protocol is in two entries. Without `sure` there may be more that cannot be read.
    """

    addresses: tuple[Network, ...] = ()
    ports: tuple[tuple[int, tuple[int, ...], tuple[Network, ...]], ...] = ()
    sure: bool = True


NOBODY = Answering()


@dataclass(frozen=True, slots=True)
class Services:
    """Who answers, by service. One that is not in it has no endpoint that is ready."""

    answering: Mapping[ServiceName, Answering] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()

    def of(self, namespace: str, name: str) -> Answering:
        """Who answers for a service."""
        return self.answering.get((namespace, name), Answering(sure=False) if namespace in self.unread else NOBODY)


NO_SERVICES = Services()


def services(snapshot: Snapshot, wanted: Iterable[ServiceName]) -> Services:
    """The services `wanted`. Slices that name none of them are not looked into."""
    names = set(wanted)
    slices: dict[ServiceName, list[EndpointSlice]] = defaultdict(list)
    for key, each in sorted(snapshot.of(EndpointSlice).items()) if names else ():
        if (key.namespace, each.service) in names:
            slices[key.namespace, each.service].append(each)
    unread = frozenset(key.namespace for key in snapshot.problems if key.kind == EndpointSlice.KIND)
    return Services({name: answering(found, sure=name[0] not in unread) for name, found in slices.items()}, unread)


def answering(slices: Sequence[EndpointSlice], *, sure: bool = True) -> Answering:
    """Who answers for the service that all of `slices` are of."""
    everyone: set[Address] = set()
    on_port: dict[tuple[int, int], set[Address]] = defaultdict(set)
    for each in slices:
        ready = _ready(each)
        everyone |= ready
        for port in each.ports:
            if port.port is not None:
                on_port[values.protocol(port.protocol), port.port] |= ready
    alike: dict[tuple[int, frozenset[Address]], list[int]] = defaultdict(list)
    for (protocol, number), addresses in sorted(on_port.items()):
        if addresses:
            alike[protocol, frozenset(addresses)].append(number)
    ports = ((protocol, tuple(numbers), _nets(addresses)) for (protocol, addresses), numbers in alike.items())
    return Answering(_nets(everyone), tuple(ports), sure)


def _ready(given: EndpointSlice) -> set[Address]:
    if given.address_type not in ("IPv4", "IPv6"):
        return set()
    return {values.address(text) for each in given.endpoints if each.ready for text in each.addresses}


def _nets(addresses: Iterable[Address]) -> tuple[Network, ...]:
    return tuple(sorted(map(host_prefix, addresses), key=order))
