"""Both families end to end: a cluster with an IPv4 and an IPv6 pool, judged by packets, routers and kernels; and one
that has no IPv4 at all."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.wiring import GATEWAYS, Place, look
from core.addr import Family, Network
from core.names import workload_interface
from lab import cluster as clusters
from lab import ip, pods, processes, state, topology, underlay
from lab.cluster import Cluster
from lab.demo.silence import Silence
from lab.processes import Process
from lab.wiring import Neighbour
from linux import netns

pytestmark = pytest.mark.lab

EXAMPLE = Path(__file__).parents[2] / "examples" / "dual-stack"
POLICY = EXAMPLE / "manifests" / "policy"
FAMILIES = (4, 6)
BLOCK = {4: 26, 6: 122}
PODS = {"shop/web-1", "shop/db-1", "shop/web-2", "office/tool-2"}
ALLOWED = {(a, "office/tool-2") for a in PODS} | {("shop/web-1", "shop/db-1"), ("shop/web-2", "shop/db-1")}
both = pytest.mark.parametrize("version", FAMILIES, ids=["IPv4", "IPv6"])


def brought_up(name: str, topology: Path) -> Iterator[Cluster]:
    """A lab that is up for the length of a fixture; nothing of it is left at the end."""
    lab = asyncio.run(clusters.up(topology, lambda _: None, name=name))
    started: list[Process] = []
    try:
        asyncio.run(lab.until_routed())
        yield lab
        started += [each.process for each in lab.record.processes.values()]
        started += processes.known(netns.inhabitants(netns.names(underlay.prefix(name))))
    finally:
        asyncio.run(clusters.down(name))
    assert started
    assert not [process for process in started if process.alive()]
    assert not netns.names(underlay.prefix(name))
    assert not state.directory(name).exists()


@pytest.fixture(scope="module")
def lab() -> Iterator[Cluster]:
    """The example, up for all tests of this file."""
    yield from brought_up(f"d{os.getpid()}", EXAMPLE / "topology.yaml")


@pytest.fixture(scope="module")
def lab_of_ipv6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The example without its IPv4 pool and sessions: no address of a node, router or pod is IPv4."""
    copy = tmp_path_factory.mktemp("ipv6") / "example"
    shutil.copytree(EXAMPLE, copy)
    file = copy / "topology.yaml"
    topology = yaml.safe_load(file.read_text())
    topology["pools"] = [pool for pool in topology["pools"] if ":" in pool]
    file.write_text(yaml.safe_dump(topology))
    for each in (copy / "manifests" / "cluster").iterdir():
        documents = [doc for doc in yaml.safe_load_all(each.read_text()) if not doc["metadata"]["name"].endswith("v4")]
        each.write_text(yaml.safe_dump_all(documents))
    yield from brought_up(f"o{os.getpid()}", file)


def routes(lab: Cluster, host: str, version: int, *words: str) -> Mapping[Network, Any]:
    """A host's kernel routes by prefix."""
    return ip.routes(lab.namespace(host), version, *words)


def blocks(lab: Cluster, version: int) -> dict[str, Network]:
    """Each node's block, worked out from its pods' addresses."""
    return {
        pod.node: ip_network(f"{lab.address(pod.name, version)}/{BLOCK[version]}", strict=False)
        for pod in lab.topology.pods
    }


def uplink(lab: Cluster, node: str, version: int) -> Neighbour:
    """A node's session as its router has it."""
    found = [n for each in lab.wiring.routers.values() for n in each.neighbours if n.name == node and n.node]
    return next(each for each in found if each.address.version == version)


async def assert_all_pods_talk(lab: Cluster, version: int) -> None:
    for protocol in ("tcp", "udp"):
        found = await lab.matrix(protocol=protocol, version=version)
        assert found.keys() == {(a, b) for a in PODS for b in PODS if a != b}
        assert {pair: answer.server for pair, answer in found.items()} == {pair: pair[1] for pair in found}
        assert {pair: answer.seen for pair, answer in found.items()} == {
            pair: lab.address(pair[0], version) for pair in found
        }


async def assert_outside_sees_nodes(lab: Cluster, version: int) -> None:
    home = {pod.name: lab.address(pod.node, version) for pod in lab.topology.pods}
    for protocol in ("tcp", "udp"):
        found = await lab.matrix(destinations=["internet"], protocol=protocol, version=version)
        assert {source: answer.seen for (source, _), answer in found.items()} == home


async def assert_nodes_reach_pods(lab: Cluster, version: int) -> None:
    nodes = [node.name for node in lab.topology.nodes]
    found = await lab.matrix(nodes, version=version)
    assert found.keys() == {(node, pod) for node in nodes for pod in PODS}
    assert all(answer.seen == lab.address(node, version) for (node, _), answer in found.items())


@both
async def test_every_pod_reaches_every_other_under_its_own_address(lab: Cluster, version: int) -> None:
    assert all(lab.address(pod, version).version == version for pod in PODS)
    await assert_all_pods_talk(lab, version)


@both
async def test_the_outside_sees_the_node_and_nodes_reach_pods(lab: Cluster, version: int) -> None:
    await assert_outside_sees_nodes(lab, version)
    await assert_nodes_reach_pods(lab, version)


@both
def test_routers_and_kernels_hold_blocks_and_no_single_pod(lab: Cluster, version: int) -> None:
    held = blocks(lab, version)
    assert len(set(held.values())) == 2
    for name, router in lab.routers.items():
        known = {net: hops for net, hops in router.pod_routes().items() if net.version == version}
        assert known.keys() == set(held.values())
        assert set(held.values()) <= routes(lab, name, version).keys()
        for node in (each.name for each in router.wiring.neighbours if each.node):
            assert known[held[node]] == {lab.address(node, version)}
    for node, other in (("node1", "node2"), ("node2", "node1")):
        learnt = routes(lab, node, version, "proto", "201")
        assert {net: each["gateway"] for net, each in learnt.items()} == {
            held[other]: str(uplink(lab, node, version).local)
        }
        own = {ip_network(lab.address(pod.name, version)) for pod in lab.topology.pods if pod.node == node}
        assert routes(lab, node, version, "proto", "200").keys() == own


async def test_a_policy_holds_in_both_families_and_goes_from_both(lab: Cluster) -> None:
    async def denied() -> dict[tuple[int, str], set[tuple[str, str]]]:
        """Who gets no answer, by family and protocol."""
        kinds = [(version, protocol) for version in FAMILIES for protocol in ("tcp", "udp")]
        found = await asyncio.gather(*(lab.matrix(protocol=p, version=v, timeout=0.4) for v, p in kinds))
        return {
            kind: {pair for pair, answer in each.items() if not answer} for kind, each in zip(kinds, found, strict=True)
        }

    async def until(expected: set[tuple[str, str]]) -> None:
        async def differs() -> str:
            wrong = {kind: each ^ expected for kind, each in (await denied()).items()}
            return "; ".join(f"{kind}: {sorted(pairs)}" for kind, pairs in wrong.items() if pairs)

        await lab.until(differs, "the matrix to follow the policy", 20)

    await lab.apply(POLICY)
    try:
        await until({(a, b) for a in PODS for b in PODS if a != b} - ALLOWED)
        # a pod's own host is not policed, another one is, whatever the family
        home = {pod.name: pod.node for pod in lab.topology.pods}
        for version in FAMILIES:
            found = await lab.matrix(["node1", "node2"], version=version, timeout=0.4)
            reached = {pair for pair, answer in found.items() if answer}
            assert reached == {(node, pod) for node, pod in found if home[pod] == node or pod == "office/tool-2"}
    finally:
        await lab.delete(POLICY)
    await until(set())


async def test_a_router_that_takes_no_blocks_cuts_both_families_and_gives_both_back(lab: Cluster) -> None:
    router = lab.routers["tor2"]

    def learnt() -> set[int]:
        return {version for version in FAMILIES if routes(lab, "node1", version, "proto", "201")}

    router.reject()
    try:
        await lab.until(lambda: str(learnt() or ""), "node1 to forget node2's blocks", 20)
        assert all(session.up for session in router.sessions())
    finally:
        router.accept()
    await lab.until_routed(timeout=20)
    for version in FAMILIES:
        await assert_all_pods_talk(lab, version)


async def test_killed_agents_come_back_to_an_unchanged_kernel_and_nobody_notices(lab: Cluster) -> None:
    with Silence(lab, "node1") as kernel:
        async with (
            lab.transfer("shop/web-1", "shop/web-2", version=4) as four,
            lab.transfer("shop/web-1", "shop/web-2", version=6) as six,
        ):
            for label in ("bgp@node1", "felix@node1"):
                lab.kill(label, children=True)
                lab.start(label)
            await lab.until_programmed()
            await lab.until_peered()
            before = [(each, each.received) for each in (four, six)]
            await lab.until(lambda: "" if all(each.received > n for each, n in before) else "more", "data", 9)
        assert kernel.heard() == []
    assert max(four.silence_s, six.silence_s) < 1


async def test_a_cluster_needs_no_ipv4_at_all(lab_of_ipv6: Cluster) -> None:
    lab = lab_of_ipv6
    assert {lab.address(pod).version for pod in PODS} == {6}
    assert [session.up for each in lab.routers.values() for session in each.sessions()] == [True] * 4
    assert not routes(lab, "node1", 4)
    await assert_all_pods_talk(lab, 6)
    await assert_outside_sees_nodes(lab, 6)
    await assert_nodes_reach_pods(lab, 6)


def test_a_pod_has_its_ipv6_gateway_as_soon_as_its_link_is_up(ground: Callable[[Mapping[str, Any]], Any]) -> None:
    plan = yaml.safe_load((EXAMPLE / "topology.yaml").read_text())
    kernel = [{"name": "tor", "kind": "kernel"}]
    racks = [{**rack, "router": "tor"} for rack in plan["racks"]]
    external = [{**each, "router": "tor"} for each in plan["external"]]
    made = ground({**plan, "routers": kernel, "racks": racks, "external": external})
    planned = topology.parse(plan).pods
    pods.create(made.name, planned, {pod.name: (ip_address(f"fd00:10:246::{i}"),) for i, pod in enumerate(planned, 1)})
    for pod in planned:
        argv = netns.command(made.namespace(pod.name), "ping", "-c1", "-W1", f"{GATEWAYS[Family.V6]}%eth0")
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
        end, inside = workload_interface(pod.namespace, pod.short), netns.path(made.namespace(pod.name))
        with open(inside) as there, netns.inside(made.namespace(pod.node)):
            view = look(Place(host=end, path=inside, netns=there.fileno(), inside="eth0"))
        assert view is not None, "the plugin would know it for its own"
        assert (view.wire.host.mtu, view.wire.pod.mtu) == (1480, 1480), "there is room for a tunnel in every mode"
