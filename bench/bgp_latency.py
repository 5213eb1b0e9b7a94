"""bgp-latency: a block allotted on one node to the route in the far node's kernel, over three routers.

    datastore ── node ── ToR ── spine ── ToR ── node ── its kernel      an AS each, BIRD on all three routers

Ours is timed from the moment an IPAMBlock is given to the datastore's client until the far kernel tells of the route:
the write, the watch, the near agent and its ExaBGP, three BIRDs, the far ExaBGP and its agent. The peer is the same
chain with BIRD as the nodes and no datastore: it is timed from a route written into the near node's kernel, which BIRD
learns from there. Blocks come one by one, at odd moments. The second half of a turn is the same with 20,000 other
prefixes, which the spine tells, in every table.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address, IPv4Network
from statistics import median
from typing import Final

from bench.model import Bench, Figures, Subjects, at_most
from bench.rack import Bird, Rack, until
from core.names import Key
from core.resources import BGPConfiguration, BGPPeer, IPAMBlock, IPPool, Metadata, Node, Resource
from core.resources.bgp import BGPConfigurationSpec, BGPPeerSpec
from core.resources.ipam import BlockSpec
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from datastore import objects
from datastore.api import Delete
from datastore.client import GrpcStore
from datastore.ipam.block import block_name
from linux import netns
from linux.rights import require_net_admin

BLOCKS: Final = 200
OTHERS: Final = 20_000

BENCH: Final = Bench(
    name="bgp-latency",
    what="a block allotted on one node to the route in the far node's kernel, across ToR, spine and ToR",
    unit="ms",
    peer="BIRD as the nodes",
    targets=(at_most(15, absolute=True), at_most(50, of="p99 ms", absolute=True)),
    runs=3,
)

POOL: Final = IPv4Network("10.0.0.0/8")
PATIENCE_S: Final = 10.0
AT_ONCE: Final = 20
"""Blocks freed in one go: what vanishes in masses is held back by the agents' breaker."""

_ODD_S: Final = 0.01
"""Blocks come up to this long after the one before has arrived."""

SESSION: Final = """
protocol bgp {name} {{
  local {local} as {own}; neighbor {remote} as {other}; hold time 90;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export where source ~ [ RTS_BGP, RTS_STATIC, RTS_INHERIT ]; next hop self; }};
}}
"""
KERNEL: Final = "protocol kernel { scan time 3600; learn; ipv4 { import all; export where source = RTS_BGP; }; }\n"

_NEW_ROUTE, _RTMGRP_IPV4_ROUTE, _RTA_DST = 24, 0x40, 1


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Both chains, all sessions established."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        ours, theirs = Chain(rack, 1), Chain(rack, 2)
        datastore = rack.datastore(list(cluster()))
        speakers = [rack.speaker(f"{end}1", end, datastore) for end in ("near", "far")]
        for end, tor in (("near", 1), ("far", 3)):
            Bird(rack, f"{end}2", theirs.address(tor, 2), KERNEL + theirs.session(end, tor, node=True))
        for chain in (ours, theirs):
            chain.settle()
        for speaker in speakers:
            until("the speaker is ready", lambda s=speaker: s.state().ready, 0.2)  # type: ignore[misc]
        argv = ["ip", "-n", rack.place("near2"), "-force", "-batch", "-"]
        kernel = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)
        stack.callback(kernel.wait, 10)
        assert kernel.stdin is not None
        stack.enter_context(kernel.stdin)
        yield Subjects(lambda: asyncio.run(_ours(ours, datastore)), lambda: asyncio.run(_peers(theirs, kernel)))


def cluster() -> Iterator[Resource]:
    """Two nodes, far apart; blocks of the pool are to come."""
    yield IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr=str(POOL)))
    spec = BGPConfigurationSpec(node_to_node_mesh_enabled=False)
    yield BGPConfiguration(metadata=Metadata(name="default"), spec=spec)
    for node, rack, number in (("near", 1, 65101), ("far", 3, 65103)):
        bgp = NodeBGPSpec(ipv4_address=f"192.168.1{rack}.2/24", as_number=number)
        yield Node(metadata=Metadata(name=node), spec=NodeSpec(bgp=bgp))
        peer = BGPPeerSpec(node=node, peer_ip=f"192.168.1{rack}.1", as_number=65000 + rack)
        yield BGPPeer(metadata=Metadata(name=f"tor-{node}"), spec=peer)


class Chain:
    """ToR, spine and ToR of one side, and where its nodes go. Router 2 is the spine; AS numbers are 65001 to 65003."""

    def __init__(self, rack: Rack, side: int) -> None:
        self.rack, self.side = rack, side
        self.far = rack.place(f"far{side}")
        links = ((1, "near", 1), (3, "far", 1), (2, 1, 1), (2, 3, 3))
        for router, end, _ in links[:2]:
            rack.wire(
                f"r{router}{side}", self.address(router, 1) + "/24", f"{end}{side}", self.address(router, 2) + "/24"
            )
        for upper, lower, _ in links[2:]:
            link = 20 + lower
            a, b = self.address(link, 1), self.address(link, 2)
            rack.wire(f"r{upper}{side}", a + "/24", f"r{lower}{side}", b + "/24")
        others = " ".join(f"route {block} blackhole;" for block in _blocks(OTHERS, 1 << 16))
        bodies = {
            1: self.session("near", 1, node=False) + self.uplink(1),
            2: f"protocol static others {{ disabled; ipv4; {others} }}\n" + self.downlink(1) + self.downlink(3),
            3: self.session("far", 3, node=False) + self.uplink(3),
        }
        self.routers = {n: Bird(rack, f"r{n}{side}", self.address(n, 1), KERNEL + body) for n, body in bodies.items()}

    def address(self, link: int, end: int) -> str:
        """An end's address on a link; the links are 1 and 3 to nodes, 21 and 23 to the spine."""
        return f"192.168.{self.side * 10 + link if link < 10 else self.side * 50 + link}.{end}"

    def session(self, name: str, router: int, *, node: bool) -> str:
        """A ToR's session with its node, as either has it."""
        local, remote = (self.address(router, 2 if node else 1), self.address(router, 1 if node else 2))
        own, other = (65100 + router, 65000 + router) if node else (65000 + router, 65100 + router)
        return SESSION.format(name=name, local=local, remote=remote, own=own, other=other)

    def uplink(self, router: int) -> str:
        """A ToR's session with the spine."""
        local, remote = self.address(20 + router, 2), self.address(20 + router, 1)
        return SESSION.format(name="up", local=local, remote=remote, own=65000 + router, other=65002)

    def downlink(self, router: int) -> str:
        """The spine's session with a ToR."""
        local, remote = self.address(20 + router, 1), self.address(20 + router, 2)
        return SESSION.format(name=f"down{router}", local=local, remote=remote, own=65002, other=65000 + router)

    def settle(self) -> None:
        """Wait until every session is up."""
        for router, names in ((1, ("near", "up")), (2, ("down1", "down3")), (3, ("far", "up"))):
            for name in names:
                until(f"{name} of {router} is up", lambda r=router, n=name: self.routers[r].up(n), 0.2)  # type: ignore[misc]

    def others(self, *, told: bool) -> None:
        """Have the spine tell of the other prefixes, or of none, and wait for both nodes' kernels."""
        places = [f"near{self.side}", f"far{self.side}"]
        wanted = {each: self.rack.prefixes(each) + (OTHERS if told else -OTHERS) for each in places}
        self.routers[2].ask("enable" if told else "disable", "others")
        what = f"the others {'are in' if told else 'are gone from'} both kernels"
        until(what, lambda: {each: self.rack.prefixes(each) for each in places} == wanted)

    def gone(self, left: int) -> None:
        """Wait until the far kernel holds no more than `left` prefixes."""
        until("the blocks are gone", lambda: self.rack.prefixes(f"far{self.side}") <= left)


def _blocks(count: int, after: int) -> Sequence[IPv4Network]:
    first = int(POOL.network_address) >> 6
    return [IPv4Network(((first + after + n) << 6, 26)) for n in range(count)]


async def _ours(chain: Chain, datastore: str) -> Figures:
    store = GrpcStore(datastore)

    async def allot(block: IPv4Network) -> None:
        spec = BlockSpec(cidr=str(block), affinity="host:near")
        await objects.create(store, IPAMBlock(metadata=Metadata(name=block_name(block)), spec=spec))

    async def free(blocks: Sequence[IPv4Network]) -> None:
        await store.txn([Delete(Key(IPAMBlock.KIND, "", block_name(block))) for block in blocks])

    try:
        return await _turn(chain, allot, free)
    finally:
        await store.close()


async def _peers(chain: Chain, kernel: subprocess.Popen[str]) -> Figures:
    assert kernel.stdin is not None
    pipe = kernel.stdin

    async def allot(block: IPv4Network) -> None:
        pipe.write(f"route add blackhole {block} proto static\n")
        pipe.flush()

    async def free(blocks: Sequence[IPv4Network]) -> None:
        pipe.writelines(f"route del blackhole {block}\n" for block in blocks)
        pipe.flush()

    return await _turn(chain, allot, free)


Allot = Callable[[IPv4Network], Awaitable[None]]
Free = Callable[[Sequence[IPv4Network]], Awaitable[None]]


async def _turn(chain: Chain, allot: Allot, free: Free) -> Figures:
    alone = await _latencies(chain, allot, free, BLOCKS)
    await asyncio.to_thread(chain.others, told=True)
    among = await _latencies(chain, allot, free, BLOCKS // 2)
    await asyncio.to_thread(chain.others, told=False)
    return Figures(
        median(alone),
        {
            "p99 ms": _p99(alone),
            "ms among 20,000 prefixes": median(among),
            "p99 ms among 20,000 prefixes": _p99(among),
        },
    )


async def _latencies(chain: Chain, allot: Allot, free: Free, count: int) -> list[float]:
    """Milliseconds from `allot` of a block to its route in the far kernel, block by block; all are freed at the end."""
    blocks, rest, found = _blocks(count, 0), random.Random(4), []
    empty = chain.rack.prefixes(f"far{chain.side}")
    with closing(netns.open_socket(chain.far, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as told:
        told.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        told.bind((0, _RTMGRP_IPV4_ROUTE))
        told.setblocking(False)
        for block in blocks:
            await asyncio.sleep(rest.random() * _ODD_S)
            begun = time.perf_counter()
            arriving = asyncio.create_task(_arrived(told, block))
            await allot(block)
            async with asyncio.timeout(PATIENCE_S):
                found.append(1000 * (await arriving - begun))
    for start in range(0, count, AT_ONCE):
        left = count - start - AT_ONCE
        await free(blocks[start : start + AT_ONCE])
        await asyncio.to_thread(chain.gone, empty + left)
    return found


async def _arrived(told: socket.socket, block: IPv4Network) -> float:
    """When the kernel told of a new route to `block`."""
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(told, 1 << 16)
        now = time.perf_counter()
        if block in set(_new_routes(data)):
            return now


def _new_routes(data: bytes) -> Iterator[IPv4Network]:
    """The destinations of RTM_NEWROUTE messages (rtnetlink(7))."""
    while len(data) >= 28:
        length, kind = struct.unpack_from("=IH", data)
        if kind == _NEW_ROUTE:
            bits, rest = data[17], data[28:length]
            while len(rest) >= 8:
                size, attribute = struct.unpack_from("=HH", rest)
                if attribute == _RTA_DST:
                    yield IPv4Network((IPv4Address(rest[4:8]), bits))
                rest = rest[(size + 3) & ~3 :]
        data = data[(length + 3) & ~3 :]


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]
