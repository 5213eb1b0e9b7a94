"""Asking the kernel which of its routes a packet would take: RTM_GETROUTE for one destination.

With RTM_F_FIB_MATCH (Linux 5.2, IPv6 5.6) the answer is the entry of the table itself, so that it says whose route it
is (its protocol) and at which metric; without it, it would be the next hop alone.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from core.addr import Address, Network
from linux.interfaces import links
from linux.netlink import HEADER, NLM_F_REQUEST, NLMSG_ERROR, Attributes, Netlink, attribute, attributes
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
_PATIENCE_S: Final = 5.0
_RTNH: Final = struct.Struct("=HBBi")  # length, flags, hops, ifindex
_TYPES: Final = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
_LATE: Final = 16
_STAYS: Final = frozenset({"local", "broadcast", "multicast"})
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
    with Ways() as ways:
        return ways.to(destination)


class Ways:
    """The ways out of the network namespace in which this is made, whichever thread asks. Blocks.

    What `devices` found is remembered until `forget`. All but that may raise OSError. With `names`, interfaces by their
    index, the others have none and need not be read first.
    """

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        self._netlink = Netlink()
        self._netlink.raw.settimeout(_PATIENCE_S)
        self._names = names
        self._asked = 0
        self._known: dict[Address, tuple[str, ...]] = {}

    def __enter__(self) -> Ways:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the kernel."""
        self._netlink.close()

    def forget(self) -> None:
        """Ask anew from now on."""
        self._names = None
        self._known.clear()

    def to(self, destination: Address) -> Way:
        """The way to an address, by its first next hop."""
        return self.all(destination)[0]

    def all(self, destination: Address) -> tuple[Way, ...]:
        """The way to an address once for each next hop; at least one."""
        family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
        body = RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
        body += attribute(RTA_DST, destination.packed)
        if self._names is None:
            self._names = {link.index: link.name for link in links(self._netlink)}
        data = self._answer(body)
        length, kind, _, _, _ = HEADER.unpack_from(data)
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, 16)
            if -code not in _NONE:
                raise OSError(-code, f"which way to {destination}")
            return (Way(kind=_NONE[-code]),)
        if kind != RTM_NEWROUTE:
            raise OSError(errno.EPROTO, f"the kernel answers with message {kind} when asked for the way")
        return tuple(_ways(data[16:length], self._names))

    def devices(self, destination: Address) -> tuple[str, ...]:
        """By which interfaces packets to `destination` may leave; "" stays here; none where there is no way.

        None either for an IPv6 link-local address: it may be on any link.
        """
        if destination.version == 6 and destination.is_link_local:
            return ()
        found = self._known.get(destination)
        if found is None:
            ways = self.all(destination)
            names = ("",) if ways[0].kind in _STAYS else (way.device for way in ways if way.device)
            found = self._known[destination] = tuple(dict.fromkeys(names))
        return found

    def _answer(self, body: bytes) -> bytes:
        """The answer to this question, and not a late one to another that was given up."""
        self._asked += 1
        self._netlink.raw.send(HEADER.pack(16 + len(body), RTM_GETROUTE, NLM_F_REQUEST, self._asked, 0) + body)
        for _ in range(_LATE):
            data = self._netlink.raw.recv(_RECEIVE)
            if HEADER.unpack_from(data)[3] == self._asked:
                return data
        raise OSError(errno.EPROTO, "the kernel answers other questions than which way to go")


def _ways(data: bytes, names: Mapping[int, str]) -> Iterator[Way]:
    family, length, _, _, _, protocol, _, kind, _ = RTMSG.unpack_from(data)
    given = attributes(data, RTMSG.size)
    make = IPv4Address if family == socket.AF_INET else IPv6Address
    base = make(given[RTA_DST]) if RTA_DST in given else make(0)
    for found in _next_hops(given):
        gateway: Address | None = make(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None
        if RTA_VIA in found:  # an IPv4 route by way of an IPv6 neighbour
            gateway = IPv6Address(found[RTA_VIA][2:18])
        yield Way(
            kind=_TYPES.get(kind, str(kind)),
            prefix=ip_network((base, length)),
            device=names.get(_u32(found.get(RTA_OIF)), ""),
            gateway=gateway,
            protocol=protocol,
            metric=_u32(given.get(RTA_PRIORITY)),
        )


def _next_hops(given: Attributes) -> Iterator[Attributes]:
    """The attributes of each next hop; the route's own where it has but one."""
    hops = given.get(RTA_MULTIPATH, b"")
    if not hops:
        yield given
    while len(hops) >= _RTNH.size:
        size, _, _, index = _RTNH.unpack_from(hops)
        if size < _RTNH.size:
            return
        yield {**attributes(hops[:size], _RTNH.size), RTA_OIF: struct.pack("=I", index)}
        hops = hops[(size + 3) & ~3 :]


def _u32(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "little" if struct.pack("=H", 1)[0] else "big")
