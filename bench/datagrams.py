"""The time a node takes over a UDP packet from one of its pods to the other, each judged as the first of a flow.

`notrack` in a table of the bench's own keeps conntrack out, so there is no established flow to be let through. Packets
leave by `sendmmsg`, up to a thousand to a call, and travel through both veths and the host within that call: the CPU
time of the calls is that of the path, and hardly any of Python's. That every packet arrived is checked each time; and
once before, that what is allowed arrives and what is denied does not.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench.many_policies import ALLOWED_EARLY, DECIDED_LAST, DENIED_BY_NONE, DENIED_FIRST, PODS, cluster
from bench.rule_walking import render
from bench.two_pods import TwoPods, two_pods

_AT_ONCE: Final = 1000
_NOTRACK: Final = (
    "table inet bench { chain raw { type filter hook prerouting priority -310; meta l4proto udp notrack; }; }"
)


@dataclass(frozen=True, slots=True)
class Path:
    """A node whose pod web sends to its pod db."""

    node: TwoPods
    sender: socket.socket

    def cost(self, packets: int) -> float:
        """Nanoseconds of CPU time a packet, over that many. AssertionError if one did not arrive."""
        bursts = [Burst(self.sender, min(packets, _AT_ONCE))] * max(1, packets // _AT_ONCE)
        self.await_neighbours()
        before = self.node.arrived("db")
        begun = time.thread_time_ns()
        for burst in bursts:
            burst.send()
        took = time.thread_time_ns() - begun
        arrived, sent = self.node.arrived("db") - before, sum(burst.packets for burst in bursts)
        assert arrived == sent, f"{arrived} of {sent} packets arrived at {self.node.name}"
        return took / sent

    def await_neighbours(self, port: int = DECIDED_LAST) -> None:
        """Send until a packet arrives at once: addresses are resolved. TimeoutError if none does."""
        for _ in range(1000):
            if arrives(self.node, "web", "db", port):
                return
            time.sleep(0.01)
        raise TimeoutError(f"the pods' packets do not arrive at {self.node.name}")


@contextmanager
def looked_up(rules: int) -> Iterator[Path]:
    """A node with that many rules each way, in felix's tables."""
    with wired(f"felix-{rules}") as path:
        path.node.program(cluster(rules))
        check(path, rules)
        yield path


@contextmanager
def walked(rules: int) -> Iterator[Path]:
    """A node with the same rules as chains that are walked; felix's routes, and none of its tables."""
    with wired(f"walked-{rules}") as path:
        path.node.program(cluster(0))
        path.node.load("delete table inet muslin")
        path.node.load(render(cluster(rules), "node"))
        check(path, rules)
        yield path


def check(path: Path, rules: int) -> None:
    """AssertionError unless the node lets through what the policies of `cluster(rules)` allow, and nothing else."""
    path.await_neighbours()
    for source, destination, port, allowed in (
        ("web", "db", DECIDED_LAST, True),
        ("web", "db", ALLOWED_EARLY, True),
        ("web", "db", DENIED_FIRST, False),
        ("web", "db", DENIED_BY_NONE, False),
        ("db", "web", DECIDED_LAST, True),
    ):
        expected = allowed or not rules
        found = arrives(path.node, source, destination, port)
        words = "arrives" if found else "does not arrive"
        assert found == expected, f"UDP {port} from {source} to {destination} {words} at {path.node.name}"


def arrives(node: TwoPods, source: str, destination: str, port: int) -> bool:
    """Whether one datagram does, once the pods know their neighbours."""
    before = node.arrived(destination)
    with node.socket(source, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"policy", (PODS[destination], port))
    return node.arrived(destination) > before


@contextmanager
def wired(name: str) -> Iterator[Path]:
    """A node in whose kernel no flow is ever established; its own rules and routes are still to be made."""
    with two_pods(name) as node:
        node.load(_NOTRACK)
        with node.socket("db", socket.SOCK_DGRAM) as receiver, node.socket("web", socket.SOCK_DGRAM) as sender:
            # The kernel counts a datagram when it is read or thrown away, so few may wait.
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            receiver.bind((PODS["db"], DECIDED_LAST))
            sender.connect((PODS["db"], DECIDED_LAST))
            yield Path(node, sender)


class Burst:
    """The same small datagram many times in one call."""

    def __init__(self, sender: socket.socket, packets: int) -> None:
        self.packets = packets
        self._payload = ctypes.create_string_buffer(b"policy")
        self._vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(self._payload), 6))
        # struct mmsghdr: name, its length, iov, how many, control, its length, flags, bytes sent
        one = struct.pack("PI4xPNPNi4xI4x", 0, 0, ctypes.addressof(self._vector), 1, 0, 0, 0, 0)
        self._messages = ctypes.create_string_buffer(one * packets, len(one) * packets)
        self._send = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._sender = sender

    def send(self) -> None:
        """Send them all; OSError if the kernel took fewer."""
        if self._send(self._sender.fileno(), self._messages, self.packets, 0) != self.packets:
            raise OSError(ctypes.get_errno(), "sendmmsg")
