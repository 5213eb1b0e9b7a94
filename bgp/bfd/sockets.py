"""The datagrams of single-hop BFD (RFC 5881): UDP port 3784, TTL 255 both ways, one source port a session.

A receiving socket has no SO_REUSEADDR: a second BFD on the host (FRR's bfdd, BIRD) would take datagrams from ours
without a word, or ours from it. So the port is ours alone or taken, and taken is said.

The kernel stamps each datagram when it arrives, so one that waited for us still counts from then.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from bgp.bfd.model import Arrived

PORT: Final = 3784
HOPS: Final = 255
"""What we send and the least that we believe: a packet that a router has forwarded has less (RFC 5082)."""

SOURCE_PORTS: Final = range(49152, 65536)

_BACKLOG: Final = 4 * 1024 * 1024
"""Room for what arrives while we are not scheduled, in bytes: about 5,000 packets."""

_LONGEST: Final = 256
_ROOM: Final = socket.CMSG_SPACE(16) + socket.CMSG_SPACE(20) + socket.CMSG_SPACE(4)
_CONTROL_TRAFFIC: Final = 0xC0
"""DSCP CS6, network control: queues that know it drop everything else first."""

# What Python's socket module does not name; from the kernel's asm-generic/socket.h, in.h and in6.h.
_SO_TIMESTAMPNS: Final = 35
_SO_RCVBUFFORCE: Final = 33
_IP_RECVTTL: Final = 12
_IP_PKTINFO: Final = 8
_NANO: Final = 1e-9


def listen(family: int) -> socket.socket:
    """The receiving socket of an address family; OSError EADDRINUSE while another BFD has the port."""
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BACKLOG)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
            opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        opened.setblocking(False)
        opened.bind(("", PORT))
    except OSError:
        opened.close()
        raise
    return opened


def drain(opened: socket.socket, most: int) -> Iterator[Arrived]:
    """What has arrived, oldest first, up to `most` datagrams."""
    ahead = time.time() - time.monotonic()  # what stamps have over the monotonic clock
    for _ in range(most):
        try:
            data, control, _, source = opened.recvmsg(_LONGEST, _ROOM)
        except OSError:  # nothing more, or an error that the call has taken off the socket
            return
        yield _arrived(data, control, str(source[0]), ahead)


def speak(local: str, peer: str, first_port: int) -> socket.socket:
    """A socket to send to `peer` with, from a source port of its own at or after `first_port`.

    `local` "" has the kernel choose the source for each packet. Raises OSError while this host lacks `local`.
    """
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOPS)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _CONTROL_TRAFFIC)
        else:
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOPS)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CONTROL_TRAFFIC)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nobody should talk to it
        opened.setblocking(False)
        _bind(opened, local, first_port)
    except OSError:
        opened.close()
        raise
    return opened


def call_box(path: str) -> socket.socket:
    """The listening UNIX socket that a child and its agents meet at, for this user only."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.bind(path)
        os.chmod(path, 0o600)
        opened.listen(4)
    except OSError:
        opened.close()
        raise
    return opened


def random_number() -> int:
    """32 random bits, as discriminators and first source ports are made of."""
    return int.from_bytes(os.urandom(4), "big")


def _bind(opened: socket.socket, local: str, first_port: int) -> None:
    for tried in range(len(SOURCE_PORTS)):
        try:
            opened.bind((local, SOURCE_PORTS[(first_port + tried) % len(SOURCE_PORTS)]))
        except OSError as refusal:
            if refusal.errno != errno.EADDRINUSE or tried == len(SOURCE_PORTS) - 1:
                raise
        else:
            return


def _arrived(data: bytes, control: list[tuple[int, int, bytes]], source: str, ahead: float) -> Arrived:
    hops, device, to, at = -1, 0, "", time.monotonic()
    for level, kind, value in control:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("@ll", value)
            at = min(at, seconds + nanoseconds * _NANO - ahead)
        elif (level, kind) in ((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)):
            hops = struct.unpack("@i", value)[0]
        elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            device, to = struct.unpack("@i", value[:4])[0], socket.inet_ntop(socket.AF_INET, value[8:12])
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            to, device = socket.inet_ntop(socket.AF_INET6, value[:16]), struct.unpack("@I", value[16:20])[0]
    return Arrived(data=data, source=source, to=to, hops=hops, device=device, at=at)
