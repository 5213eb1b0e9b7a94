"""cni-add: what a runtime waits for a pod's network: ADD alone, one after the other, and 32 at once.

Ours writes an address, a handle and an endpoint into a datastore's server over SQLite, wires the pod, and answers when
felix has the pod's policy and route in the kernel; all four processes are as in service. The peer, ptp with host-local,
writes a file and wires the pod. Both are executables that the same runtime starts with the same environment.
Neither node tracks a connection. Where one does, ours looks among them for those of the address's former holder, which
takes the kernel some 10 ms on a host with many buckets: `cni-ready` has that in its ADD.

    figure      p50 of ADD alone, on a node that fills up to 100 pods; its p99 beside it
    pods/s      200 ADDs, 32 under way at a time
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from statistics import median, quantiles
from typing import Final

from bench.cni_node import CniNode, Pods, Runtime, cluster, pods, ptp, removed, wire
from bench.model import Bench, Figures, Subjects, at_least, at_most
from bench.rack import Rack
from linux.rights import require_net_admin

ALONE: Final = 100
AT_ONCE: Final = 200
CALLERS: Final = 32

P99: Final = "p99 ms"
PODS: Final = "32 at once, pods/s"

BENCH: Final = Bench(
    name="cni-add",
    what="ADD of a pod, policy included: alone, and 32 at once",
    unit="ms",
    peer="ptp and host-local",
    targets=(at_most(3), at_most(60, of=P99, absolute=True), at_least(0.5, of=PODS)),
    runs=5,
)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Two nodes, and the namespaces of their pods."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        wire(rack, "ours", "peer", 1)
        peer = ptp(rack, "peer")
        ours = CniNode(rack, "ours", rack.datastore(list(cluster("192.168.1.1/24")))).runtime
        waiting, turns = pods(rack, "pod", AT_ONCE), count()
        yield Subjects(lambda: turn(ours, waiting, next(turns)), lambda: turn(peer, waiting, next(turns)))


def turn(runtime: Runtime, waiting: Pods, number: int) -> Figures:
    """Milliseconds of ADD alone, and pods a second; every pod is removed again."""
    single = waiting.containers(2 * number, count=ALONE)
    with removed(runtime, single, CALLERS):
        alone = runtime.alone("ADD", single)
    crowd = waiting.containers(2 * number + 1)
    with removed(runtime, crowd, CALLERS):
        took = runtime.at_once("ADD", crowd, CALLERS)
    p99 = quantiles(alone, n=100, method="inclusive")[98]
    return Figures(median(alone), {P99: p99, PODS: len(crowd) / took})
