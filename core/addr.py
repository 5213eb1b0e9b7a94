"""Addresses and prefixes of both families, typed once."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Interface: TypeAlias = IPv4Interface | IPv6Interface


class Family(IntEnum):
    """An IP version, as `Address.version` gives it."""

    V4 = 4
    V6 = 6


def contains(outer: Network, inner: Network | Address) -> bool:
    """Whether `inner` lies wholly within `outer`; false across families."""
    if isinstance(outer, IPv4Network):
        if isinstance(inner, IPv4Address):
            return inner in outer
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    if isinstance(inner, IPv6Address):
        return inner in outer
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


def overlap(one: Network, other: Network) -> bool:
    """Whether two prefixes have an address in common."""
    return contains(one, other) or contains(other, one)


def order(prefix: Network) -> tuple[int, int, int]:
    """What to sort prefixes by: IPv4 first, then by address, the wider first."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def host_prefix(address: Address) -> Network:
    """The /32 or /128 of one address."""
    return ip_network(address)
