"""policy-connect: what a TCP connection from pod to pod of one node costs at 10,000 rules each way, beside at 100.

Connections are made one after the other, conntrack at work: socket, connect, accept, close, close. The veths of one
node carry a packet to its end within the call that sends it, so SYN, SYN-ACK and ACK all happen inside `connect`, with
no other process to be woken, and what is measured is the path. Python's own share is some microseconds for the five
calls. The client closes with a reset (SO_LINGER 0), so no port waits to be free again. All times are the CPU's, so that
what else runs on the machine does not make the p99.

    figure          a whole connection, all five calls
    connections/s   the same as a rate, of one CPU
    p99 us          99 of 100 `connect`s took no longer: SYN to established
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from bench.many_policies import ALLOWED_EARLY, DECIDED_LAST, DENIED_BY_NONE, DENIED_FIRST, PODS, cluster
from bench.model import Bench, Figures, Subjects, at_most
from bench.two_pods import TwoPods, two_pods
from linux import netns
from linux.rights import require_net_admin

BENCH: Final = Bench(
    name="policy-connect",
    what="one TCP connection after the other, pod to pod in one node, 10,000 rules in force each way",
    unit="us/connection",
    peer="the same at 100 rules",
    targets=(at_most(1.1), at_most(1.1, of="p99 us")),
    runs=31,
)

CONNECTIONS: Final = 1000
_RESET: Final = struct.pack("ii", 1, 0)
_SERVER: Final = (PODS["db"], DECIDED_LAST)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Two nodes of two pods."""
    require_net_admin()
    with ExitStack() as stack:
        most, few = (stack.enter_context(serving(rules)) for rules in (10_000, 100))
        yield Subjects(lambda: most.connect(CONNECTIONS), lambda: few.connect(CONNECTIONS))


@dataclass(frozen=True, slots=True)
class Served:
    """A node whose pod db listens."""

    node: TwoPods
    server: socket.socket

    def connect(self, times: int) -> Figures:
        """Microseconds of CPU time a connection, over that many. OSError if one fails."""
        waits = []
        with netns.inside(self.node.pod("web")):
            begun = time.thread_time_ns()
            for _ in range(times):
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                asked = time.thread_time_ns()
                client.connect(_SERVER)
                waits.append(time.thread_time_ns() - asked)
                accepted, _ = self.server.accept()
                client.close()
                accepted.close()
            took = time.thread_time_ns() - begun
        p99 = sorted(waits)[len(waits) * 99 // 100]
        return Figures(took / times / 1000, {"connections/s": times * 1e9 / took, "p99 us": p99 / 1000})


@contextmanager
def serving(rules: int) -> Iterator[Served]:
    """A node with that many rules each way in felix's tables; AssertionError if it judges connections wrongly."""
    with two_pods(f"connect-{rules}") as node:
        node.program(cluster(rules, "TCP"))
        with node.socket("db", socket.SOCK_STREAM) as server:
            server.settimeout(5)
            server.bind(_SERVER)
            server.listen(16)
            _await_neighbours(node)
            for port, allowed in ((ALLOWED_EARLY, True), (DENIED_FIRST, False), (DENIED_BY_NONE, False)):
                answer = answered(node, port)
                assert answer == allowed, f"TCP {port} is {'' if answer else 'not '}answered at {node.name}"
            yield Served(node, server)


def answered(node: TwoPods, port: int) -> bool:
    """Whether db answers web's SYN to a port on which nobody listens, by a reset: policy let both through."""
    with node.socket("web", socket.SOCK_STREAM) as client:
        client.connect_ex((PODS["db"], port))
        asked = select.poll()
        asked.register(client)
        return any(events & select.POLLERR for _, events in asked.poll(0))


def _await_neighbours(node: TwoPods) -> None:
    for _ in range(1000):
        if answered(node, ALLOWED_EARLY):
            return
        time.sleep(0.01)
    raise TimeoutError(f"the pods' packets do not arrive at {node.name}")
