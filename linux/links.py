"""What the kernel says of this host, kept current: links, their addresses, and other writers' gateway routes.

    notifications ──(settle)──> Fold ──> Facts, when they differ from the last
                       ^
                       └── a full dump: at the start, and whenever the socket lost something

Links and addresses are folded message by message. Others' routes are read anew when one of them changes, because an
IPv4 replacement does not say what it replaced and a link that goes down takes its routes without a word.

Our own writes are kept out by a filter in the kernel: a hundred thousand routes of ours put nothing in this socket.
What does get through about our routes is drift: somebody else deleted or replaced one, or a link or an address that
may have carried some went away. Then `on_drift` is called, and the agent distrusts what it believes is programmed: of
the devices named, or all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import replace
from ipaddress import ip_network
from types import MappingProxyType
from typing import Final

import structlog

from core.addr import Interface
from core.routing import Metric, RouteProtocol
from linux import interfaces
from linux.model import Facts, Link, Via
from linux.netlink import NLM_F_REPLACE, Attributes, Message, Netlink, attributes
from linux.routes import (
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_PRIORITY,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
    unpack_hops,
)

_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 1, 5, 7, 9, 11  # RTNLGRP_*
_SO_ATTACH_FILTER: Final = 26
_SETTLE_S: Final = 0.02
_ANYTHING: Final = -1
"""Drift of no one device."""

_PROTOCOL_AT: Final = 5  # of the rtmsg's bytes
_OURS: Final = frozenset(int(each) for each in RouteProtocol)
_METRICS: Final = frozenset(int(each) for each in Metric)

log = structlog.get_logger()


async def watch_facts(
    *,
    protocol: RouteProtocol = RouteProtocol.FELIX,
    ports: Collection[int] = (),
    on_drift: Callable[[Collection[int]], None] | None = None,
    settle_s: float = _SETTLE_S,
) -> AsyncIterator[Facts]:
    """The facts now, and again whenever they change; bursts within `settle_s` seconds come as one, and those of others'
    gateway routes within more.

    `on_drift` is called when routes of `protocol` may have changed by another hand than the sockets whose `ports`
    are given (`RouteDriver.port`): with the indexes of the devices through which some may be gone, or with none when
    any may be another. Works in the namespace of the thread that takes the first value. Raises OSError
    if the kernel cannot be asked at all.
    """
    groups = (_LINK, _IPV4_ADDRESS, _IPV6_ADDRESS, _IPV4_ROUTE, _IPV6_ROUTE)
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    with Netlink(groups=groups) as events, Netlink() as asking:
        _filter_out(events.raw, ports)
        fold = _Fold(asking, protocol)
        try:
            last: Facts | None = None
            fold.reload()
            while True:
                facts = fold.facts()
                if facts != last:
                    last = facts
                    yield facts
                loop.add_reader(events.fileno(), heard.set)
                await heard.wait()
                loop.remove_reader(events.fileno())  # or the loop would spin until the burst is read
                await asyncio.sleep(settle_s)
                heard.clear()
                drift = _drain(events, fold)
                if fold.behind and settle_s < _SETTLE_S:
                    await asyncio.sleep(_SETTLE_S)  # a routing daemon may write as many as the Internet has
                    drift |= _drain(events, fold)
                if drift and on_drift is not None:
                    on_drift(() if _ANYTHING in drift else drift)
        finally:
            loop.remove_reader(events.fileno())


def _drain(events: Netlink, fold: _Fold) -> set[int]:
    """Fold everything heard; the devices of which it means drift. Lost messages mean both a new dump and drift."""
    drift: set[int] = set()
    try:
        for message in events.notifications():
            drift.update(fold.hear(message))
    except OSError as lost:
        if lost.errno != errno.ENOBUFS:
            raise
        log.info("links.resync", why="the kernel had more to say than the socket could hold")
        with contextlib.suppress(OSError):  # what is left of the flood; the dump that follows is newer
            for _ in events.notifications():
                pass
        fold.reload()
        return {_ANYTHING}
    return drift


class _Fold:
    """Links, addresses and others' gateway routes, from a dump and the messages after it."""

    def __init__(self, asking: Netlink, protocol: RouteProtocol) -> None:
        self._asking = asking
        self._protocol = int(protocol)
        self._links: dict[int, Link] = {}
        self._whole: dict[int, Link] = {}  # with their addresses
        self._raised: set[int] = set()
        self._addresses: dict[int, set[Interface]] = {}
        self._gateways: tuple[Via, ...] | None = None

    def reload(self) -> None:
        """Forget everything and ask the kernel."""
        self._links, self._addresses, self._gateways = {}, {}, None
        self._whole, self._raised = {}, set()
        for data in interfaces.link_messages(self._asking):
            self._link(interfaces.RTM_NEWLINK, data)
        for index, interface in interfaces.addresses(self._asking):
            self._addresses.setdefault(index, set()).add(interface)

    @property
    def behind(self) -> bool:
        """Whether others' routes have to be read again for the next facts."""
        return self._gateways is None

    def facts(self) -> Facts:
        """The state now. What has not changed is the same object as before."""
        if self._gateways is None:
            self._gateways = tuple(sorted(set(self._read_gateways()), key=_via_order))
        for index in self._links.keys() - self._whole.keys():
            addresses = tuple(sorted(self._addresses.get(index, ()), key=_address_order))
            self._whole[index] = replace(self._links[index], addresses=addresses)
        return Facts(
            links=MappingProxyType({(link := self._whole[index]).name: link for index in sorted(self._links)}),
            gateways=self._gateways,
        )

    def hear(self, message: Message) -> Collection[int]:
        """Fold one notification; the devices through which routes of ours may have gone with it."""
        kind, flags, _, data = message
        if kind in (interfaces.RTM_NEWLINK, interfaces.RTM_DELLINK):
            return self._link(kind, data)
        if kind in (interfaces.RTM_NEWADDR, interfaces.RTM_DELADDR):
            return self._address(kind, data)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE) and self._route(kind, flags, data):
            return (_ANYTHING,)
        return ()

    def _link(self, kind: int, data: bytes) -> Collection[int]:
        link = interfaces.unpack_link(data)
        if link is None:
            return ()
        raised = kind == interfaces.RTM_NEWLINK and bool(interfaces.IFINFO.unpack_from(data)[3] & interfaces.IFF_UP)
        fell = not raised and link.index in self._raised
        if raised:
            self._raised.add(link.index)
        else:
            self._raised.discard(link.index)
        if fell:
            self._lose_gateways(link.index)
        self._whole.pop(link.index, None)
        if kind == interfaces.RTM_NEWLINK:
            self._links[link.index] = link
        else:
            self._links.pop(link.index, None)
            self._addresses.pop(link.index, None)
        return (link.index,) if fell else ()

    def _address(self, kind: int, data: bytes) -> Collection[int]:
        index, interface = interfaces.unpack_address(data)
        self._whole.pop(index, None)
        if kind == interfaces.RTM_NEWADDR:
            self._addresses.setdefault(index, set()).add(interface)
            return ()
        self._addresses.get(index, set()).discard(interface)
        self._lose_gateways(index)
        return (index,)

    def _lose_gateways(self, device: int) -> None:
        """Read others' routes again if one went by that device: the kernel may not have said that it is gone."""
        if self._gateways and any(via.device == device for via in self._gateways):
            self._gateways = None

    def _route(self, kind: int, flags: int, data: bytes) -> bool:
        table, protocol = data[_PROTOCOL_AT - 1], data[_PROTOCOL_AT]
        if table != RT_TABLE_MAIN:
            return False
        if protocol in _OURS:
            return kind == RTM_DELROUTE and protocol == self._protocol
        parts = attributes(data, RTMSG.size)
        replaced = kind == RTM_NEWROUTE and bool(flags & NLM_F_REPLACE)
        if replaced or any(hop.gateway is not None for hop in unpack_hops(0, parts)):
            self._gateways = None
        return replaced and _metric(parts) in _METRICS

    def _read_gateways(self) -> Iterator[Via]:
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            for data in self._asking.dump(RTM_GETROUTE, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                at, length, _, _, table, protocol, *_ = RTMSG.unpack_from(data)
                if at != family or table != RT_TABLE_MAIN or protocol in _OURS:
                    continue
                parts = attributes(data, RTMSG.size)
                packed = parts.get(RTA_DST, b"\0" * (4 if version == 4 else 16))
                for hop in unpack_hops(0, parts):
                    if hop.gateway is not None:
                        yield Via(destination=ip_network((packed, length)), gateway=hop.gateway, device=hop.device)


def _metric(parts: Attributes) -> int:
    return int.from_bytes(parts.get(RTA_PRIORITY, b""), sys.byteorder)


def _address_order(interface: Interface) -> tuple[int, bytes, int]:
    return interface.version, interface.packed, interface.network.prefixlen


def _via_order(via: Via) -> tuple[int, bytes, int, bytes, int]:
    network = via.destination
    return (network.version, network.network_address.packed, network.prefixlen, via.gateway.packed, via.device)


def _filter_out(raw: socket.socket, ports: Collection[int]) -> None:
    """Have the kernel drop our own writes (by the sender's `ports`), and every new route of either of our protocols.

    A classic BPF program over the netlink message: type at byte 4, sender's port at 12, route protocol at 21. It
    loads in network order, so what the kernel wrote in its own order is compared swapped.
    """
    word, half, byte, equal, give = 0x20, 0x28, 0x30, 0x15, 0x06
    checks: list[tuple[int, int]] = [(word, 12)]
    checks += [(equal, _network_order("=I", port)) for port in ports]
    accept_unless_new = len(checks) + 1
    checks += [(half, 4), (equal, _network_order("=H", RTM_NEWROUTE)), (byte, 21)]
    checks += [(equal, protocol) for protocol in sorted(_OURS)]
    accept = len(checks)
    program = b""
    for at, (code, operand) in enumerate(checks):
        if code != equal:
            hit = miss = 0
        elif at == accept_unless_new:
            hit, miss = 0, accept - at - 1
        else:
            hit, miss = accept - at, 0
        program += struct.pack("=HBBI", code, hit, miss, operand)
    program += struct.pack("=HBBI", give, 0, 0, 0xFFFFFFFF) + struct.pack("=HBBI", give, 0, 0, 0)
    held = ctypes.create_string_buffer(program, len(program))
    raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(held)))


def _network_order(layout: str, value: int) -> int:
    return int.from_bytes(struct.pack(layout, value), "big")
