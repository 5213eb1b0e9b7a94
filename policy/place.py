"""Addresses as plain integers: of a hundred thousand, each costs what an integer does.

An IPv4 address is its number; an IPv6 address is its number and 2**32, so that no two are one.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Final, TypeAlias

from core.addr import Address, Family
from core.resources.network import WorkloadEndpoint

Place: TypeAlias = int

BEYOND_V4: Final = 1 << 32
_OCTETS: Final = {str(number): number for number in range(256)}


def place_of(address: Address) -> Place:
    """Of one address."""
    return int(address) if address.version == 4 else int(address) + BEYOND_V4


def family_of(place: Place) -> Family:
    """Whether it is an IPv4 or an IPv6 address."""
    return Family.V4 if place < BEYOND_V4 else Family.V6


def number_of(place: Place) -> int:
    """The address as the number that its family has for it."""
    return place if place < BEYOND_V4 else place - BEYOND_V4


def readable(place: Place) -> Address:
    """The address."""
    return IPv4Address(place) if place < BEYOND_V4 else IPv6Address(place - BEYOND_V4)


def places_of(endpoint: WorkloadEndpoint) -> list[Place]:
    """Of each address of a workload endpoint, once each. Raises ValueError when one cannot be read."""
    networks = endpoint.spec.ip_networks
    if len(networks) == 1:
        return [_place(networks[0])]
    return list(dict.fromkeys(map(_place, networks)))


def _place(text: str) -> Place:
    address, _, length = text.partition("/")
    parts = address.split(".")
    if len(parts) == 4 and length == "32":
        try:
            first, second, third, fourth = parts
            return _OCTETS[first] << 24 | _OCTETS[second] << 16 | _OCTETS[third] << 8 | _OCTETS[fourth]
        except KeyError:
            pass  # whatever it is, ipaddress has the last word
    return place_of(ip_interface(text).ip)
