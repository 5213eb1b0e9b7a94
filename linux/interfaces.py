"""Network interfaces, one change at a time: made, set, addressed, removed; and how their messages read.

The slow path beside `linux.routes`: a pod's veth pair, a tunnel's device, the few routes inside a pod. Every function
takes the `Netlink` to speak through, and so works in the namespace that socket was made in.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Final

from core.addr import Address, Interface, Network
from linux.model import Link, NextHop, Route
from linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Attributes,
    Netlink,
    Refused,
    attribute,
    attributes,
    message,
)
from linux.routes import (
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_PRIORITY,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
    pack_tail,
    unpack_hops,
)

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
_RTM_NEWNEIGH = 28

IFINFO: Final = struct.Struct("=BxHiII")  # family, ARP type, index, flags, mask of flags to change
IFADDR: Final = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_NUD_REACHABLE = 0x2
_NUD_PERMANENT = 0x80
_NDA_DST = 1
_NDA_LLADDR = 2

IFF_UP: Final = 0x1
IFF_LOWER_UP: Final = 0x10000
"""Carrier. IFF_RUNNING says the same, but for a veth up to a second later (net/core/link_watch.c)."""
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
_IFLA_LINK = 5
_IFLA_NET_NS_FD = 28
_IFLA_EXT_MASK = 29
_VETH_INFO_PEER = 1
_SKIP_STATISTICS = 8
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_IFA_F_NODAD = 0x2
_PROTOCOL_STATIC = 4
_U32: Final = struct.Struct("=I")


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a veth pair to be. `mac` "" lets the kernel choose; `namespace` is an open file descriptor of the
    namespace it goes to, None for the one where the pair is made."""

    name: str
    mac: str = ""
    namespace: int | None = None


def pack_mac(mac: str) -> bytes:
    """Six bytes of `02:00:...`."""
    return bytes.fromhex(mac.replace(":", ""))


def unpack_link(data: bytes) -> Link | None:
    """A link without its addresses, from an RTM_NEWLINK or RTM_DELLINK body; None for what is not about a device."""
    family, _, index, flags, _ = IFINFO.unpack_from(data)
    found = attributes(data, IFINFO.size)
    if family != socket.AF_UNSPEC or IFLA_IFNAME not in found:  # a bridge speaks of its ports in the same type
        return None
    mac = found.get(IFLA_ADDRESS, b"")
    return Link(
        name=text(found[IFLA_IFNAME]),
        index=index,
        up=bool(flags & IFF_UP and flags & IFF_LOWER_UP),
        mtu=_U32.unpack(found[IFLA_MTU])[0] if IFLA_MTU in found else 0,
        mac=mac.hex(":") if len(mac) == 6 else "",
        kind=text(link_info(found).get(IFLA_INFO_KIND, b"")),
    )


def link_info(found: Attributes) -> Attributes:
    """What a link's message says of its kind."""
    return attributes(found.get(IFLA_LINKINFO, b""))


def text(value: bytes) -> str:
    """A C string."""
    return value.rstrip(b"\0").decode()


def unpack_address(data: bytes) -> tuple[int, Interface]:
    """The device and address of an RTM_NEWADDR or RTM_DELADDR body. One with a peer counts as a single address."""
    _, length, _, _, index = IFADDR.unpack_from(data)
    found = attributes(data, IFADDR.size)
    local = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    if found.get(_IFA_ADDRESS, local) != local:
        length = len(local) * 8
    return index, ip_interface((local, length))


def links(netlink: Netlink) -> list[Link]:
    """Every link of the namespace, without addresses."""
    found = (unpack_link(data) for data in link_messages(netlink))
    return [link for link in found if link is not None]


def link_messages(netlink: Netlink) -> list[bytes]:
    """Every link of the namespace, as the kernel says it."""
    return netlink.dump(
        RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATISTICS))
    )


def addresses(netlink: Netlink) -> list[tuple[int, Interface]]:
    """Every address of the namespace, with its device."""
    return [unpack_address(data) for data in netlink.dump(RTM_GETADDR, IFADDR.pack(0, 0, 0, 0, 0))]


def find(netlink: Netlink, name: str) -> Link | None:
    """The link called `name`, or None."""
    found = link_message(netlink, name)
    return None if found is None else unpack_link(found)


def link_message(netlink: Netlink, name: str) -> bytes | None:
    """The link called `name`, as the kernel says it: one question, however many links there are."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + _named(name) + attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATISTICS))
    try:
        return netlink.ask(RTM_GETLINK, body)
    except Refused as refusal:
        if refusal.errno != errno.ENODEV:
            raise
        return None


def add_link(netlink: Netlink, name: str, kind: str, data: bytes = b"", more: bytes = b"") -> None:
    """Make a link of `kind`; `data` is the kind's own attributes, `more` the link's."""
    info = attribute(IFLA_INFO_KIND, kind.encode()) + (attribute(IFLA_INFO_DATA, data) if data else b"")
    body = IFINFO.pack(0, 0, 0, 0, 0) + _named(name) + more + attribute(IFLA_LINKINFO, info)
    netlink.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def add_veth(netlink: Netlink, host: End, peer: End, mtu: int) -> None:
    """Make a veth pair, each end in its namespace from the start. Both ends are down, with `mtu`."""
    far = IFINFO.pack(0, 0, 0, 0, 0) + _end(peer, mtu)
    add_link(netlink, host.name, "veth", attribute(_VETH_INFO_PEER, far), _end(host, mtu, named=False))


def _end(end: End, mtu: int, *, named: bool = True) -> bytes:
    body = _named(end.name) if named else b""
    body += attribute(IFLA_MTU, _U32.pack(mtu))
    if end.mac:
        body += attribute(IFLA_ADDRESS, pack_mac(end.mac))
    if end.namespace is not None:
        body += attribute(_IFLA_NET_NS_FD, _U32.pack(end.namespace))
    return body


def _named(name: str) -> bytes:
    return attribute(IFLA_IFNAME, name.encode() + b"\0")


def delete_link(netlink: Netlink, name: str) -> None:
    """Remove a link (and a veth's other end); one that is gone already is success."""
    try:
        netlink.request(RTM_DELLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + _named(name))
    except Refused as refusal:
        if refusal.errno != errno.ENODEV:
            raise


def set_link(netlink: Netlink, index: int, *, up: bool | None = None, mtu: int | None = None, mac: str = "") -> None:
    """Change what is given of a link."""
    _one(netlink, link_change(index, up=up, mtu=mtu, mac=mac))


def link_change(index: int, *, up: bool | None = None, mtu: int | None = None, mac: str = "") -> bytes:
    """The request of `set_link`, for a batch."""
    flags, mask = (IFF_UP if up else 0), (0 if up is None else IFF_UP)
    body = IFINFO.pack(0, 0, index, flags, mask)
    if mtu is not None:
        body += attribute(IFLA_MTU, _U32.pack(mtu))
    if mac:
        body += attribute(IFLA_ADDRESS, pack_mac(mac))
    return message(RTM_NEWLINK, 0, body)


def _one(netlink: Netlink, request: bytes) -> None:
    for refusal in netlink.batch([request]).values():
        raise refusal


def add_address(netlink: Netlink, index: int, address: Interface) -> None:
    """Give a link an address, usable at once (no duplicate detection); there already is success."""
    _one(netlink, address_addition(index, address))


def address_addition(index: int, address: Interface) -> bytes:
    """The request of `add_address`, for a batch."""
    return message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address(index, address, _IFA_F_NODAD))


def delete_address(netlink: Netlink, index: int, address: Interface) -> None:
    """Take an address from a link; gone already is success."""
    try:
        netlink.request(RTM_DELADDR, 0, _address(index, address, 0))
    except Refused as refusal:
        if refusal.errno != errno.EADDRNOTAVAIL:
            raise


def _address(index: int, address: Interface, flags: int) -> bytes:
    head = IFADDR.pack(family(address), address.network.prefixlen, 0, 0, index)
    packed = address.packed
    flagged = attribute(_IFA_FLAGS, _U32.pack(flags)) if flags and address.version == 6 else b""
    return head + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed) + flagged


def neighbour_addition(index: int, address: Address, mac: str, *, permanent: bool = False) -> bytes:
    """The request, for a batch, that tells which MAC address a neighbour has, as if it had just said so itself.

    What waits for its answer is sent. The kernel asks again in time, as it does of every neighbour, unless `permanent`.
    """
    head = _NEIGHBOUR.pack(family(address), index, _NUD_PERMANENT if permanent else _NUD_REACHABLE, 0, 0)
    body = head + attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, pack_mac(mac))
    return message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def family(value: Address | Network | Interface) -> int:
    """The socket address family of an address or prefix."""
    return socket.AF_INET if value.version == 4 else socket.AF_INET6


def add_routes(netlink: Netlink, routes: Iterable[tuple[Network, NextHop]]) -> None:
    """Routes of protocol `static` in the main table, as a pod needs them; there already is replaced.

    The agents' own routes go through `linux.routes.RouteDriver`.
    """
    for destination, hop in routes:
        _one(netlink, route_addition(destination, hop))


def route_addition(destination: Network, hop: NextHop) -> bytes:
    """The request of `add_routes` for one route, for a batch."""
    scope, flags, tail = pack_tail(destination.version, Route(next_hops=(hop,)))
    head = RTMSG.pack(
        family(destination), destination.prefixlen, 0, 0, RT_TABLE_MAIN, _PROTOCOL_STATIC, scope, 1, flags
    )
    body = head + attribute(RTA_DST, destination.network_address.packed) + attribute(RTA_PRIORITY, _U32.pack(0))
    return message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body + tail)


def routes(netlink: Netlink, version: int) -> list[tuple[Network, NextHop]]:
    """Every route of the main table of one family, once for each next hop; an unreachable one has none."""
    found = []
    at = socket.AF_INET if version == 4 else socket.AF_INET6
    for data in netlink.dump(RTM_GETROUTE, RTMSG.pack(at, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)):
        _, length, _, _, table, _, _, _, flags = RTMSG.unpack_from(data)
        parts = attributes(data, RTMSG.size)
        if table == RT_TABLE_MAIN:
            destination = ip_network((parts.get(RTA_DST, bytes(4 if version == 4 else 16)), length))
            found += [(destination, hop) for hop in unpack_hops(flags, parts)]
    return found


def peer_index(netlink: Netlink, name: str) -> int | None:
    """The index of a veth's other end, in the namespace where that is; None when there is no link `name` or no end."""
    found = link_message(netlink, name)
    return None if found is None else peer_of(found)


def peer_of(data: bytes) -> int | None:
    """The index of the other end, from a veth's RTM_NEWLINK body."""
    found = attributes(data, IFINFO.size)
    return int(_U32.unpack(found[_IFLA_LINK])[0]) if _IFLA_LINK in found else None
