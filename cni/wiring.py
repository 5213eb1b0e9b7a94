"""A pod's one wire: a veth pair, what both ends need, and how to see whether it is there.

    node                                  pod
    mus0123456789a  ee:ee:ee:ee:ee:ee ──  eth0   10.244.1.7/32, fd00::7/128
                    fe80::ecee:eeff:feee:eeee    default via 169.254.1.1, via fe80::ecee:eeff:feee:eeee

No subnet and no bridge: to the pod, everything lies behind its gateway. The host answers for the IPv4 one by proxy
ARP (felix sees to that), so nobody has that address; the IPv6 one is the host end's own, from its MAC. The route on the
host, the sysctls of its end, and policy are felix's: until it has been there, the pod is cut off.

    attach     the pair, up at both ends: before the addresses are known, while the datastore decides
    furnish    addresses, routes and sysctls of the pod's end
    look       how both ends are
    detach     away with it

Every step may be done again. Nothing here awaits, because a network namespace belongs to the thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Final

from core.addr import Address, Family, Interface, Network, host_prefix
from core.errors import MuslinError
from linux import interfaces, netns, sysctl
from linux.interfaces import End
from linux.model import Link, NextHop
from linux.netlink import Netlink
from linux.route_query import Ways

HOST_MAC: Final = "ee:ee:ee:ee:ee:ee"
GATEWAYS: Final = {Family.V4: ip_address("169.254.1.1"), Family.V6: ip_address("fe80::ecee:eeff:feee:eeee")}
"""What a pod takes for its router."""

EVERYWHERE: Final = {Family.V4: ip_network("0.0.0.0/0"), Family.V6: ip_network("::/0")}

_LINK_LOCAL: Final = ip_interface(f"{GATEWAYS[Family.V6]}/64")
_NO_ADDRESS: Final = "1"
"""As `addr_gen_mode`: what the kernel would give the host's end is tentative for a moment, what we give it is not."""
_LOOKS: Final = 500
_LOOK_S: Final = 0.001
"""How often, and how far apart in seconds, one looks whether an IPv6 address is in use."""

_FORWARDING: Final = {Family.V4: "net/ipv4/ip_forward", Family.V6: "net/ipv6/conf/all/forwarding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a wire goes: its host end's name, and its name `inside` the namespace.

    `netns` is an open descriptor of that namespace (None: it is not there), `path` what the runtime calls it.
    """

    host: str
    inside: str
    path: str
    netns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """Both ends of a wire that is there; `made` says that it was not there before."""

    host: Link
    pod: Link
    made: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Furniture:
    """What the pod's end is to have. `forward` lets the pod route for others."""

    addresses: tuple[Address, ...]
    routes: tuple[Network, ...]
    forward: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A wire as it was found: the addresses of the pod's end, what leads out of it through a gateway or to one, and the
    families whose gateway the host's end is."""

    wire: Wire
    addresses: frozenset[Interface]
    routes: frozenset[Network]
    gateways: frozenset[Family]


class NoNamespace(MuslinError):
    """The pod's network namespace is not there."""


class OwnNamespace(MuslinError):
    """The pod's network namespace is the node's."""


class Taken(MuslinError):
    """The pod has an interface of that name already, and it is not ours."""


class Joined(MuslinError):
    """The pod is on the wire already, by an interface of another name."""


def require(place: Place) -> None:
    """Raise `NoNamespace` or `OwnNamespace` unless a pod can be wired there."""
    try:
        there, ours = os.stat(_file(place)), os.stat("/proc/thread-self/ns/net")
    except OSError as error:
        raise NoNamespace(f"there is no network namespace at {place.path}: {error.strerror}") from error
    if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
        raise OwnNamespace(f"{place.path} is the node's own network namespace; a pod has one of its own")


def routes_of(addresses: Iterable[Address], wanted: Sequence[Network] | None) -> tuple[Network, ...]:
    """Where a pod with these addresses finds a way: to `wanted` in its families, None: everywhere."""
    families = {Family(each.version) for each in addresses}
    if wanted is None:
        return tuple(EVERYWHERE[family] for family in sorted(families))
    return tuple(each for each in wanted if each.version in families)


def attach(place: Place, mtu: int, mac: str) -> Wire:
    """Make the wire, or what is missing of it, up at both ends. A host end that leads elsewhere, left by a pod of old,
    is replaced.

    Raises `MuslinError` when the pod has another interface of that name already, has the wire by another name, or is
    not there.
    """
    require(place)
    with Netlink() as node, _inside(place), Netlink() as pod:
        found = _paired(node, pod, place)
        made = found is None
        if found is None:
            _make(node, pod, place, mtu, mac)
            found = _paired(node, pod, place)
        if found is None:
            raise MuslinError(f"{place.host} went away while {place.inside} in {place.path} was wired to it")
        host, inside = found
        _no_duplicates(place.inside)
        _batch(pod, [interfaces.link_change(inside.index, up=True, mtu=mtu)])
    return _host_up(place, Wire(host=host, pod=inside, made=made), mtu)


def _host_up(place: Place, wire: Wire, mtu: int) -> Wire:
    with Netlink() as node:
        _no_duplicates(place.host)
        _write(f"net/ipv6/conf/{place.host}/addr_gen_mode", _NO_ADDRESS)
        mac = "" if wire.host.mac == HOST_MAC else HOST_MAC
        _batch(node, [interfaces.link_change(wire.host.index, up=True, mtu=mtu, mac=mac)])
    return wire


def furnish(place: Place, wire: Wire, furniture: Furniture, mac: str) -> None:
    """Give the pod's end what it is to have, and take other addresses from it. Raises `MuslinError` or OSError."""
    families = {Family(each.version) for each in furniture.addresses}
    own = [ip_interface(host_prefix(each)) for each in furniture.addresses]
    requests = [interfaces.address_addition(wire.pod.index, each) for each in own]
    if Family.V4 in families:
        requests.append(interfaces.route_addition(host_prefix(GATEWAYS[Family.V4]), NextHop(wire.pod.index)))
    for destination in furniture.routes:
        hop = NextHop(wire.pod.index, GATEWAYS[Family(destination.version)])
        requests.append(interfaces.route_addition(destination, hop))
    with _inside(place), Netlink() as pod:
        if Family.V6 in families:
            _write(f"net/ipv6/conf/{place.inside}/disable_ipv6", "0")
        for family in families:
            _write(_FORWARDING[family], "1" if furniture.forward else "0")
        if not wire.made:
            for stale in _held(pod, wire.pod.index) - set(own):
                interfaces.delete_address(pod, wire.pod.index, stale)
        if wire.pod.mac != mac:
            _batch(pod, [interfaces.link_change(wire.pod.index, mac=mac)])
        # The host's end has one MAC address for ever. Its kernel answers for the IPv4 gateway only while it has a way
        # to it by another interface, which a node without a default route has not.
        gateways = [
            interfaces.neighbour_addition(wire.pod.index, GATEWAYS[each], HOST_MAC, permanent=True) for each in families
        ]
        _batch(pod, [*requests, *gateways])
        interfaces.find(pod, place.inside)  # asked for an end, the kernel lets it send at once, and not a little later
        _settle(furniture.addresses)
    _acquaint(place, wire, furniture, mac)


def _settle(addresses: Sequence[Address]) -> None:
    """Wait until the namespace takes what is sent to its IPv6 addresses: the kernel sees to that a little after it has
    given one (addrconf_dad_work), and what comes before is lost."""
    with Ways({}) as ways:
        for address in (each for each in addresses if each.version == 6):
            for _ in range(_LOOKS):
                if ways.to(address).kind == "local":
                    break
                time.sleep(_LOOK_S)


def _acquaint(place: Place, wire: Wire, furniture: Furniture, mac: str) -> None:
    """Tell the host who its new neighbour is, as the pod has been told. Had something been sent to the pod before it
    had its address, or had joined its group of listeners (a little later), the host would have asked in vain, and would
    ask again after a second.
    """
    requests = []
    if any(each.version == 6 for each in furniture.addresses):
        _write(f"net/ipv6/conf/{place.host}/disable_ipv6", "0")
        requests.append(interfaces.address_addition(wire.host.index, _LINK_LOCAL))
    requests += [interfaces.neighbour_addition(wire.host.index, each, mac) for each in furniture.addresses]
    with Netlink() as node:
        _batch(node, requests)
        interfaces.find(node, place.host)


def look(place: Place) -> View | None:
    """The wire as it is; None unless both ends are there and are each other's."""
    with Netlink() as node, _inside(place), Netlink() as pod:
        found = _paired(node, pod, place)
        if found is None:
            return None
        host, inside = found
        ways = [each for version in (4, 6) for each in interfaces.routes(pod, version)]
        at_host = {each for index, each in interfaces.addresses(node) if index == host.index}
        addresses = frozenset(_held(pod, inside.index))
    direct = host_prefix(GATEWAYS[Family.V4])
    return View(
        wire=Wire(host=host, pod=inside),
        addresses=addresses,
        routes=frozenset(to for to, hop in ways if hop.gateway is not None or to == direct),
        gateways=frozenset(_gateways(place.host, at_host)),
    )


def _gateways(device: str, addresses: Collection[Interface]) -> Iterator[Family]:
    with suppress(FileNotFoundError):
        if Path("/proc/sys/net/ipv4/conf", device, "proxy_arp").read_text().strip() == "1":
            yield Family.V4
    if _LINK_LOCAL in addresses:
        yield Family.V6


def detach(place: Place, *, certain: bool) -> None:
    """Remove the wire; gone already is success. Unless `certain`, only if its host end does lead to that place."""
    with Netlink() as node:
        if certain or _leads_there(node, place):
            interfaces.delete_link(node, place.host)


def _leads_there(node: Netlink, place: Place) -> bool:
    if place.netns is None:
        return False
    try:
        with _inside(place), Netlink() as pod:
            return _paired(node, pod, place) is not None
    except NoNamespace:  # and the kernel takes the wire with it
        return False


def _file(place: Place) -> str:
    if place.netns is None:
        raise NoNamespace(f"there is no network namespace at {place.path or 'CNI_NETNS, which is not set'}")
    return f"/proc/self/fd/{place.netns}"


@contextmanager
def _inside(place: Place) -> Iterator[None]:
    entering = netns.inside(_file(place))
    try:
        entering.__enter__()
    except OSError as error:
        raise NoNamespace(f"{place.path} is not a network namespace: {error.strerror}") from error
    try:
        yield
    finally:
        entering.__exit__(None, None, None)


def _paired(node: Netlink, pod: Netlink, place: Place) -> tuple[Link, Link] | None:
    outside, inside = interfaces.link_message(node, place.host), interfaces.link_message(pod, place.inside)
    if outside is None or inside is None:
        return None
    host, end = interfaces.unpack_link(outside), interfaces.unpack_link(inside)
    if host is None or end is None:
        return None
    ends = interfaces.peer_of(outside), interfaces.peer_of(inside)
    return (host, end) if ends == (end.index, host.index) else None


def _make(node: Netlink, pod: Netlink, place: Place, mtu: int, mac: str) -> None:
    if interfaces.find(pod, place.inside) is not None:
        raise Taken(f"{place.path} has an interface {place.inside} already, and it is not ours")
    if by := _other_end(node, pod, place):
        raise Joined(f"{place.path} is joined already, by {by}; muslin gives a pod one interface")
    interfaces.delete_link(node, place.host)
    assert place.netns is not None
    far = End(name=place.inside, mac=mac, namespace=place.netns)
    interfaces.add_veth(node, End(name=place.host, mac=HOST_MAC), far, mtu)


def _other_end(node: Netlink, pod: Netlink, place: Place) -> str:
    """By what name the wire ends in the pod; "" when it does not, or there is none."""
    outside = interfaces.link_message(node, place.host)
    host = interfaces.unpack_link(outside) if outside is not None else None
    if outside is None or host is None:
        return ""
    for data in interfaces.link_messages(pod):
        end = interfaces.unpack_link(data)
        if end is not None and (interfaces.peer_of(data), interfaces.peer_of(outside)) == (host.index, end.index):
            return end.name
    return ""


def _batch(netlink: Netlink, requests: Sequence[bytes]) -> None:
    for refusal in netlink.batch(requests).values():
        raise refusal


def _held(pod: Netlink, index: int) -> set[Interface]:
    return {each for at, each in interfaces.addresses(pod) if at == index and not each.is_link_local}


def _no_duplicates(device: str) -> None:
    """Neither end looks for duplicates: the wire has two ends, and while one looks the pod has no gateway."""
    _write(f"net/ipv6/conf/{device}/accept_dad", "0")


def _write(key: str, value: str) -> None:
    """Set a sysctl of the calling thread's namespace, unless it is so; a kernel without IPv6 has none of IPv6's."""
    file = Path("/proc/sys", key)
    try:
        if file.read_text().strip() == value:
            return
    except FileNotFoundError:
        if key.startswith("net/ipv6/") and not os.path.exists("/proc/sys/net/ipv6"):
            return
    sysctl.write(key, value)
