"""This node's workload endpoints: who they are, and what each needs of the kernel apart from policy.

An endpoint that cannot be enforced is set aside, with the reason, and stays cut off: an interface outside the
`mus` prefix would slip past the filter, and two endpoints that claim one interface or one address leave open whose
policy applies. The one that sorts first keeps what both claim, so that the outcome depends on the state alone. An
address that is no pod's, or another's by IPAM's books, would draw other people's traffic (`felix.claims`).

Anti-spoofing is exact and ours (`felix.filter`), so a workload interface's `rp_filter` stays as the kernel has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from operator import itemgetter
from typing import Final

from core.addr import Address, Network, host_prefix
from core.names import WORKLOAD_PREFIX, Key
from core.resources import WorkloadEndpoint
from core.routing import Metric
from core.snapshot import Snapshot
from felix.claims import Books
from linux.model import Facts, Link, NextHop, Route, RouteKey

INTERFACE: Final = re.compile(rf"(?!muslin){WORKLOAD_PREFIX}[0-9A-Za-z_-]{{1,12}}")
"""A workload interface's name: at most 15 bytes, nothing that nft would read as syntax, and not one of our tunnels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One local endpoint; `link` is None while its interface does not exist.

    `spoofs` are the prefixes from which it may send besides its own addresses: disjoint, as few as will do.
    """

    key: Key
    interface: str
    addresses: tuple[Address, ...]
    link: Link | None
    spoofs: tuple[Network, ...] = ()

    @property
    def name(self) -> str:
        """As the status spells it."""
        return f"{self.key.namespace}/{self.key.name}"

    @property
    def pending(self) -> str:
        """Why it cannot be up yet; "" when nothing is awaited."""
        if self.link is None:
            return f"there is no interface {self.interface} yet"
        return "" if self.link.up else f"interface {self.interface} is down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """This node's endpoints in order of key, and those set aside with the reason."""

    local: tuple[Endpoint, ...]
    rejected: Mapping[Key, str]


def endpoints(snapshot: Snapshot, facts: Facts, node: str, books: Books | None = None) -> Endpoints:
    """The endpoints whose `spec.node` is `node`. `books`, when given, are those of the same snapshot."""
    local: list[Endpoint] = []
    rejected: dict[Key, str] = {}
    holders: dict[str, Key] = {}
    books = books or Books(snapshot)
    here = [(key, each) for key, each in snapshot.of(WorkloadEndpoint).items() if each.spec.node == node]
    for key, endpoint in sorted(here, key=itemgetter(0)):
        reason = _objection(endpoint, holders, books)
        if reason:
            rejected[key] = reason
            continue
        interface, addresses = endpoint.spec.interface_name, tuple(sorted(set(endpoint.spec.addresses), key=_order))
        holders.update(dict.fromkeys([interface, *map(str, addresses)], key))
        local.append(
            Endpoint(
                key=key,
                interface=interface,
                addresses=addresses,
                link=facts.links.get(interface),
                spoofs=_spoofs(endpoint.spec.allow_spoofed_source_prefixes),
            )
        )
    return Endpoints(local=tuple(local), rejected=rejected)


def _spoofs(texts: Iterable[str]) -> tuple[Network, ...]:
    nets = [ip_network(text, strict=False) for text in texts]
    four = [net for net in nets if isinstance(net, IPv4Network)]
    six = [net for net in nets if isinstance(net, IPv6Network)]
    return (*collapse_addresses(four), *collapse_addresses(six))


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _objection(endpoint: WorkloadEndpoint, holders: Mapping[str, Key], books: Books) -> str:
    interface = endpoint.spec.interface_name
    if not INTERFACE.fullmatch(interface):
        return f"spec.interfaceName: {interface!r} is not {WORKLOAD_PREFIX!r} and 1 to 12 letters, digits, _ or -"
    try:
        addresses = endpoint.spec.addresses
    except ValueError as error:
        return f"spec.ipNetworks: {error}"
    try:
        _spoofs(endpoint.spec.allow_spoofed_source_prefixes)
    except ValueError as error:
        return f"spec.allowSpoofedSourcePrefixes: {error}"
    if reason := next(filter(None, (books.objection(endpoint, each) for each in addresses)), ""):
        return f"spec.ipNetworks: {reason}"
    taken = next((claim for claim in (interface, *map(str, addresses)) if claim in holders), None)
    return f"{taken} belongs to {holders[taken]}" if taken else ""


def host_routes(endpoint: Endpoint) -> Iterator[tuple[RouteKey, Route]]:
    """A /32 or /128 to each address, on link, while the interface is up."""
    if endpoint.link is None or not endpoint.link.up:
        return
    route = Route(next_hops=(NextHop(endpoint.link.index),))
    for address in endpoint.addresses:
        yield RouteKey(host_prefix(address), Metric.LOCAL), route


def sysctls(endpoint: Endpoint) -> Iterator[tuple[str, str]]:
    """What the host's end of the veth needs so that the pod's 169.254.1.1 (or fe80::) next hop answers.

    `route_localnet` lets a pod reach a loopback service that somebody DNATs to; a pod that writes 127/8 itself is
    dropped by the filter.
    """
    if endpoint.link is None:
        return
    name, versions = endpoint.interface, {address.version for address in endpoint.addresses}
    if 4 in versions:
        yield f"net/ipv4/conf/{name}/proxy_arp", "1"
        yield f"net/ipv4/neigh/{name}/proxy_delay", "0"
        yield f"net/ipv4/conf/{name}/route_localnet", "1"
        yield f"net/ipv4/conf/{name}/forwarding", "1"
    if 6 in versions:
        yield f"net/ipv6/conf/{name}/proxy_ndp", "1"
        yield f"net/ipv6/neigh/{name}/proxy_delay", "0"
        yield f"net/ipv6/conf/{name}/forwarding", "1"
        yield f"net/ipv6/conf/{name}/accept_ra", "0"
        yield f"net/ipv6/conf/{name}/accept_dad", "0"
