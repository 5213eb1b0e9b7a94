"""The topologies that users copy: each comes up as its README says, carries every pod's traffic the way it should, and
leaves nothing."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from core.addr import Network
from core.resources import SpeakerStatus
from lab import cluster as clusters
from lab import ip, state, status, underlay
from lab.capture import Capture
from lab.cluster import Cluster
from lab.frr import Frr
from lab.routers import Bird
from lab.store import opened, read
from linux import netns

pytestmark = pytest.mark.lab

EXAMPLES = Path(__file__).parents[2] / "examples"
TCP = 6


@asynccontextmanager
async def brought_up(example: str) -> AsyncIterator[Cluster]:
    """An example, up, with routes everywhere and every pod reaching every other; nothing of it is left at the end."""
    name = f"x{os.getpid()}"
    lab = await clusters.up(EXAMPLES / example / "topology.yaml", lambda _: None, name=name)
    try:
        await lab.until_routed(timeout=30)
        found = await lab.matrix()
        assert {pair: answer.server for pair, answer in found.items()} == {pair: pair[1] for pair in found}
        yield lab
        started = [each.process for each in lab.record.processes.values()]
    finally:
        await clusters.down(name)
    assert not [process for process in started if process.alive()]
    assert not netns.names(underlay.prefix(name))
    assert not state.directory(name).exists()


def learnt(lab: Cluster, node: str) -> Mapping[Network, set[str]]:
    """What bgp has put into a node's kernel: prefix to gateways."""
    found = ip.routes(lab.namespace(node), 4, "proto", "201")
    return {net: {hop["gateway"] for hop in each.get("nexthops", [each])} for net, each in found.items()}


def block(lab: Cluster, pod: str) -> Network:
    """The block that a pod's address is from."""
    return ip_network(f"{lab.address(pod, 4)}/26", strict=False)


def mesh(lab: Cluster, node: str) -> Mapping[Network, set[str]]:
    """What `learnt` is where every node is the next hop of its own blocks."""
    return {block(lab, pod.name): {str(lab.address(pod.node))} for pod in lab.topology.pods if pod.node != node}


def said(lab: Cluster) -> Mapping[str, str]:
    """What `muslin lab status` says each host is."""
    return {host.name: host.what for host in status.status(lab.name)}


async def test_single_tor() -> None:
    async with brought_up("single-tor") as lab:
        assert said(lab)["tor"] == "router (bird, AS 65001, BFD 300 ms x 3, password)"
        assert learnt(lab, "node1") == {block(lab, "shop/db-2"): {str(lab.address("node2"))}}
        watched = bird_watches(lab, "tor")
        await lab.until(lambda: "" if watched() == 2 else "a path", "BFD to be up with both nodes", 20)
        outside = await lab.matrix(destinations=["internet"])
        assert outside["shop/web-1", "internet"].seen == lab.address("node1")


async def test_dual_tor() -> None:
    async with brought_up("dual-tor") as lab:
        assert said(lab)["switch1"] == "switch"
        assert (str(lab.address("node1")), str(lab.address("node2"))) == ("172.16.1.11", "172.29.2.11")
        frr = lab.routers["tor1b"]
        assert isinstance(frr, Frr)
        paths = bird_watches(lab, "tor1a"), lambda: frr.ask("show bfd peers json").count('"status":"up"')
        await lab.until(lambda: "" if [each() for each in paths] == [1, 1] else "one", "BFD to be up with both", 20)
        # both next hops stand in the kernel of either node, and packets of many flows go over both routers
        assert learnt(lab, "node1") == {block(lab, "shop/db-2"): {"172.16.1.1", "172.16.1.2"}}
        assert learnt(lab, "node2") == {block(lab, "shop/web-1"): {"172.16.2.1", "172.17.2.1"}}
        assert lab.routers["spine"].routes()[block(lab, "shop/web-1")] == {
            each.address for each in lab.wiring.routers["spine"].neighbours if each.name in ("tor1a", "tor1b")
        }
        crossed = {top: Capture(lab.namespace(top), port, protocol=TCP) for top, port in uplinks(lab).items()}
        seen = dict.fromkeys(crossed, 0)
        try:

            async def unused() -> str:
                found = await lab.matrix()
                assert all(found.values())
                seen.update({top: each.count() for top, each in crossed.items()})
                return ", ".join(top for top, count in seen.items() if not count)

            await lab.until(unused, "every router to have carried packets", 20)
        finally:
            for each in crossed.values():
                each.close()


def bird_watches(lab: Cluster, name: str) -> Callable[[], int]:
    """Asks a BIRD with how many peers BFD is up."""
    router = lab.routers[name]
    assert isinstance(router, Bird)
    return lambda: len(re.findall(r"\bUp\b", router.ask("show bfd sessions")))


def uplinks(lab: Cluster) -> Mapping[str, str]:
    """The ports by which racks' routers reach the spine."""
    ends = [end for wire in lab.wiring.wires for end in (wire.a, wire.b)]
    return {end.host: end.device for end in ends if end.device.startswith("up")}


async def test_leaf_spine() -> None:
    async with brought_up("leaf-spine") as lab:
        assert said(lab)["leaf3"] == "router (gobgp, AS 65003, reflector)"
        own, near, far = (block(lab, pod) for pod in ("shop/web-1", "shop/web-2", "shop/db-4"))
        # within a rack directly, to other racks over the rack's router, and from there over both spines
        found = learnt(lab, "node1")
        assert (found[near], found[far]) == ({str(lab.address("node2"))}, {"172.16.1.1"})
        for leaf in ("leaf1", "leaf2", "leaf3"):
            ups = {each.address for each in lab.wiring.routers[leaf].neighbours if not each.node}
            assert len(ups) == 2
            away = {own, far} & {net for net, hops in lab.routers[leaf].pod_routes().items() if hops <= ups}
            assert {net: hops for net, hops in lab.routers[leaf].pod_routes().items() if net in away} == dict.fromkeys(
                away, frozenset(ups)
            )
            assert away == {own, far} - ({own} if leaf == "leaf1" else {far} if leaf == "leaf3" else set())


async def test_route_reflectors() -> None:
    async with brought_up("route-reflectors") as lab:
        assert said(lab)["reflector2"] == "router (frr, AS 64512, reflector)"
        # packets go from node to node, not by way of who told of them
        for node in ("node1", "node2", "node3"):
            assert learnt(lab, node) == mesh(lab, node)
        # with one reflector gone, nothing is
        lab.kill("router@reflector1.0")
        async with opened(lab.socket) as store:

            async def still_there() -> str:
                statuses = await read(store, SpeakerStatus)
                up = [[s.peer for s in each.status.sessions if s.state == "Established"] for each in statuses]
                return "" if up == [["172.16.1.2"]] * 3 else str(up)

            await lab.until(still_there, "the nodes to notice", 40)
        for node in ("node1", "node2", "node3"):
            assert learnt(lab, node) == mesh(lab, node)
        assert all((await lab.matrix()).values())


async def test_node_reflector() -> None:
    async with brought_up("node-reflector") as lab:
        for node in ("node1", "node2", "node3"):
            assert learnt(lab, node) == mesh(lab, node)
        async with opened(lab.socket) as store:
            sessions = {each.metadata.name: len(each.status.sessions) for each in await read(store, SpeakerStatus)}
        assert sessions == {"node1": 2, "node2": 1, "node3": 1}
