"""The main table's routes of one of our protocols, both families: read whole, changed in batches.

What the kernel tells routes apart by (prefix and metric) is the key; the rest is the value. The kernel has habits,
and this driver hides them, so that what is read after a batch equals what was asked for:

    - `replace` takes the place of whatever has the same prefix and metric, of any protocol: see `core.routing`
    - IPv6 keeps a multipath route as siblings and may dump it as one route or as several: they are joined
    - IPv6 reads metric 0 as 1024, and takes no multipath next hop without a gateway: both are refused by name here
    - two routes may stand under one key (`ip route append`); such a tangle equals nothing, and is cleared before the
      key is written
    - an unreachable next hop stays in its route, flagged dead, and comes back with its link: it is not a difference
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from core.addr import Address
from core.reconcile import Plan
from core.routing import RouteProtocol
from linux.model import NextHop, Route, RouteKey, RouteType
from linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    Attributes,
    Netlink,
    Refused,
    attribute,
    attributes,
)

RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26

RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_PREFSRC: Final = 7
RTA_MULTIPATH: Final = 9
RTA_VIA: Final = 18
RT_TABLE_MAIN: Final = 254

_RTNH: Final = struct.Struct("=HBBi")  # length, flags, hops (weight - 1), ifindex
_RTNH_F_ONLINK = 4
_SCOPE_LINK = 253
SCOPE_NOWHERE = 255
_U32: Final = struct.Struct("=I")
_OIF: Final = struct.Struct("=HHI")
_ZERO: Final = b"\0\0\0\0"
_VALUE: Final = (RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_MULTIPATH, RTA_VIA)
UPSERT: Final = (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE)
DELETE: Final = (RTM_DELROUTE, NLM_F_REQUEST)
_LAYOUT: Final = {  # by IP version: header, rtmsg, destination and metric; the family; an address's bytes
    4: (struct.Struct("=IHHIIBBBBBBBBIHH4sHHI"), socket.AF_INET, 4),
    6: (struct.Struct("=IHHIIBBBBBBBBIHH16sHHI"), socket.AF_INET6, 16),
}
INLINE = 256  # a batch up to this size is sent from the event loop; a larger one from a thread

TANGLE: Final = Route()
"""What is read where several routes stand under one key: equal to no route that can be asked for."""


def pack_tail(version: int, route: Route) -> tuple[int, int, bytes]:
    """A route's scope, flags and attributes other than its destination and metric."""
    tail = attribute(RTA_PREFSRC, route.source.packed) if route.source is not None else b""
    hops = route.next_hops
    if len(hops) == 1:
        hop = hops[0]
        flags = _RTNH_F_ONLINK if hop.onlink else 0
        scope = _SCOPE_LINK if version == 4 and hop.gateway is None else 0
        return scope, flags, tail + _OIF.pack(8, RTA_OIF, hop.device) + _pack_gateway(version, hop)
    if hops:
        linked = version == 4 and all(hop.gateway is None for hop in hops)
        return (
            _SCOPE_LINK if linked else 0,
            0,
            tail + attribute(RTA_MULTIPATH, b"".join(_pack_hop(version, hop) for hop in hops)),
        )
    return 0, 0, tail


def _pack_gateway(version: int, hop: NextHop) -> bytes:
    if hop.gateway is None:
        return b""
    if hop.gateway.version == version:
        return attribute(RTA_GATEWAY, hop.gateway.packed)
    family = socket.AF_INET if hop.gateway.version == 4 else socket.AF_INET6
    return attribute(RTA_VIA, struct.pack("=H", family) + hop.gateway.packed)


def _pack_hop(version: int, hop: NextHop) -> bytes:
    gateway = _pack_gateway(version, hop)
    return _RTNH.pack(8 + len(gateway), _RTNH_F_ONLINK if hop.onlink else 0, hop.weight - 1, hop.device) + gateway


def _unpack_address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _unpack_gateway(found: Attributes) -> Address | None:
    if RTA_GATEWAY in found:
        return _unpack_address(found[RTA_GATEWAY])
    return _unpack_address(found[RTA_VIA][2:]) if RTA_VIA in found else None


def unpack_hops(flags: int, found: Attributes) -> tuple[NextHop, ...]:
    """The next hops of a route's message."""
    if RTA_MULTIPATH not in found:
        if RTA_OIF not in found:
            return ()
        device = _U32.unpack(found[RTA_OIF])[0]
        return (NextHop(device, _unpack_gateway(found), bool(flags & _RTNH_F_ONLINK)),)
    hops, data, at = [], found[RTA_MULTIPATH], 0
    while at + 8 <= len(data):
        length, hop_flags, hops_less_one, device = _RTNH.unpack_from(data, at)
        gateway = _unpack_gateway(attributes(data[at : at + length], 8))
        hops.append(NextHop(device, gateway, bool(hop_flags & _RTNH_F_ONLINK), hops_less_one + 1))
        at += (length + 3) & ~3
    return tuple(hops)


class RouteDriver:
    """Routes of `protocol` in the main table of the namespace in which the driver was made (a `core.reconcile.Driver`).

    What another protocol wrote is neither read nor removed.
    """

    def __init__(self, protocol: RouteProtocol) -> None:
        self.name = f"routes/{protocol.name.lower()}"
        self._protocol = int(protocol)
        self._netlink = Netlink()
        self._copies: dict[RouteKey, int] = {}

    @property
    def port(self) -> int:
        """By which `linux.links.watch` tells our own changes from somebody else's."""
        return self._netlink.port

    def close(self) -> None:
        """Let go of the socket; the routes stay."""
        self._netlink.close()

    async def read(self) -> Mapping[RouteKey, Route]:
        """Every route of ours; raises OSError if the kernel cannot tell."""
        return await asyncio.to_thread(self._read)

    async def apply(self, plan: Plan[RouteKey, Route]) -> Mapping[RouteKey, Exception]:
        """Upsert, then delete. Already gone is success; what failed is returned with the kernel's reason."""
        if len(plan.upsert) + len(plan.delete) > INLINE:
            return await asyncio.to_thread(self._apply, plan)
        return self._apply(plan)

    def _read(self) -> Mapping[RouteKey, Route]:
        found: dict[RouteKey, Route] = {}
        copies: dict[RouteKey, int] = {}
        for family, network in ((socket.AF_INET, IPv4Network), (socket.AF_INET6, IPv6Network)):
            routes: dict[tuple[object, ...], Route] = {}
            for data in dumped(self._netlink, family, self._protocol):
                at, length, _, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(data)
                if (at, table, protocol, tos) != (family, RT_TABLE_MAIN, self._protocol, 0):
                    continue
                parts = attributes(data, RTMSG.size)
                prefix = int.from_bytes(parts.pop(RTA_DST, b""), "big")
                key = RouteKey(network((prefix, length)), _U32.unpack(parts.pop(RTA_PRIORITY, _ZERO))[0])
                shape = route_shape(kind, flags, parts)
                route = routes.get(shape)
                if route is None:
                    route = routes[shape] = unpack_route(kind, flags, parts)
                if key in found:
                    copies[key] = copies.get(key, 1) + 1
                    route = join(family, found[key], route)
                found[key] = route
        self._copies = {key: count for key, count in copies.items() if found[key] is TANGLE}
        return found

    def _apply(self, plan: Plan[RouteKey, Route]) -> Mapping[RouteKey, Exception]:
        failed: dict[RouteKey, Exception] = {}
        keys, messages = [], []
        for key, route in plan.upsert.items():
            reason = refuse(key, route)
            if reason:
                failed[key] = Refused(errno.EINVAL, f"{_spell(key)}: {reason}")
            else:
                keys.append(key)
                messages.append(self._upsert(key, route))
        if self._copies:
            tangled = [key for key in keys for _ in range(self._copies.get(key, 0))]
            failed |= self._send(tangled, [self._deletion(key) for key in tangled], errno.ESRCH)
        failed |= self._send(keys, messages, 0)
        unwanted = [key for key in plan.delete for _ in range(self._copies.get(key, 1))]
        failed |= self._send(unwanted, [self._deletion(key) for key in unwanted], errno.ESRCH)
        self._copies = {}
        return failed

    def _send(self, keys: Sequence[RouteKey], messages: Sequence[bytes], fine: int) -> dict[RouteKey, Exception]:
        return {
            keys[index]: Refused(refusal.errno, f"{_spell(keys[index])}: {refusal}")
            for index, refusal in self._netlink.batch(messages).items()
            if refusal.errno != fine
        }

    def _upsert(self, key: RouteKey, route: Route) -> bytes:
        scope, flags, tail = pack_tail(key.destination.version, route)
        return pack(UPSERT, key, (self._protocol, scope, route.type.value, flags), tail)

    def _deletion(self, key: RouteKey) -> bytes:
        """The protocol is named, so that nobody else's route goes; type, scope and next hops are left open."""
        return pack(DELETE, key, (self._protocol, SCOPE_NOWHERE, 0, 0), b"")


def pack(request: tuple[int, int], key: RouteKey, rest: tuple[int, int, int, int], tail: bytes) -> bytes:
    """A whole message in one go; `rest` is protocol, scope, type and flags."""
    network = key.destination
    layout, family, width = _LAYOUT[network.version]
    return (
        layout.pack(
            layout.size + len(tail),
            *request,
            0,
            0,
            family,
            network.prefixlen,
            0,
            0,
            RT_TABLE_MAIN,
            *rest,
            4 + width,
            RTA_DST,
            network.network_address.packed,
            8,
            RTA_PRIORITY,
            key.metric,
        )
        + tail
    )


def dumped(netlink: Netlink, family: int, protocol: int) -> Sequence[bytes]:
    """The messages of every route of a family and protocol."""
    try:
        return netlink.dump(RTM_GETROUTE, RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0))
    except Refused as refusal:
        if refusal.errno == errno.ENOENT:  # a family's main table is made with its first route
            return ()
        raise


def route_shape(kind: int, flags: int, parts: Attributes) -> tuple[object, ...]:
    """What a route's value is unpacked from: equal for equal values."""
    return kind, flags & _RTNH_F_ONLINK, tuple([parts.get(each) for each in _VALUE])


def unpack_route(kind: int, flags: int, parts: Attributes) -> Route:
    """A route's value from its message."""
    source = _unpack_address(parts[RTA_PREFSRC]) if RTA_PREFSRC in parts else None
    if kind == RouteType.BLACKHOLE.value:
        return Route(type=RouteType.BLACKHOLE, source=source)
    if kind != RouteType.UNICAST.value:
        return TANGLE
    return Route(next_hops=unpack_hops(flags, parts), source=source)


def join(family: int, first: Route, second: Route) -> Route:
    """Two entries under one key: the siblings of one IPv6 multipath route, or a tangle."""
    hops = first.next_hops + second.next_hops
    siblings = family == socket.AF_INET6 and all(hop.gateway is not None for hop in hops)
    if not siblings or not first.next_hops or not second.next_hops or first.source != second.source:
        return TANGLE
    return Route(next_hops=hops, source=first.source)


def refuse(key: RouteKey, route: Route) -> str:
    """Why the kernel would not keep this route as it is written; empty when it would."""
    if route.type is RouteType.UNICAST and not route.next_hops:
        return "a unicast route needs a next hop"
    if route.type is RouteType.BLACKHOLE and route.next_hops:
        return "a blackhole has no next hops"
    if key.destination.version == 4:
        return ""
    if key.metric == 0:
        return "an IPv6 route needs a metric of at least 1; the kernel reads 0 as 1024"
    if len(route.next_hops) > 1 and not all(hop.gateway for hop in route.next_hops):
        return "every next hop of an IPv6 multipath route needs a gateway"
    return ""


def _spell(key: RouteKey) -> str:
    return f"{key.destination} metric {key.metric}"
