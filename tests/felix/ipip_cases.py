"""Felix's tunnel on a kernel with ipip; run by test_ipip.py, in a User-Mode Linux kernel where the host's has none."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from core.names import IPIP_DEVICE
from core.resources import Node
from core.resources.network import EncapMode
from datastore import objects
from linux import netns
from tests.felix.cluster import block, node, pool
from tests.felix.guarded import hep
from tests.felix.host import HOST, OUTSIDE, dropped, first_datagram, ip, until
from tests.felix.one_node import Cluster

FAR = "10.0.0.65"


def join_the_other_node(cluster: Cluster) -> None:
    """Make the outside a node of the cluster: an ipip device of its own, a pod's address, a route back."""
    there = cluster.host.outside.namespace
    ip("-n", there, "link", "add", "far", "type", "ipip", "local", OUTSIDE, "remote", "0.0.0.0")
    ip("-n", there, "link", "set", "far", "up")
    ip("-n", there, "addr", "add", f"{FAR}/32", "dev", "lo")
    ip("-n", there, "route", "add", "10.0.0.0/26", "via", HOST, "dev", "far", "onlink")


def carried(cluster: Cluster) -> int:
    """Packets that the other node has taken out of the tunnel."""
    for line in ip("-n", cluster.host.outside.namespace, "-s", "-o", "link", "show", "far").split("RX:")[1:]:
        return int(line.split("\\")[1].split()[1])
    raise AssertionError("no such device")


async def switch(cluster: Cluster, mode: EncapMode) -> None:
    await cluster.write(pool("pods", "10.0.0.0/16", nat_outgoing=True, ipip_mode=mode))


async def test_a_pool_goes_through_the_tunnel_and_back(cluster: Cluster) -> None:
    join_the_other_node(cluster)
    await cluster.write(node("b", f"{OUTSIDE}/24"), block("10.0.0.64/26", "b"))
    await cluster.start()
    receiver = cluster.host.outside.udp(FAR, 53)
    sender = cluster.web.udp("10.0.0.1")

    await switch(cluster, EncapMode.ALWAYS)
    route = ip("route", "show", "10.0.0.64/26")
    assert f"via {OUTSIDE} dev {IPIP_DEVICE} proto 200 metric 400 onlink" in " ".join(route.split())
    sender.sendto(b"tunnelled", (FAR, 53))
    assert await first_datagram(receiver) == (b"tunnelled", "10.0.0.1")
    assert carried(cluster) == 1
    found = await objects.read(cluster.store, Node, "a")
    assert found
    assert found[0].spec.bgp
    own = found[0].spec.bgp.tunnel_address
    assert own is not None
    await until(lambda: f"{own}/32" in ip("addr", "show", "dev", IPIP_DEVICE))

    await switch(cluster, EncapMode.NEVER)
    assert IPIP_DEVICE not in ip("link")
    assert ip("route", "show", "10.0.0.64/26") == ""


async def test_an_address_of_our_own_block_that_another_node_borrowed_is_reached_there(cluster: Cluster) -> None:
    join_the_other_node(cluster)
    lent = "10.0.0.9"
    ip("-n", cluster.host.outside.namespace, "addr", "add", f"{lent}/32", "dev", "lo")
    await cluster.write(node("b", f"{OUTSIDE}/24"), block("10.0.0.0/26", "a", borrowers={lent: "b"}))
    await cluster.start()
    await switch(cluster, EncapMode.ALWAYS)
    receiver = cluster.host.outside.udp(lent, 53)
    cluster.web.udp("10.0.0.1").sendto(b"lent", (lent, 53))
    assert await first_datagram(receiver) == (b"lent", "10.0.0.1")
    assert carried(cluster) == 1
    await cluster.write(block("10.0.0.0/26", "a"))
    assert ip("route", "show", lent) == ""
    assert ip("route", "show", "10.0.0.0/26").startswith("blackhole")


def wrapped(text: bytes) -> bytes:
    """A datagram from the far pod to a pod here, as it travels inside the tunnel."""
    udp = struct.pack("!HHHH", 5000, 53, 8 + len(text), 0) + text
    ends = ip_address(FAR).packed + ip_address("10.0.0.1").packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + ends
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:] + udp


def send_wrapped(cluster: Cluster, outer: str, text: bytes) -> None:
    """Send the node such a datagram from `outer`, an address of the outside."""
    with netns.inside(cluster.host.outside.namespace):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 4)
    with raw:
        raw.bind((outer, 0))
        raw.sendto(wrapped(text), (HOST, 0))


async def test_only_nodes_are_let_into_the_tunnel(cluster: Cluster) -> None:
    await cluster.write(node("b", f"{OUTSIDE}/24"), block("10.0.0.64/26", "b"))
    await cluster.start()
    await switch(cluster, EncapMode.FALLBACK)
    ip("-n", cluster.host.outside.namespace, "addr", "add", "10.1.0.99/24", "dev", "eth0")
    receiver = cluster.web.udp("10.0.0.1", 53)
    send_wrapped(cluster, "10.1.0.99", b"stranger")
    send_wrapped(cluster, OUTSIDE, b"node")
    assert await first_datagram(receiver) == (b"node", FAR)
    assert dropped("tunnelled") == 1


async def test_a_closed_host_endpoint_does_not_close_the_tunnel(cluster: Cluster) -> None:
    join_the_other_node(cluster)
    await cluster.write(node("b", f"{OUTSIDE}/24"), block("10.0.0.64/26", "b"), hep("up", "eth0"), hep("rest", "*"))
    await cluster.start()
    await switch(cluster, EncapMode.ALWAYS)
    there, here = cluster.host.outside.udp(FAR, 53), cluster.web.udp("10.0.0.1", 53)
    async with cluster.host.outside.echo(80):
        assert not await cluster.host.place.reaches(OUTSIDE, 80)
    here.sendto(b"out", (FAR, 53))
    assert await first_datagram(there) == (b"out", "10.0.0.1")
    send_wrapped(cluster, OUTSIDE, b"in")
    assert await first_datagram(here) == (b"in", FAR)
