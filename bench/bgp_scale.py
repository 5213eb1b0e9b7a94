"""bgp-scale: one node that learns 5,000 nodes' 20,000 blocks from two route reflectors at once, and then loses one.

Each of the 5,000 nodes has four blocks and two links; each reflector (BIRD) tells of one link, so the kernel has two
next hops for each block, and has to be told of every one of them when a reflector is gone. The cluster's Nodes and
blocks are in the datastore that bgp follows.

    told       both reflectors are given all routes at one moment; timed until the kernel has all of them, both ways
    lost       one reflector is killed; timed until no route goes its way
    packets    a probe a millisecond all the while, to 20 blocks in turn: those that arrive behind neither link are lost

A reflector's machine goes on forwarding when the reflector is killed, as its rack would. The peer is BIRD as the node.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from bench.model import Bench, Figures, Subjects, at_most
from bench.rack import Bird, Rack, Speaker, until
from core.resources import BGPConfiguration, BGPPeer, IPAMBlock, IPPool, Metadata, Node, Resource
from core.resources.bgp import BGPConfigurationSpec, BGPPeerSpec
from core.resources.ipam import BlockSpec
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from linux import netns
from linux.netlink import Netlink, attributes
from linux.rights import require_net_admin
from linux.routes import RT_TABLE_MAIN, RTM_GETROUTE, RTMSG, unpack_hops

NODES: Final = 5_000
BLOCKS: Final = 4
RECONVERGED: Final = "s until re-converged"
LOST: Final = "packets lost"
MEMORY: Final = "MiB of agent and ExaBGP"
NODE: Final = "node-0"

BENCH: Final = Bench(
    name="bgp-scale",
    what="20,000 blocks of 5,000 nodes from two reflectors into the kernel; then one reflector lost",
    unit="s",
    peer="BIRD as the node",
    targets=(
        at_most(3, absolute=True),
        at_most(1, of=RECONVERGED, absolute=True),
        at_most(0, of=LOST, absolute=True),
        at_most(300, of=MEMORY, absolute=True),
    ),
    runs=3,
)

_POOL: Final = "10.0.0.0/9"
_FIRST: Final = int(IPv4Network(_POOL).network_address)
_LINKS: Final = {1: int(IPv4Address("10.128.0.0")), 2: int(IPv4Address("10.129.0.0"))}
_PROBES: Final = 20
_PORT: Final = 9
_LENGTH: Final = 26
_LATE_S: Final = 1.0

REFLECTOR: Final = """
protocol static many {{ disabled; ipv4; {routes} }}
protocol bgp node {{
  local 192.168.{link}.1 as 64512; neighbor 192.168.{link}.2 as 64512; hold time 90; rr client;
  connect delay time 1; connect retry time 1; error wait time 1,2; graceful restart off;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop keep; gateway recursive; }};
}}
"""

NODE_BIRD: Final = """
protocol kernel { merge paths on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol direct { ipv4; }
"""
NODE_SESSION: Final = """
protocol bgp reflector{link} {{
  local 192.168.{link}.2 as 64512; neighbor 192.168.{link}.1 as 64512; hold time 90;
  connect delay time 1; connect retry time 1; error wait time 1,2; graceful restart off;
  ipv4 {{ import all; export none; }};
}}
"""


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Both nodes, with links to two reflectors each."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        ours, theirs = Side(rack, "ours"), Side(rack, "theirs")
        ours.speaker = rack.speaker(ours.node, NODE, rack.datastore(list(cluster())))
        Bird(rack, theirs.node, "192.168.1.2", NODE_BIRD + "".join(NODE_SESSION.format(link=link) for link in _LINKS))
        until("the speaker is at work", lambda: ours.speaker is not None and bool(ours.speaker.state().sessions), 0.2)
        yield Subjects(ours.turn, theirs.turn)


def cluster() -> Iterator[Resource]:
    """A pool, the nodes and their blocks, and the two reflectors."""
    yield IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr=_POOL))
    yield Node(metadata=Metadata(name=NODE), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.168.1.2/24")))
    for number in range(NODES):
        name, address = f"node-{number + 1}", str(IPv4Address(_LINKS[1] + number + 1))
        yield Node(metadata=Metadata(name=name), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"{address}/16")))
        for block in _blocks(number):
            spec = BlockSpec(cidr=str(block), affinity=f"host:{name}")
            yield IPAMBlock(metadata=Metadata(name=str(block).replace(".", "-").replace("/", "-")), spec=spec)
    for link in _LINKS:
        reflector = BGPPeerSpec(peer_ip=f"192.168.{link}.1", as_number=64512, source_address="None")
        yield BGPPeer(metadata=Metadata(name=f"reflector-{link}"), spec=reflector)
    off = BGPConfigurationSpec(node_to_node_mesh_enabled=False)
    yield BGPConfiguration(metadata=Metadata(name="default"), spec=off)


def _blocks(node: int) -> list[IPv4Network]:
    return [IPv4Network((_FIRST + ((node * BLOCKS + each) << 6), 26)) for each in range(BLOCKS)]


class Side:
    """A node with two links, and at the far end of each a machine that runs a reflector and plays all nodes behind."""

    speaker: Speaker | None = None

    def __init__(self, rack: Rack, name: str) -> None:
        self._rack, self._name, self.node = rack, name, f"{name}-node"
        for link, first in _LINKS.items():
            far = f"{name}{link}"
            rack.wire(far, f"192.168.{link}.1/24", self.node, f"192.168.{link}.2/24")
            subnet = IPv4Network((first, 16))
            rack.ip(far, f"addr add {subnet[-3]}/16 dev {self.node}")
            rack.ip(self.node, f"addr add {subnet[-2]}/16 dev {far}")
            for played in (f"{subnet.network_address}/17", _POOL):
                rack.ip(far, f"route add local {played} dev lo")
        self._empty = rack.prefixes(self.node)

    def turn(self) -> Figures:
        """Told, and one lost."""
        reflectors = {link: self._reflector(link) for link in _LINKS}
        for link, each in reflectors.items():
            until(f"session {link} is up", lambda each=each: each.up("node"), 0.1)  # type: ignore[misc]
        begun = time.perf_counter()
        for each in reflectors.values():
            each.ask("enable", "many")
        until("the routes are in the kernel", lambda: self._rack.prefixes(self.node) >= self._empty + NODES * BLOCKS)
        told = until("both ways are in the kernel", lambda: self._ways() == {2: NODES * BLOCKS}) - begun
        memory = {MEMORY: self.speaker.resident()} if self.speaker else {}
        with Probe(self._rack, self.node, [f"{self._name}{link}" for link in _LINKS]) as probe:
            begun = time.perf_counter()
            reflectors[1].process.send_signal(signal.SIGKILL)
            converged = until("no route goes the lost way", lambda: self._ways() == {1: NODES * BLOCKS}) - begun
        reflectors[2].ask("disable", "many")
        until("the routes are gone", lambda: self._rack.prefixes(self.node) <= self._empty)
        reflectors[2].process.kill()
        return Figures(told, {RECONVERGED: converged, LOST: probe.lost, **memory})

    def _reflector(self, link: int) -> Bird:
        first = _LINKS[link]
        routes = " ".join(
            f"route {block} blackhole {{ bgp_next_hop = {IPv4Address(first + number + 1)}; }};"
            for number in range(NODES)
            for block in _blocks(number)
        )
        place = f"{self._name}{link}"
        return Bird(self._rack, place, f"192.168.{link}.1", REFLECTOR.format(link=link, routes=routes))

    def _ways(self) -> Counter[int]:
        """How many of the pool's routes the kernel has, by their number of next hops."""
        with netns.inside(self._rack.place(self.node)), Netlink() as kernel:
            found: Counter[int] = Counter()
            for data in kernel.dump(RTM_GETROUTE, RTMSG.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)):
                if RTMSG.unpack_from(data)[1] == _LENGTH:
                    found[len(unpack_hops(0, attributes(data, RTMSG.size)))] += 1
            return found


class Probe:
    """Sends a datagram a millisecond to `_PROBES` blocks in turn, and hears what arrives at either link's far end."""

    lost = 0

    def __init__(self, rack: Rack, node: str, far: list[str]) -> None:
        self._out = netns.open_socket(rack.place(node), socket.AF_INET, socket.SOCK_DGRAM)
        self._in = [netns.open_socket(rack.place(each), socket.AF_INET, socket.SOCK_DGRAM) for each in far]
        self._sent = 0
        self._seen: set[bytes] = set()
        self._targets = [str(_blocks(n * NODES // _PROBES)[0][5]) for n in range(_PROBES)]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Probe:
        for each in self._in:
            each.bind(("", _PORT))
        for _ in range(2 * _PROBES):  # neighbours are found
            self._send()
        until("probes arrive", lambda: self._hear() == self._sent)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        end = time.monotonic() + _LATE_S
        while self._hear() < self._sent and time.monotonic() < end:
            time.sleep(0.01)
        self.lost = self._sent - len(self._seen)
        for each in (self._out, *self._in):
            each.close()

    def _work(self) -> None:
        while not self._ending.wait(0.001):
            self._send()
            self._hear()

    def _send(self) -> None:
        self._out.sendto(self._sent.to_bytes(4, "big"), (self._targets[self._sent % _PROBES], _PORT))
        self._sent += 1

    def _hear(self) -> int:
        for each in self._in:
            with suppress(BlockingIOError):
                while True:
                    self._seen.add(each.recv(16))
        return len(self._seen)
