"""cni-ready: from the start of ADD to the first echo reply that another node gets from the pod.

    other node ── an echo request each millisecond, from before ADD begins ──> node ──> pod      (BGP between the nodes)

The pod's address is asked for (`runtimeConfig.ips`), so that the other node knows it beforehand. Addresses are new,
and in order: one pod in 64 needs a block that its node does not have, to which the other node has no route; that takes
the claim, the datastore and both speakers. Ours is two nodes with felix and bgp, one of them with the CNI agent. The
peer is ptp with host-local, and the other node's default route leads to all its pods.

    figure      p50 of 100 pods, one after the other; p99 beside it
    add p50     when ADD has ended, which the first reply need not wait for
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from statistics import median, quantiles
from typing import Final

from bench.cni_node import POOL, CniNode, Container, Pods, Runtime, cluster, pods, ptp, removed, wire
from bench.model import Bench, Figures, Subjects, at_most
from bench.rack import Rack, until
from linux import netns
from linux.rights import require_net_admin

PODS: Final = 100
PATIENCE_S: Final = 20.0
EVERY_S: Final = 0.001

P99: Final = "p99 ms"
ADD: Final = "add p50 ms"

BENCH: Final = Bench(
    name="cni-ready",
    what="start of ADD to the first ping reply on another node",
    unit="ms",
    peer="ptp and host-local, a static route",
    targets=(at_most(100, of=P99, absolute=True),),
    runs=5,
)

_FIRST: Final = int(IPv4Network(POOL).network_address)
_ECHO, _REPLY = 8, 0
_ICMP: Final = struct.Struct("!BBHHH")
_IDENTITY: Final = 0x6D75


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Two nodes of ours and two of the peer's."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        wire(rack, "near", "far", 1)
        wire(rack, "peer", "beyond", 2)
        peer = ptp(rack, "peer")
        datastore = rack.datastore(list(cluster("192.168.1.1/24", "192.168.1.2/24")))
        ours = CniNode(rack, "near", datastore).runtime
        words = ("--node", "node-2", "--datastore", datastore, "--run-dir", str(rack.folder / "far-felix"))
        rack.start("far", sys.executable, "-m", "felix", *words)
        for place, node in (("near", "node-1"), ("far", "node-2")):
            speaker = rack.speaker(place, node, datastore)
            until(f"the speaker of {place} is ready", lambda s=speaker: s.state().ready, 0.2)  # type: ignore[misc]
        waiting, turns = pods(rack, "pod", PODS), count()
        asked = [stack.enter_context(Asking(netns.path(rack.place(place)))) for place in ("far", "beyond")]
        yield Subjects(
            lambda: turn(ours, asked[0], waiting, next(turns)), lambda: turn(peer, asked[1], waiting, next(turns))
        )


def turn(runtime: Runtime, asking: Asking, waiting: Pods, number: int) -> Figures:
    """Milliseconds to the first reply; every pod is removed again."""
    containers = waiting.containers(number)
    with removed(runtime, containers, PODS), netns.inside(runtime.place):
        timed = [_timed(runtime, asking, each, _FIRST + number * PODS + n) for n, each in enumerate(containers, 2)]
    replied = [reply for reply, _ in timed]
    p99 = quantiles(replied, n=100, method="inclusive")[98]
    return Figures(median(replied), {P99: p99, ADD: median(added for _, added in timed)})


def _timed(runtime: Runtime, asking: Asking, container: Container, wanted: int) -> tuple[float, float]:
    """Milliseconds from the start of ADD: to the first reply, and to the end of ADD."""
    address = str(IPv4Address(wanted))
    with asking.ask(address) as heard:
        begun = time.perf_counter()
        runtime.call("ADD", container, runtimeConfig={"ips": [address]})
        added = time.perf_counter()
    return (heard[0] - begun) * 1000, (added - begun) * 1000


class Asking:
    """Sends echo requests from a node."""

    def __init__(self, place: str) -> None:
        self._socket = netns.open_socket(place, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @contextmanager
    def ask(self, address: str) -> Iterator[Sequence[float]]:
        """Ask from before the block begins until there is a reply; when there was one is in the list at the end.

        TimeoutError when there is none in time.
        """
        heard: list[float] = []
        asking, over = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._until_reply, args=(address, heard, asking, over))
        thread.start()
        try:
            asking.wait()
            yield heard
            thread.join(PATIENCE_S)
        finally:
            over.set()
            thread.join()
        if not heard:
            raise TimeoutError(f"{address} does not reply within {PATIENCE_S:g} s of its ADD")

    def _until_reply(self, address: str, heard: list[float], asking: threading.Event, over: threading.Event) -> None:
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        numbers = count()
        while not over.is_set():
            with contextlib.suppress(OSError):  # there is no route to it yet
                self._socket.sendto(_request(next(numbers) & 0xFFFF), (address, 0))
            asking.set()
            due = time.perf_counter() + EVERY_S
            while (left := due - time.perf_counter()) > 0:
                if ready.poll(left * 1000) and self._is_reply(address):
                    heard.append(time.perf_counter())
                    return

    def _is_reply(self, address: str) -> bool:
        try:
            packet, source = self._socket.recvfrom(2048)
        except OSError:
            return False  # told that there is no way to it yet
        body = packet[(packet[0] & 0xF) * 4 :]
        kind, _, _, identity, _ = _ICMP.unpack_from(body)
        return (source[0], kind, identity) == (address, _REPLY, _IDENTITY)


def _request(number: int) -> bytes:
    total = (_ECHO << 8) + _IDENTITY + number
    total = (total & 0xFFFF) + (total >> 16)
    return _ICMP.pack(_ECHO, 0, ~total & 0xFFFF, _IDENTITY, number)
