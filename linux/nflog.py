"""Packets that a rule logs to an NFLOG group, as they pass: what `denied --watch` hears.

The kernel sends them to the one socket that has bound the group, and to nobody when none has. Formats:
linux/netfilter/nfnetlink_log.h; net/netfilter/nfnetlink_log.c.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from core.addr import Address
from core.errors import Unavailable
from linux.netlink import NETLINK_NETFILTER, NLM_F_ACK, Attributes, Netlink, Refused, attribute, attributes

_CONFIG: Final = 0x401
_PACKET: Final = 0x400
_CMD_BIND: Final = 1
_CFG_CMD, _CFG_MODE, _CFG_FLUSH = 1, 2, 4
_COPY_PACKET: Final = 2
_MARK, _INDEV, _OUTDEV, _PAYLOAD = 2, 4, 5, 9
_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_EXTENSIONS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options
_FRAGMENT: Final = 44
_WITH_PORTS: Final = frozenset({6, 17, 132, 136})
_FLUSH_TENTHS: Final = 1
_TAKEN: Final = frozenset({errno.EPERM, errno.EBUSY})  # EPERM: the group is bound by another socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One packet, as far as its headers were there. Interfaces are names, "" where there is none (any more)."""

    mark: int
    inbound: str
    outbound: str
    source: Address
    destination: Address
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None


class Lost(Exception):
    """The kernel had more to say than the socket could hold."""


async def logged(group: int, snap: int = 128) -> AsyncGenerator[Logged | Lost, None]:
    """Packets logged to `group` in this namespace, the first `snap` bytes of each, until closed.

    Raises `Unavailable` while another process listens to the group.
    """
    with Netlink(NETLINK_NETFILTER) as netlink:
        _bind(netlink, group, snap)
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(netlink.fileno(), heard.set)
        try:
            while True:
                await heard.wait()
                heard.clear()
                for each in _read(netlink):
                    yield each
        finally:
            loop.remove_reader(netlink.fileno())


def _bind(netlink: Netlink, group: int, snap: int) -> None:
    head = struct.pack("!BBH", 0, 0, group)
    try:
        netlink.request(_CONFIG, NLM_F_ACK, head + attribute(_CFG_CMD, bytes([_CMD_BIND])))
    except Refused as refusal:
        if refusal.errno in _TAKEN:
            raise Unavailable(
                f"another process listens to denied packets here (NFLOG group {group}); only one at a time can"
            ) from refusal
        raise
    mode = struct.pack("!IBB", snap, _COPY_PACKET, 0)
    netlink.request(_CONFIG, NLM_F_ACK, head + attribute(_CFG_MODE, mode))
    # Else the kernel gathers packets for a second before it tells of them.
    netlink.request(_CONFIG, NLM_F_ACK, head + attribute(_CFG_FLUSH, struct.pack("!I", _FLUSH_TENTHS)))


def _read(netlink: Netlink) -> Iterator[Logged | Lost]:
    try:
        for kind, _, _, data in netlink.notifications():
            if kind == _PACKET and (found := _logged(attributes(data, 4))):
                yield found
    except OSError as lost:
        if lost.errno != errno.ENOBUFS:
            raise
        yield Lost()


def _logged(parts: Attributes) -> Logged | None:
    payload = parts.get(_PAYLOAD, b"")
    headers = _headers(payload)
    if headers is None:
        return None
    source, destination, protocol, rest = headers
    sport, dport = struct.unpack_from("!HH", rest) if protocol in _WITH_PORTS and len(rest) >= 4 else (None, None)
    return Logged(
        mark=int.from_bytes(parts.get(_MARK, b"\0"), "big"),
        inbound=_name(parts.get(_INDEV)),
        outbound=_name(parts.get(_OUTDEV)),
        source=source,
        destination=destination,
        protocol=protocol,
        sport=sport,
        dport=dport,
        icmp=(rest[0], rest[1]) if protocol in (1, 58) and len(rest) >= 2 else None,
    )


def _headers(packet: bytes) -> tuple[Address, Address, int, bytes] | None:
    """Source, destination, protocol and what follows the network header (nothing, of a later fragment)."""
    if len(packet) >= _IPV4_HEADER and packet[0] >> 4 == 4:
        later = struct.unpack_from("!H", packet, 6)[0] & 0x1FFF
        rest = b"" if later else packet[(packet[0] & 0xF) * 4 :]
        return ip_address(packet[12:16]), ip_address(packet[16:20]), packet[9], rest
    if len(packet) < _IPV6_HEADER or packet[0] >> 4 != 6:
        return None
    protocol, rest = packet[6], packet[_IPV6_HEADER:]
    while protocol in _EXTENSIONS and len(rest) >= 8:
        protocol, rest = rest[0], rest[8 * (rest[1] + 1) :]
    if protocol == _FRAGMENT and len(rest) >= 8:
        later = struct.unpack_from("!H", rest, 2)[0] & 0xFFF8
        protocol, rest = rest[0], b"" if later else rest[8:]
    return ip_address(packet[8:24]), ip_address(packet[24:40]), protocol, rest


def _name(index: bytes | None) -> str:
    if index is None:
        return ""
    with contextlib.suppress(OSError):
        return socket.if_indextoname(struct.unpack("!I", index)[0])
    return ""
