"""A packet a millisecond, each a flow of its own, while something else changes.

One thread sends from every source and reads at every destination. The datagrams are written by hand on raw sockets, so
each can have a source port of its own without a socket of its own; that port is also its number.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from linux import netns, sysctl
from tests.packets.ground import NODES, PATIENCE_S, Ground

EVERY_S = 0.001
DRAINED_EVERY = 20
PORTS = range(10_000, 65_000)
"""Source ports, each used once."""

WARM_UP_PORT = 9_999

RECEIVE_BYTES = 8 * 1024 * 1024
"""Room for what comes while the reader is kept from reading, and all at once when a neighbour has been found: what the
socket has no room for would look as if policy had dropped it."""

UDP_CHECKSUM = 6
"""Where it lies in the header. IPv4 may go without; the kernel fills in IPv6's."""


@dataclass
class Stream:
    """Datagrams from one pod to a port of another: how many were sent, and which have arrived."""

    source: str
    destination: str
    address: str
    port: int
    sender: socket.socket
    receiver: socket.socket
    sent: int = 0
    arrived: set[int] = field(default_factory=set)

    def send(self, number: int) -> None:
        self.sender.sendto(struct.pack("!HHHH", number, self.port, 8, 0), (self.address, 0))
        self.sent += 1

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.arrived.add(self.receiver.recvfrom(16)[1][1])

    @property
    def lost(self) -> list[int]:
        """The numbers, counted from the first packet, of those that were sent and have not arrived."""
        return [number for number in range(self.sent) if PORTS[number] not in self.arrived]

    def __str__(self) -> str:
        return f"{self.source} > {self.destination} {self.address} port {self.port}"


@contextlib.contextmanager
def streams(ground: Ground, pairs: Mapping[tuple[str, str], tuple[int, ...]]) -> Iterator[list[Stream]]:
    """Send on every pair to each of its ports, over both families, while the block runs."""
    opened = [
        _stream(ground, source, destination, port, family)
        for (source, destination), ports in pairs.items()
        for port in ports
        for family in (4, 6)
    ]
    for node in NODES:
        with netns.inside(ground.space(node)):
            sysctl.write("net/netfilter/nf_conntrack_udp_timeout", "2")  # so that its table is never full
    _warm_up(opened)
    ended, failed = threading.Event(), []

    def send() -> None:
        began = time.monotonic()
        for number, port in enumerate(PORTS):
            for each in opened:
                each.send(port)
            if number % DRAINED_EVERY == 0:
                for each in opened:
                    each.drain()
            if ended.wait(began + (number + 1) * EVERY_S - time.monotonic()):
                return
        failed.append("the source ports are used up")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield opened
    finally:
        ended.set()
        thread.join()
        for each in opened:
            each.drain()
            each.sender.close()
            each.receiver.close()
    assert not failed, failed


def _warm_up(opened: list[Stream]) -> None:
    """Send until something has come to every address: neighbours are found, which takes packets or a second."""
    deadline = time.monotonic() + PATIENCE_S
    waiting = {each.address for each in opened}
    while waiting:
        assert time.monotonic() < deadline, f"nothing at all reaches {sorted(waiting)}"
        for each in opened:
            each.send(WARM_UP_PORT)
            each.drain()
        waiting -= {each.address for each in opened if each.arrived}
        time.sleep(EVERY_S)
    for each in opened:
        each.sent, each.arrived = 0, set()


def _stream(ground: Ground, source: str, destination: str, port: int, version: int) -> Stream:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    address = ground.addresses[destination][version == 6]
    with netns.inside(ground.space(source)):
        sender = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_UDP)
    if version == 6:
        sender.setsockopt(socket.IPPROTO_IPV6, 7, UDP_CHECKSUM)  # IPV6_CHECKSUM
    with netns.inside(ground.space(destination)):
        receiver = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    receiver.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BYTES)  # SO_RCVBUFFORCE
    receiver.bind((address, port))
    return Stream(source, destination, address, port, sender, receiver)
