"""The connections that the kernel tracks, read and cut one by one: ctnetlink in packed bytes.

    entry     original tuple   what the first packet said          10.0.0.1:40000 -> 10.96.0.1:80
              reply tuple      what an answer says, NAT undone     10.0.0.2:8080  -> 10.0.0.1:40000

Where a service's address was translated, the reply's source is where packets really go. A table may hold hundreds of
thousands of entries, so a dump is a stream: one buffer of the kernel's at a time, and nothing is kept. Entries that
come or go meanwhile may be in it or not. A dump goes through all buckets of the host, a quarter of a million on a large
one, for some milliseconds: where this namespace tracks nothing, none is asked for.

The kernel can filter a dump by address and spares the copying (CTA_FILTER, Linux 5.8). That is used for IPv4; for IPv6
its comparison is the wrong way round (ctnetlink_filter_match_tuple, seen in 6.18), so those are filtered here.
Formats: linux/netfilter/nfnetlink_conntrack.h; net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import struct
import sys
import threading
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntFlag
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Final

from core.addr import Address
from linux.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Attributes,
    Netlink,
    Refused,
    attribute,
    attributes,
)

_GET: Final = 0x101
_DELETE: Final = 0x102
_GET_STATS: Final = 0x105

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _MARK = 1, 2, 3, 4, 7, 8
_ID, _ZONE, _FILTER = 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE = 1, 2, 3
_STATS_GLOBAL_ENTRIES: Final = 1

_NESTED: Final = 0x8000
_FAMILY: Final = MappingProxyType({4: 2, 6: 10})  # AF_INET, AF_INET6
_SOURCE: Final = MappingProxyType({4: 1, 6: 3})
_DESTINATION: Final = MappingProxyType({4: 2, 6: 4})
_FILTER_BY_SOURCE: Final = 1  # CTA_FILTER_F_CTA_IP_SRC
_RECEIVE: Final = 1 << 18
ASKED_ONE_BY_ONE: Final = 4
"""Up to so many addresses the kernel goes through its table for each of them; for more, we go through it once."""

FEW: Final = 4_000
"""Up to so many entries we go through the table once as well: an entry costs us 2 us, and the kernel's going through
all buckets of a large host 10 ms, which it does twice for an address."""

_UNFILTERED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})

_TCP_STATES: Final = (
    *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT"),
    *("LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"),
)
_SCTP_STATES: Final = (
    *("NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT"),
    *("SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT"),
)
_STATES: Final = MappingProxyType({1: _TCP_STATES, 3: _SCTP_STATES})
"""By the type of attribute in CTA_PROTOINFO, whose first attribute is the state."""


class Status(IntFlag):
    """What the kernel says of an entry (enum ip_conntrack_status); other bits may be set as well."""

    EXPECTED = 1  # a helper announced it: part of another connection (the kernel's "related")
    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a flow. `sport` and `dport` are 0 where the protocol has none; `icmp` is id, type and code."""

    source: Address
    destination: Address
    protocol: int
    sport: int = 0
    dport: int = 0
    icmp: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        if self.icmp:
            return f"{self.source} -> {self.destination} icmp {self.icmp[1]}/{self.icmp[2]} id {self.icmp[0]}"
        return f"{_end(self.source, self.sport)} -> {_end(self.destination, self.dport)} protocol {self.protocol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One tracked connection. `id` tells it from an earlier or later one of the same tuples; `timeout_s` is how long
    the kernel keeps it without another packet; `state` is TCP's or SCTP's, "" for other protocols.
    """

    original: Tuple
    reply: Tuple
    zone: int
    status: Status
    timeout_s: int
    mark: int
    state: str
    id: int


def _end(address: Address, port: int) -> str:
    host = f"[{address}]" if address.version == 6 and port else str(address)
    return f"{host}:{port}" if port else host


class Conntrack:
    """The table of the network namespace in which this is made, whichever thread uses it. Blocks: use a thread.

    One reading at a time; an entry may be deleted meanwhile.
    """

    def __init__(self) -> None:
        self._reader = Netlink(NETLINK_NETFILTER)
        self._writer = Netlink(NETLINK_NETFILTER)
        self._sequence = 0
        self._reading = threading.Lock()

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the kernel."""
        self._reader.close()
        self._writer.close()

    def count(self) -> int:
        """How many entries there are."""
        for body in self._stream(_GET_STATS, _header(0), dump=False):
            found = attributes(body, 4).get(_STATS_GLOBAL_ENTRIES)
            if found is not None:
                return int.from_bytes(found, "big")
        raise OSError(errno.EPROTO, "the kernel did not say how many connections it tracks")

    def flows(self) -> Iterator[Flow]:
        """Every entry, as the kernel hands them out. Raises OSError when it will not."""
        if not self.count():
            return
        for body in self._stream(_GET, _header(0)):
            flow = parse(body)
            if flow is not None:
                yield flow

    def flows_of(self, addresses: AbstractSet[Address]) -> Iterator[Flow]:
        """Entries whose first packet came from one of `addresses`, and those whose answers do; some may come twice."""
        there = self.count()
        if not there:
            return
        if there > FEW and len(addresses) <= ASKED_ONE_BY_ONE and not any(each.version == 6 for each in addresses):
            for address in addresses:
                for side in (_TUPLE_ORIG, _TUPLE_REPLY):
                    yield from self._filtered(side, address)
        else:
            yield from self._among(frozenset(each.packed for each in addresses))

    def _filtered(self, side: int, address: Address) -> Iterator[Flow]:
        """By the kernel's own filter: the source of one side."""
        wanted = frozenset({address.packed})
        try:
            yield from self._among(wanted, _header(_FAMILY[address.version]) + _by_source(side, address))
        except Refused as refusal:
            if refusal.errno not in _UNFILTERED:
                raise
            yield from self._among(wanted)

    def _among(self, wanted: AbstractSet[bytes], query: bytes = bytes(4)) -> Iterator[Flow]:
        for body in self._stream(_GET, query):
            if not wanted.isdisjoint(_sources(body)):
                flow = parse(body)
                if flow is not None:
                    yield flow

    def delete(self, flow: Flow) -> bool:
        """Remove exactly this entry; False when it is gone already, whatever has its tuples by now.

        The next packet of either direction is a new flow's. Raises OSError when the kernel refuses.
        """
        body = (
            _header(_FAMILY[flow.original.source.version])
            + attribute(_TUPLE_ORIG | _NESTED, pack(flow.original))
            + (attribute(_ZONE, flow.zone.to_bytes(2, "big")) if flow.zone else b"")
            + attribute(_ID, flow.id.to_bytes(4, "big"))
        )
        try:
            self._writer.request(_DELETE, 0, body)
        except Refused as refusal:
            if refusal.errno == errno.ENOENT:
                return False
            raise
        return True

    def _stream(self, kind: int, body: bytes, *, dump: bool = True) -> Iterator[bytes]:
        """What the kernel answers, without headers, until it is done; read to its end also if nobody listens on."""
        if not self._reading.acquire(blocking=False):
            raise OSError(errno.EBUSY, "another reading of the connections is not at its end")
        try:
            self._sequence += 1
            sequence = self._sequence & 0x7FFFFFFF
            flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
            self._reader.raw.send(HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body)
            answers = self._answers(sequence, dump=dump)
            try:
                for answer in answers:  # noqa: UP028 - `yield from` would end it with us
                    yield answer
            finally:
                for _ in answers:
                    pass
        finally:
            self._reading.release()

    def _answers(self, sequence: int, *, dump: bool) -> Iterator[bytes]:
        while True:
            data = self._reader.raw.recv(_RECEIVE)
            at, size = 0, len(data)
            while at < size:
                length, kind, _, heard, _ = HEADER.unpack_from(data, at)
                if heard == sequence:
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        (code,) = struct.unpack_from("=i", data, at + 16)
                        if code < 0:
                            raise Refused(-code, f"connections cannot be read: {errno.errorcode.get(-code, code)}")
                        return
                    yield data[at + 16 : at + length]
                    if not dump:
                        return
                at += (length + 3) & ~3


def _by_source(side: int, address: Address) -> bytes:
    """What asks the kernel for entries with `address` as the source of one side."""
    flags = {side: _FILTER_BY_SOURCE}
    wanted = attribute(_TUPLE_IP | _NESTED, attribute(_SOURCE[address.version], address.packed))
    masks = (attribute(each, struct.pack("=I", flags.get(each, 0))) for each in (_TUPLE_ORIG, _TUPLE_REPLY))
    return attribute(side | _NESTED, wanted) + attribute(_FILTER | _NESTED, b"".join(masks))


def _sources(body: bytes) -> tuple[bytes, bytes]:
    """The sources of both tuples, by their places: a tenth of the work of `parse`.

    The kernel writes the two tuples first, in each the addresses first, and the source before the destination.
    """
    width = 4 if body[0] == _FAMILY[4] else 16
    reply = 4 + (int.from_bytes(body[4:6], sys.byteorder) + 3 & ~3)
    return body[16 : 16 + width], body[reply + 12 : reply + 12 + width]


def parse(body: bytes) -> Flow | None:
    """The flow in one message of the kernel's; None when it is of no family that we know."""
    found = attributes(body, 4)
    version = {2: 4, 10: 6}.get(body[0])
    if version is None or _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    original, zone = _tuple(found[_TUPLE_ORIG], version)
    reply, _ = _tuple(found[_TUPLE_REPLY], version)
    return Flow(
        original=original,
        reply=reply,
        zone=_number(found, _ZONE) or zone,
        status=Status(_number(found, _STATUS)),
        timeout_s=_number(found, _TIMEOUT),
        mark=_number(found, _MARK),
        state=_state(found.get(_PROTOINFO, b"")),
        id=_number(found, _ID),
    )


def _header(family: int) -> bytes:
    return bytes((family, 0, 0, 0))


def _number(found: Attributes, kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), "big")


def _tuple(data: bytes, version: int) -> tuple[Tuple, int]:
    """One tuple, and the zone that holds in its direction only (0: none)."""
    found = attributes(data)
    ends, spoken = attributes(found[_TUPLE_IP]), attributes(found[_TUPLE_PROTO])
    make = IPv4Address if version == 4 else IPv6Address
    identity = 4 if 4 in spoken else 7
    made = Tuple(
        make(ends[_SOURCE[version]]),
        make(ends[_DESTINATION[version]]),
        spoken[1][0],
        _number(spoken, 2),
        _number(spoken, 3),
        (_number(spoken, identity), _number(spoken, identity + 1), _number(spoken, identity + 2))
        if identity in spoken
        else None,
    )
    return made, _number(found, _TUPLE_ZONE)


def pack(given: Tuple) -> bytes:
    """A tuple as the kernel reads it."""
    version = given.source.version
    ends = attribute(_SOURCE[version], given.source.packed) + attribute(_DESTINATION[version], given.destination.packed)
    spoken = attribute(1, bytes((given.protocol,)))
    if given.icmp:
        first = 4 if version == 4 else 7
        identity, kind, code = given.icmp
        spoken += attribute(first, identity.to_bytes(2, "big"))
        spoken += attribute(first + 1, bytes((kind,))) + attribute(first + 2, bytes((code,)))
    elif given.sport or given.dport:
        spoken += attribute(2, given.sport.to_bytes(2, "big")) + attribute(3, given.dport.to_bytes(2, "big"))
    return attribute(_TUPLE_IP | _NESTED, ends) + attribute(_TUPLE_PROTO | _NESTED, spoken)


def _state(data: bytes) -> str:
    for kind, nested in attributes(data).items():
        number = attributes(nested).get(1, b"")
        names = _STATES.get(kind)
        if names and number and number[0] < len(names):
            return names[number[0]]
    return ""
