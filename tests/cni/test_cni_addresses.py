"""Addresses that run out, that had another holder, and that the host leads elsewhere."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from cni_node import (
    NOTHING,
    Answer,
    Runtime,
    pings,
    run,
    write,
)

from core.resources import IPPool, Metadata
from core.resources.network import IPPoolSpec
from datastore import objects
from linux import netns
from linux.conntrack import Conntrack


async def test_a_pool_that_is_dry_says_so_and_serves_again(runtime: Runtime) -> None:
    pool = IPPool(metadata=Metadata(name="tiny"), spec=IPPoolSpec(cidr="10.61.0.0/30", block_size=30))
    await write(runtime.datastore, pool)
    ipam = {"ipv4_pools": ["tiny"], "assign_ipv4": "true", "assign_ipv6": "false"}
    pods = [runtime.container(f"dry-{number}") for number in range(5)]
    try:
        first = [await runtime.add(pod, ipam=ipam) for pod in pods[:4]]
        answer = await runtime.call("ADD", pods[4], ipam=ipam)
        assert (answer.status, answer.document["code"]) == (1, 100)
        assert "tiny" in answer.document["msg"]
        await runtime.remove(pods[0])
        assert (await runtime.add(pods[4], ipam=ipam)).addresses == first[0].addresses
        for pod in pods[1:]:
            await runtime.remove(pod)
    finally:
        async with runtime.store() as store:
            await objects.delete(store, IPPool, "tiny")
    assert await runtime.left() == NOTHING


async def test_connections_of_an_address_end_with_its_holder(runtime: Runtime) -> None:
    pod, peer = runtime.container("cut"), runtime.container("peer")
    added, at_peer = await runtime.add(pod), await runtime.add(peer)
    with pod.place(added) as caller:
        for here, there in zip(added.addresses, at_peer.addresses, strict=True):
            family = socket.AF_INET6 if ":" in here else socket.AF_INET
            sender = caller.open(socket.SOCK_DGRAM, here, 5555, family)
            sender.sendto(b"x", (there, 5556))
    assert tracked(runtime, added) == set(added.addresses)
    await runtime.remove(pod)
    assert tracked(runtime, added) == set()
    await runtime.remove(peer)


def tracked(runtime: Runtime, answer: Answer) -> set[str]:
    """Which of a pod's addresses the node tracks connections of."""
    wanted = set(map(ip_address, answer.addresses))
    with netns.inside(runtime.namespace), Conntrack() as table:
        return {str(flow.original.source) for flow in table.flows() if flow.original.source in wanted}


async def test_a_route_that_somebody_left_is_found(runtime: Runtime) -> None:
    pod = runtime.container("misled")
    ipam = {"assign_ipv4": True, "assign_ipv6": False}
    address = "10.60.0.77"
    run(runtime.namespace, "ip", "route", "add", address, "dev", "up0")
    answer = await runtime.call("ADD", pod, ipam=ipam, runtimeConfig={"ips": [address]})
    assert answer.document["code"] == 5
    assert f"the host's route to {address} is not the pod's" in answer.document["msg"]
    assert "dev up0" in answer.document["msg"]
    assert await runtime.left() == NOTHING

    run(runtime.namespace, "ip", "route", "del", address)
    run(runtime.namespace, "ip", "link", "add", "mus00000000001", "type", "veth", "peer", "name", "stale1")
    run(runtime.namespace, "ip", "link", "set", "mus00000000001", "up")
    run(runtime.namespace, "ip", "route", "add", address, "dev", "mus00000000001")
    added = await runtime.add(pod, ipam=ipam, runtimeConfig={"ips": [address]})
    assert pings(runtime.namespace, added.addresses[0])
    assert runtime.interfaces() == [pod.interface]
    await runtime.remove(pod)
    assert await runtime.left() == NOTHING
