"""This node's workload endpoints: who they are, and what each needs of the kernel apart from policy.

An endpoint that cannot be enforced is set aside, with the reason, and stays cut off: an interface outside the
`mus` prefix would slip past the filter, and two endpoints that claim one interface or one address leave open whose
policy applies. The one that sorts first keeps what both claim, so that the outcome depends on the state alone. An
address that is no pod's, or another's by IPAM's books, would draw other people's traffic (`felix.claims`).

Anti-spoofing is exact and ours (`felix.filter`), so a workload interface's `rp_filter` stays as the kernel has it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from types import MappingProxyType
from typing import Final

from core.addr import Address, Network, host_prefix
from core.memo import Memo
from core.names import WORKLOAD_PREFIX, Key
from core.resources import IPAMBlock, IPPool, Node, WorkloadEndpoint
from core.routing import Metric
from core.snapshot import Snapshot
from felix.claims import Books, nobodys
from felix.hosts import is_workloads
from felix.view import seen
from linux.model import Facts, Link, NextHop, Route, RouteKey

INTERFACE: Final = re.compile(rf"(?!muslin){WORKLOAD_PREFIX}[0-9A-Za-z_-]{{1,12}}")
"""A workload interface's name: at most 15 bytes, nothing that nft would read as syntax, and not one of our tunnels."""


_SYSCTLS: Final[Mapping[int, Mapping[str, str]]] = {
    4: {
        "net/ipv4/conf/{}/proxy_arp": "1",
        "net/ipv4/neigh/{}/proxy_delay": "0",
        "net/ipv4/conf/{}/route_localnet": "1",
        "net/ipv4/conf/{}/forwarding": "1",
    },
    6: {
        "net/ipv6/conf/{}/disable_ipv6": "0",
        "net/ipv6/conf/{}/proxy_ndp": "1",
        "net/ipv6/neigh/{}/proxy_delay": "0",
        "net/ipv6/conf/{}/forwarding": "1",
        "net/ipv6/conf/{}/accept_ra": "0",
        "net/ipv6/conf/{}/accept_dad": "0",
    },
}

CLAIMED: Final = (IPPool, IPAMBlock, Node)
"""Kinds that say whose an address may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One local endpoint; `link` is None while its interface does not exist.

    `spoofs` are the prefixes from which it may send besides its own addresses: disjoint, as few as will do.
    """

    key: Key
    interface: str
    addresses: tuple[Address, ...]
    link: Link | None
    container: str = ""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one object says for itself. `wants` is what no two may have: its interface, and each of its addresses.

    `wrong` is why it cannot be an endpoint, whatever others say; "" when it can.
    """

    key: Key
    endpoint: WorkloadEndpoint
    interface: str
    addresses: tuple[Address, ...] = ()
    wants: tuple[str, ...] = ()
    spoofs: tuple[Network, ...] = ()
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Claims:
    """This node's claims that stand, in order of key, and those set aside with the reason."""

    local: tuple[Claim, ...]
    rejected: Mapping[Key, str]


def claims(snapshot: Snapshot, node: str, memo: Memo | None = None) -> Claims:
    """Of the objects whose `spec.node` is `node`: no link has a part in it."""
    memo = memo or Memo()
    books = memo(Books, seen(memo, snapshot, *CLAIMED), memo)
    return memo.steady(_settled, memo.each(_read, snapshot.of(WorkloadEndpoint), node), books)


def endpoints(claimed: Claims, links: Mapping[str, Link], memo: Memo | None = None) -> Endpoints:
    """The endpoints as the host's links are now."""
    memo = memo or Memo()
    local = tuple([memo(_joined, each, links.get(each.interface)) for each in claimed.local])
    return Endpoints(local=local, rejected=claimed.rejected)


def _joined(claim: Claim, link: Link | None) -> Endpoint:
    return Endpoint(
        key=claim.key,
        interface=claim.interface,
        addresses=claim.addresses,
        link=link,
        container=claim.endpoint.spec.container_id,
        spoofs=claim.spoofs,
    )


def _settled(found: Mapping[Key, Claim], books: Books) -> Claims:
    local: list[Claim] = []
    rejected: dict[Key, str] = {}
    holders: dict[str, Key] = {}
    for key in sorted(found):
        claim = found[key]
        reason = claim.wrong or _objection(claim, holders, books)
        if reason:
            rejected[key] = reason
            continue
        holders.update(dict.fromkeys(claim.wants, key))
        local.append(claim)
    return Claims(tuple(local), MappingProxyType(rejected))


def _read(endpoint: WorkloadEndpoint, node: str) -> Claim | None:
    """What the object claims; None when it is another node's."""
    if endpoint.spec.node != node:
        return None
    key, interface = endpoint.key, endpoint.spec.interface_name
    try:
        return _claim(key, endpoint)
    except ValueError as error:
        return Claim(key=key, endpoint=endpoint, interface=interface, wrong=str(error))


def _claim(key: Key, endpoint: WorkloadEndpoint) -> Claim:
    """Raises ValueError that says what is wrong with which field."""
    interface = endpoint.spec.interface_name
    if not INTERFACE.fullmatch(interface):
        raise ValueError(
            f"spec.interfaceName: {interface!r} is not {WORKLOAD_PREFIX!r} and 1 to 12 letters, digits, _ or -"
        )
    try:
        addresses = tuple(sorted(set(endpoint.spec.addresses), key=_order))
    except ValueError as error:
        raise ValueError(f"spec.ipNetworks: {error}") from None
    try:
        spoofs = _spoofs(endpoint.spec.allow_spoofed_source_prefixes)
    except ValueError as error:
        raise ValueError(f"spec.allowSpoofedSourcePrefixes: {error}") from None
    if reason := next(filter(None, map(nobodys, addresses)), ""):
        raise ValueError(f"spec.ipNetworks: {reason}")
    wants = (interface, *map(str, addresses))
    return Claim(key=key, endpoint=endpoint, interface=interface, addresses=addresses, wants=wants, spoofs=spoofs)


def _spoofs(texts: Iterable[str]) -> tuple[Network, ...]:
    nets = [ip_network(text, strict=False) for text in texts]
    four = [net for net in nets if isinstance(net, IPv4Network)]
    six = [net for net in nets if isinstance(net, IPv6Network)]
    return (*collapse_addresses(four), *collapse_addresses(six))


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _objection(claim: Claim, holders: Mapping[str, Key], books: Books) -> str:
    if reason := books.objection(claim.endpoint, claim.addresses):
        return f"spec.ipNetworks: {reason}"
    taken = next((each for each in claim.wants if each in holders), None)
    return f"{taken} belongs to {holders[taken]}" if taken is not None else ""


def host_routes(endpoint: Endpoint) -> Mapping[RouteKey, Route]:
    """A /32 or /128 to each address, on link, while the interface is up."""
    if endpoint.link is None or not endpoint.link.up:
        return {}
    route = Route(next_hops=(NextHop(endpoint.link.index),))
    return {RouteKey(host_prefix(address), Metric.LOCAL): route for address in endpoint.addresses}


def sysctls(endpoint: Endpoint) -> Mapping[str, str]:
    """What the host's end of the veth needs so that the pod's 169.254.1.1 (or fe80::) next hop answers.

    `route_localnet` lets a pod reach a loopback service that somebody DNATs to; a pod that writes 127/8 itself is
    dropped by the filter.
    """
    if endpoint.link is None:
        return {}
    name, found = endpoint.interface, dict[str, str]()
    for version in {address.version for address in endpoint.addresses}:
        found |= {path.format(name): value for path, value in _SYSCTLS[version].items()}
    return found


def device_sysctls(name: str) -> Iterator[str]:
    """Every sysctl that any part of felix sets for the device called `name`."""
    for paths in _SYSCTLS.values():
        yield from (path.format(name) for path in paths)
    yield f"net/ipv4/conf/{name}/rp_filter"


def lost_routes(local: Iterable[Endpoint], facts: Facts | None, devices: Collection[int]) -> Iterable[RouteKey] | None:
    """The routes that may be gone with these devices; None when others than endpoints' own may be."""
    if facts is None:
        return None
    gone = set(devices)
    if any(link.index in gone and not is_workloads(name) for name, link in facts.links.items()):
        return None
    return [key for each in local if each.link and each.link.index in gone for key in host_routes(each)]
