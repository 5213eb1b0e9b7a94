"""A pod's one wire: a veth pair, what both ends need, and how to see whether it is there.

    node                                  pod
    mus0123456789a  ee:ee:ee:ee:ee:ee ──  eth0   10.244.1.7/32, fd00::7/128
                    fe80::ecee:eeff:feee:eeee    default via 169.254.1.1, via fe80::ecee:eeff:feee:eeee

No subnet and no bridge: to the pod, everything lies behind its gateway. The host answers for the IPv4 one by proxy
ARP (felix sees to that), so nobody has that address; the IPv6 one is the host end's own, from its MAC. The route on the
host, the sysctls of its end, and policy are felix's: until it has been there, the pod is cut off.

Every step may be done again. Nothing here awaits, because a network namespace belongs to the thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

from core.addr import Address, Family, Interface, host_prefix
from core.errors import MuslinError
from linux import interfaces, netns, sysctl
from linux.interfaces import End
from linux.model import Link, NextHop
from linux.netlink import Netlink

HOST_MAC: Final = "ee:ee:ee:ee:ee:ee"
GATEWAYS: Final = {Family.V4: ip_address("169.254.1.1"), Family.V6: ip_address("fe80::ecee:eeff:feee:eeee")}
"""What a pod takes for its router."""

_LINK_LOCAL: Final = ip_interface(f"{GATEWAYS[Family.V6]}/64")
_EVERYWHERE: Final = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a wire goes: its host end's name, and its name inside the namespace at the path `netns`."""

    host: str
    netns: str
    inside: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """Both ends of a wire that is there, and the addresses of the pod's end."""

    host: Link
    pod: Link
    addresses: tuple[Interface, ...]


class NoNamespace(MuslinError):
    """The pod's network namespace is not there."""


class OwnNamespace(MuslinError):
    """The pod's network namespace is the node's."""


def require(place: Place) -> None:
    """Raise `NoNamespace` or `OwnNamespace` unless a pod can be wired there."""
    try:
        there, ours = os.stat(place.netns), os.stat("/proc/thread-self/ns/net")
    except OSError as error:
        raise NoNamespace(f"there is no network namespace at {place.netns}: {error.strerror}") from error
    if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
        raise OwnNamespace(f"{place.netns} is the node's own network namespace; a pod has one of its own")


def attach(place: Place, addresses: Iterable[Address], mtu: int) -> Wire:
    """Make the wire, or what is missing of it. A host end that leads elsewhere, left by a pod of old, is replaced.

    Raises `MuslinError` when the pod has another interface of that name already, or is not there.
    """
    own = tuple(addresses)
    with Netlink() as node, _speaking_in(place) as pod:
        if _paired(node, pod, place) is None:
            _make(node, pod, place, mtu)
        found = _paired(node, pod, place)
        if found is None:
            raise MuslinError(f"{place.host} went away while {place.inside} in {place.netns} was wired to it")
        host, inside = found
        if any(address.version == 6 for address in own):
            _prepare_ipv6(place)
        _finish_pod(pod, inside, own)
        interfaces.set_link(node, host.index, up=True)
        if any(address.version == 6 for address in own):
            interfaces.add_address(node, host.index, _LINK_LOCAL)
    wire = look(place)
    if wire is None:
        raise MuslinError(f"{place.host} went away as soon as it was made")
    return wire


def look(place: Place) -> Wire | None:
    """The wire as it is; None unless both ends are there and are each other's."""
    with Netlink() as node, _speaking_in(place) as pod:
        found = _paired(node, pod, place)
        if found is None:
            return None
        host, inside = found
        held = (address for index, address in interfaces.addresses(pod) if index == inside.index)
        return Wire(host=host, pod=inside, addresses=tuple(each for each in held if not each.is_link_local))


def detach(place: Place, *, certain: bool) -> None:
    """Remove the wire; gone already is success. Unless `certain`, only if its host end does lead to that place."""
    with Netlink() as node:
        if certain or _leads_there(node, place):
            interfaces.delete_link(node, place.host)


def _leads_there(node: Netlink, place: Place) -> bool:
    if not place.netns:
        return False
    try:
        with _speaking_in(place) as pod:
            return _paired(node, pod, place) is not None
    except NoNamespace:  # and the kernel takes the wire with it
        return False


@contextmanager
def _speaking_in(place: Place) -> Iterator[Netlink]:
    try:
        with netns.inside(place.netns):
            opened = Netlink()
    except OSError as error:
        raise NoNamespace(f"there is no network namespace at {place.netns}: {error.strerror}") from error
    with opened:
        yield opened


def _paired(node: Netlink, pod: Netlink, place: Place) -> tuple[Link, Link] | None:
    host, inside = interfaces.find(node, place.host), interfaces.find(pod, place.inside)
    if host is None or inside is None:
        return None
    ends = interfaces.peer_index(node, place.host), interfaces.peer_index(pod, place.inside)
    return (host, inside) if ends == (inside.index, host.index) else None


def _make(node: Netlink, pod: Netlink, place: Place, mtu: int) -> None:
    if interfaces.find(pod, place.inside) is not None:
        raise MuslinError(f"{place.netns} has an interface {place.inside} already, and it is not ours")
    interfaces.delete_link(node, place.host)
    with open(place.netns) as there:
        far = End(name=place.inside, namespace=there.fileno())
        interfaces.add_veth(node, End(name=place.host, mac=HOST_MAC), far, mtu)


def _prepare_ipv6(place: Place) -> None:
    """Neither end looks for duplicates: the wire has two ends, and while one looks the pod has no gateway."""
    _sysctls(place.host)
    with netns.inside(place.netns):
        _sysctls(place.inside)


def _sysctls(device: str) -> None:
    sysctl.write(f"net/ipv6/conf/{device}/disable_ipv6", "0")
    sysctl.write(f"net/ipv6/conf/{device}/accept_dad", "0")


def _finish_pod(pod: Netlink, inside: Link, own: tuple[Address, ...]) -> None:
    for address in own:
        interfaces.add_address(pod, inside.index, ip_interface(host_prefix(address)))
    interfaces.set_link(pod, inside.index, up=True)
    for address in own:
        gateway = GATEWAYS[Family(address.version)]
        routes = [(_EVERYWHERE[address.version], NextHop(inside.index, gateway))]
        if address.version == 4:
            routes.insert(0, (host_prefix(gateway), NextHop(inside.index)))
        interfaces.add_routes(pod, routes)
