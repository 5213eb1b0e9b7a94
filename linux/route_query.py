"""Asking the kernel which of its routes a packet would take: RTM_GETROUTE for one destination.

With RTM_F_FIB_MATCH (Linux 5.2, IPv6 5.6) the answer is the entry of the table itself, so that it says whose route it
is (its protocol) and at which metric; without it, it would be the next hop alone.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from core.addr import Address, Network
from linux.interfaces import links
from linux.netlink import HEADER, NLM_F_REQUEST, NLMSG_ERROR, Netlink, attribute, attributes
from linux.routes import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_VIA,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
)

_FIB_MATCH: Final = 0x2000
_RECEIVE: Final = 1 << 16
_RTNH: Final = struct.Struct("=HBBi")  # length, flags, hops, ifindex
_TYPES: Final = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
_NONE: Final = {errno.EHOSTUNREACH: "unreachable", errno.ENETUNREACH: "no route", errno.EINVAL: "blackhole"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The route that a packet takes. `kind` is its type (`unicast`, `local`, `blackhole`, ... or `no route`).

    `device` and `gateway` are those of the first next hop where there are several; `device` is "" where there is none.
    """

    kind: str
    prefix: Network | None = None
    device: str = ""
    gateway: Address | None = None
    protocol: int = 0
    metric: int = 0


def way_to(destination: Address) -> Way:
    """The way out of the network namespace of the calling thread. Raises OSError when the kernel does not answer."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    body = RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    body += attribute(RTA_DST, destination.packed)
    with Netlink() as netlink:
        netlink.raw.settimeout(5)
        netlink.raw.send(HEADER.pack(16 + len(body), RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + body)
        data = netlink.raw.recv(_RECEIVE)
        length, kind, _, _, _ = HEADER.unpack_from(data)
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, 16)
            if -code not in _NONE:
                raise OSError(-code, f"which way to {destination}")
            return Way(kind=_NONE[-code])
        if kind != RTM_NEWROUTE:
            raise OSError(errno.EPROTO, f"the kernel answers with message {kind} when asked for the way")
        names = {link.index: link.name for link in links(netlink)}
    return _way(data[16:length], names)


def _way(data: bytes, names: dict[int, str]) -> Way:
    family, length, _, _, _, protocol, _, kind, _ = RTMSG.unpack_from(data)
    found = attributes(data, RTMSG.size)
    if RTA_MULTIPATH in found:
        hop = found[RTA_MULTIPATH]
        size, _, _, index = _RTNH.unpack_from(hop)
        found = {**found, RTA_OIF: struct.pack("=I", index), **attributes(hop[:size], _RTNH.size)}
    make = IPv4Address if family == socket.AF_INET else IPv6Address
    gateway: Address | None = make(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None
    if RTA_VIA in found:  # an IPv4 route by way of an IPv6 neighbour
        gateway = IPv6Address(found[RTA_VIA][2:18])
    base = make(found[RTA_DST]) if RTA_DST in found else make(0)
    return Way(
        kind=_TYPES.get(kind, str(kind)),
        prefix=ip_network((base, length)),
        device=names.get(_u32(found.get(RTA_OIF)), ""),
        gateway=gateway,
        protocol=protocol,
        metric=_u32(found.get(RTA_PRIORITY)),
    )


def _u32(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "little" if struct.pack("=H", 1)[0] else "big")
