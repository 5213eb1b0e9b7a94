"""bgp-failover: one of two top-of-rack routers goes silent; how long until traffic goes by the other one.

             ┌── tor1 (BIRD, AS 65001) ──┐
    node ────┤                           ├──── far: sixteen addresses of one block
             └── tor2 (BIRD, AS 65002) ──┘

Such worlds, alike but for what runs on the node: muslin, or BIRD. Both ToRs tell the node the block, so its route
has two next hops, and each address goes by one of them. A probe a millisecond goes to an address behind each ToR; then
nothing that tor1 sends leaves it any more, with its links up and nobody told. The outage is the time between the last
probe that arrived by tor1 and the first by tor2, by when they were sent. BFD is what notices: at 100 ms x 3 for the
figure, at the default of 300 ms x 3 for the other. Meanwhile no probe by way of tor2 may be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from bench.model import Bench, Figures, Subjects, at_most
from bench.rack import Bird, Rack, until
from core.resources import BGPConfiguration, BGPPeer, IPPool, Metadata, Node, Resource
from core.resources.bgp import BFDSpec, BGPConfigurationSpec, BGPPeerSpec
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from linux import netns, sysctl
from linux.rights import require_net_admin

BY_DEFAULT: Final = "ms at 300 ms x 3"

BENCH: Final = Bench(
    name="bgp-failover",
    what="silent loss of one of two ToRs to traffic on the other, BFD at 100 ms x 3",
    unit="ms",
    peer="BIRD as the node",
    targets=(at_most(400, absolute=True), at_most(1000, of=BY_DEFAULT, absolute=True)),
    runs=3,
)

USUAL_MS: Final = 300
"""What a BGPPeer's `bfd` is without a word about intervals."""

FAST_MS: Final = 100

BEFORE_S: Final = 0.2
LONGEST_S: Final = 5.0
ARRIVED: Final = 200
"""So many probes in a row that arrive after a loss end the outage."""

FEW: Final = 20
"""Probes that may be lost by way of the ToR that stays: a kernel that replaces a route may drop some."""

PORT: Final = 9000
POOL: Final = "10.244.0.0/16"
BLOCK: Final = "10.244.5.0/26"
FAR: Final = [f"10.244.5.{number}" for number in range(1, 17)]
_PROBE: Final = struct.Struct("!Id")
_IP_PKTINFO: Final = 8  # linux/in.h; the socket module does not name it

TOR: Final = """
protocol static pods {{ ipv4; route {block} via 192.168.{far}.2; }}
protocol kernel {{ ipv4 {{ import none; export where source = RTS_STATIC; }}; }}
protocol bfd {{ }}
protocol bgp node {{
  local 192.168.{tor}.1 as 6500{tor}; neighbor 192.168.{tor}.2 as 64512; hold time 30;
  bfd {{ interval {ms} ms; multiplier 3; }};
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"""

NODE_BIRD: Final = """
protocol bfd {{ }}
protocol kernel {{ merge paths on; ipv4 {{ import none; export all; }}; }}
template bgp tor {{
  hold time 30; bfd {{ interval {ms} ms; multiplier 3; }};
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export none; }};
}}
protocol bgp tor1 from tor {{ local 192.168.1.2 as 64512; neighbor 192.168.1.1 as 65001; }}
protocol bgp tor2 from tor {{ local 192.168.2.2 as 64512; neighbor 192.168.2.1 as 65002; }}
"""


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Four worlds: muslin's and BIRD's, each at both paces."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        ours = [World(rack, f"m{ms}", ms) for ms in (FAST_MS, USUAL_MS)]
        theirs = [World(rack, f"b{ms}", ms) for ms in (FAST_MS, USUAL_MS)]
        stack.callback(_end_inhabitants, [rack.place(world.node) for world in ours])
        for world in (*ours, *theirs):
            world.build(stack)
        datastore = rack.datastore(list(cluster(ours)))
        for world in ours:
            rack.speaker(world.node, world.node, datastore)
        for world in theirs:
            Bird(rack, world.node, "192.168.1.2", NODE_BIRD.format(ms=world.ms))
        yield Subjects(lambda: _turn(ours), lambda: _turn(theirs))


def cluster(worlds: Sequence[World]) -> Iterator[Resource]:
    """A node for each world, each with both its ToRs."""
    yield IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr=POOL))
    spec = BGPConfigurationSpec(node_to_node_mesh_enabled=False)
    yield BGPConfiguration(metadata=Metadata(name="default"), spec=spec)
    for world in worlds:
        pace = f"{world.ms}ms"
        bfd = BFDSpec() if world.ms == USUAL_MS else BFDSpec(minimum_send_interval=pace, minimum_recv_interval=pace)
        node = NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.168.1.2/24"))
        yield Node(metadata=Metadata(name=world.node), spec=node)
        for tor in (1, 2):
            source = "UseNodeIP" if tor == 1 else "None"
            peer = BGPPeerSpec(
                node=world.node, peer_ip=f"192.168.{tor}.1", as_number=65000 + tor, source_address=source, bfd=bfd
            )
            yield BGPPeer(metadata=Metadata(name=f"{world.node}-tor{tor}"), spec=peer)


class World:
    """A node, two ToRs, and what is behind them; `node` is also the name of the node's place."""

    def __init__(self, rack: Rack, name: str, ms: int) -> None:
        self._rack, self._name, self.ms = rack, name, ms
        self.node = f"{name}node"
        self.tors: list[Bird] = []

    def build(self, stack: ExitStack) -> None:
        """Everything but what runs on the node."""
        far = f"{self._name}far"
        for tor in (1, 2):
            place = self._tor(tor)
            self._rack.wire(place, f"192.168.{tor}.1/24", self.node, f"192.168.{tor}.2/24")
            self._rack.wire(place, f"192.168.{tor + 10}.1/24", far, f"192.168.{tor + 10}.2/24")
            self._loosen(place)
        self._loosen(far)
        for address in FAR:
            self._rack.ip(far, f"addr add {address}/32 dev lo")
        for tor in (1, 2):
            body = TOR.format(block=BLOCK, tor=tor, far=tor + 10, ms=self.ms)
            self.tors.append(Bird(self._rack, self._tor(tor), f"192.168.{tor}.1", body))
        self._sender = stack.enter_context(self._socket(self.node))
        self._receiver = stack.enter_context(self._socket(far))
        self._receiver.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._receiver.bind(("", PORT))
        with netns.inside(self._rack.place(far)):
            self._devices = {socket.if_nametoindex(self._tor(tor)): tor for tor in (1, 2)}

    def outage(self) -> float:
        """Cut tor1 off and see; milliseconds. Everything is as before afterwards."""
        until(f"{self.node} uses both ToRs", lambda: self._ready() and set(self._ways().values()) == {1, 2}, 0.2)
        ways = self._ways()
        lost, kept = (next(address for address, tor in ways.items() if tor == which) for which in (1, 2))
        arrived: dict[str, list[tuple[float, int]]] = {lost: [], kept: []}
        sent: list[float] = []
        cut_at = time.monotonic() + BEFORE_S
        end = cut_at + LONGEST_S
        cutting: subprocess.Popen[bytes] | None = None
        now = tick = time.monotonic()
        while now < end and not self._over(arrived[lost]):
            if cutting is None and now >= cut_at:
                cutting = self._nft("add table netdev mute; add chain netdev mute out " + self._drop())
            for address in (lost, kept):
                self._sender.sendto(_PROBE.pack(FAR.index(address), now), (address, PORT))
            sent.append(now)
            self._collect(arrived)
            tick += 0.001
            now = time.monotonic()
            if tick > now:
                time.sleep(tick - now)
                now = time.monotonic()
        assert cutting is not None
        assert cutting.wait() == 0
        time.sleep(0.05)  # for the last ones under way
        self._collect(arrived)
        assert self._nft("delete table netdev mute").wait() == 0
        assert self._over(arrived[lost]), f"no probe arrived for {LONGEST_S:g} s"
        missed = len(set(sent) - {at for at, _ in arrived[kept]})
        assert missed <= FEW, f"{missed} probes by way of the other ToR were lost, too"
        before = max(at for at, tor in arrived[lost] if tor == 1)
        after = min(at for at, tor in arrived[lost] if tor == 2)
        return (after - before) * 1000

    def _ready(self) -> bool:
        """Whether both ToRs have their session, and BFD with it at its pace."""
        wait = f"{self.ms * 3 / 1000:.3f}"
        return all(tor.up("node") and f"{wait}\n" in tor.ask("show", "bfd", "sessions") for tor in self.tors)

    def _ways(self) -> dict[str, int]:
        """By which ToR a probe to each address arrives."""
        arrived: dict[str, list[tuple[float, int]]] = {address: [] for address in FAR}
        self._collect(arrived)
        arrived = {address: [] for address in FAR}
        with contextlib.suppress(OSError):  # there is no route yet
            for address in FAR:
                self._sender.sendto(_PROBE.pack(FAR.index(address), time.monotonic()), (address, PORT))
        time.sleep(0.1)
        self._collect(arrived)
        return {address: told[-1][1] for address, told in arrived.items() if told}

    def _collect(self, arrived: dict[str, list[tuple[float, int]]]) -> None:
        """What has arrived since: when it was sent, and by which ToR it came."""
        while True:
            try:
                data, control, _, _ = self._receiver.recvmsg(64, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return
            index, sent = _PROBE.unpack(data)
            device = struct.unpack("@i", control[0][2][:4])[0]
            if FAR[index] in arrived:
                arrived[FAR[index]].append((sent, self._devices[device]))

    @staticmethod
    def _over(arrived: Sequence[tuple[float, int]]) -> bool:
        return len(arrived) >= ARRIVED and all(tor == 2 for _, tor in arrived[-ARRIVED:])

    def _drop(self) -> str:
        return f"{{ type filter hook egress devices = {{ {self.node}, {self._name}far }} priority 0; policy drop; }}"

    def _nft(self, commands: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(netns.command(netns.path(self._rack.place(self._tor(1))), "nft", commands))

    def _tor(self, number: int) -> str:
        return f"{self._name}tor{number}"

    def _socket(self, place: str) -> socket.socket:
        return netns.open_socket(self._rack.place(place), socket.AF_INET, socket.SOCK_DGRAM)

    def _loosen(self, place: str) -> None:
        """Let it forward, and take what comes by either ToR."""
        with netns.inside(self._rack.place(place)):
            sysctl.write("net/ipv4/ip_forward", "1")
            for device in ("all", "default", *(name for _, name in socket.if_nameindex())):
                sysctl.write(f"net/ipv4/conf/{device}/rp_filter", "0")


def _turn(worlds: Sequence[World]) -> Figures:
    fast, usual = (world.outage() for world in worlds)
    return Figures(fast, {BY_DEFAULT: usual})


def _end_inhabitants(places: Sequence[str]) -> None:
    """A BFD child outlives its agent for a while, by design; a namespace it is in would stay, too."""
    for pid in netns.inhabitants(places):
        os.kill(pid, signal.SIGKILL)
