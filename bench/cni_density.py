"""cni-density: 250 pods on one node, up and down, as many calls under way at a time as a busy runtime has.

Up ends with the last ADD, when policy of all 250 is in force. Down ends when nothing of them is left: no endpoint,
handle or address in the datastore; no interface or route in the kernel, and felix's table as it was before, chain by
chain and element by element. What is left behind for good fails the run. The peer is ptp with host-local, which has no
policy; its down ends with the last DEL.

    figure      seconds up
    down s      seconds down
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Final

from bench.cni_node import CniNode, Left, Pods, Runtime, cluster, pods, ptp, wire
from bench.model import Bench, Figures, Subjects, at_most
from bench.rack import Rack, until
from linux.rights import require_net_admin

PODS: Final = 250
CALLERS: Final = 32

DOWN: Final = "down s"

BENCH: Final = Bench(
    name="cni-density",
    what="250 pods on one node up, then down with nothing left",
    unit="s",
    peer="ptp and host-local",
    targets=(at_most(15, absolute=True), at_most(10, of=DOWN, absolute=True)),
    runs=3,
)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Two nodes, and the namespaces of their pods."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        wire(rack, "ours", "peer", 1)
        peer = ptp(rack, "peer")
        ours = CniNode(rack, "ours", rack.datastore(list(cluster("192.168.1.1/24"))))
        waiting, turns = pods(rack, "pod", PODS), count()
        yield Subjects(lambda: our_turn(ours, waiting, next(turns)), lambda: turn(peer, waiting, next(turns)))


def turn(runtime: Runtime, waiting: Pods, number: int) -> Figures:
    """Seconds up and down."""
    containers = waiting.containers(number)
    try:
        up = runtime.at_once("ADD", containers, CALLERS)
    finally:
        down = runtime.at_once("DEL", containers, CALLERS)
    return Figures(up, {DOWN: down})


def our_turn(node: CniNode, waiting: Pods, number: int) -> Figures:
    """Seconds up and down; TimeoutError when something of the pods is left."""
    before = node.left()
    figures = turn(node.runtime, waiting, number)
    begun = time.perf_counter()
    seen: list[Left] = []

    def as_before() -> bool:
        seen[:] = [node.left()]
        return seen[0] == before

    ended = until("nothing of the pods is left", as_before)
    return Figures(figures.figure, {DOWN: figures.others[DOWN] + ended - begun})
