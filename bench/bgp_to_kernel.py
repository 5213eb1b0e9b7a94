"""bgp-to-kernel: 100,000 routes from a top-of-rack router into the node's kernel; muslin as the node, and BIRD.

Two racks of one ToR (BIRD) and one node each, alike but for what runs on the node. The sessions stand, with nothing
told. A turn enables 100,000 static routes on the ToR and is timed from that command until the node's kernel holds
them all; then they are disabled again, and the turn ends when the kernel holds none of them. ToR and node run at the
same time on the machine's processors, as they would not in a rack: both sides pay for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from typing import Final

from bench.model import Bench, Figures, Subjects, at_most
from bench.rack import Bird, Rack, until
from core.resources import BGPConfiguration, BGPPeer, IPPool, Metadata, Node, Resource
from core.resources.bgp import BGPConfigurationSpec, BGPPeerSpec
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from linux.rights import require_net_admin

ROUTES: Final = 100_000
GONE: Final = "s until withdrawn"
NODE: Final = "node"

BENCH: Final = Bench(
    name="bgp-to-kernel",
    what="100,000 routes from the ToR into the node's kernel",
    unit="s",
    peer="BIRD as the node",
    targets=(at_most(1.0),),
)

_POOL: Final = "10.0.0.0/8"
_FIRST: Final = int(IPv4Network(_POOL).network_address)

TOR: Final = """
protocol static many {{ disabled; ipv4; {routes} }}
protocol bgp node {{
  local 192.168.{rack}.1 as 65001; neighbor 192.168.{rack}.2 as 64512; hold time 90;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"""

NODE_BIRD: Final = """
protocol kernel { ipv4 { import none; export all; }; }
protocol bgp tor {
  local 192.168.2.2 as 64512; neighbor 192.168.2.1 as 65001; hold time 90;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 { import all; export none; };
}
"""


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Both racks, their sessions established."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        ours, theirs = _tor(rack, 1), _tor(rack, 2)
        speaker = rack.speaker("node1", NODE, rack.datastore(list(cluster())))
        Bird(rack, "node2", "192.168.2.2", NODE_BIRD)
        for tor in (ours, theirs):
            until("the session is up", lambda tor=tor: tor.up("node"), 0.2)  # type: ignore[misc]
        until("the speaker is ready", lambda: speaker.state().ready, 0.2)
        yield Subjects(_turn(rack, ours, "node1"), _turn(rack, theirs, "node2"))


def cluster() -> Iterator[Resource]:
    """One node, one pool, one ToR."""
    yield IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr=_POOL))
    yield Node(metadata=Metadata(name=NODE), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.168.1.2/24")))
    yield BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(peer_ip="192.168.1.1", as_number=65001))
    spec = BGPConfigurationSpec(node_to_node_mesh_enabled=False)
    yield BGPConfiguration(metadata=Metadata(name="default"), spec=spec)


def _tor(rack: Rack, number: int) -> Bird:
    rack.wire(f"tor{number}", f"192.168.{number}.1/24", f"node{number}", f"192.168.{number}.2/24")
    blocks = (IPv4Network((_FIRST + (n << 6), 26)) for n in range(ROUTES))
    routes = " ".join(f"route {block} blackhole;" for block in blocks)
    return Bird(rack, f"tor{number}", f"192.168.{number}.1", TOR.format(rack=number, routes=routes))


def _turn(rack: Rack, tor: Bird, place: str) -> Callable[[], Figures]:
    empty = rack.prefixes(place)

    def turn() -> Figures:
        begun = time.perf_counter()
        tor.ask("enable", "many")
        told = until("the routes are in the kernel", lambda: rack.prefixes(place) >= empty + ROUTES)
        tor.ask("disable", "many")
        gone = until("the routes are gone", lambda: rack.prefixes(place) <= empty)
        return Figures(told - begun, {GONE: gone - told})

    return turn
