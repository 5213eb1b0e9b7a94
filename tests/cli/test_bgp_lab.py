"""Questions about a cluster's peering, and a node drained, in a lab: three nodes behind two BIRDs, and a client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.addr import Network
from core.manifest import decode
from core.resources import CalicoNodeStatus, IPAMBlock, Node, SpeakerStatus
from datastore import objects
from datastore.api import Changes
from lab import cluster as clusters
from lab import ip
from lab.cluster import HOUSE, Cluster
from lab.store import opened

pytestmark = pytest.mark.lab

TOPOLOGY = """
name: peering
pools: [10.247.0.0/16, 192.0.2.0/24]
routers:
  - {name: tor1, kind: bird, asNumber: 65001}
  - {name: tor2, kind: bird, asNumber: 65002}
racks:
  - {name: rack1, routers: [tor1, tor2]}
nodes:
  - {name: node1, rack: rack1, asNumber: 65101}
  - {name: node2, rack: rack1, asNumber: 65102}
  - {name: node3, rack: rack1, asNumber: 65103}
pods:
  - {name: shop/web-1, node: node1}
  - {name: shop/web-2, node: node2}
  - {name: shop/web-3, node: node3}
external:
  - {name: client, router: tor1, ports: []}
manifests: [bgp.yaml]
"""

MANIFESTS = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.247.0.0/16, blockSize: 26, ipipMode: Never}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  nodeToNodeMeshEnabled: false
  serviceExternalIPs: [{cidr: 192.0.2.0/24}]
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor1}
spec: {peerIP: 172.16.1.1, asNumber: 65001}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor2}
spec: {peerIP: 172.16.1.2, asNumber: 65002}
"""

NODES = ("node1", "node2", "node3")
TORS = ("172.16.1.1", "172.16.1.2")
SERVICES = ip_network("192.0.2.0/24")


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A lab that is up, for all tests here."""
    folder = tmp_path_factory.mktemp("peering")
    (folder / "topology.yaml").write_text(TOPOLOGY)
    (folder / "bgp.yaml").write_text(MANIFESTS)
    name = f"p{os.getpid()}"
    try:
        asyncio.run(clusters.up(folder / "topology.yaml", lambda _: None, name=name))
        yield name
    finally:
        asyncio.run(clusters.down(name))


@pytest.fixture
async def lab(name: str) -> Cluster:
    lab = clusters.attach(name)
    await lab.until_routed()
    await until("nothing differs", lambda: agrees(lab))
    return lab


async def until(what: str, holds: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> float:
    """Wait for a condition; how long it took, in seconds."""
    begun = time.monotonic()
    while not await holds():
        assert time.monotonic() - begun < within_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.1)
    return time.monotonic() - begun


async def agrees(lab: Cluster) -> bool:
    return (await lab.muslin("bgp", "diff")).code == 0


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


async def asked(lab: Cluster, *words: str) -> Any:
    said = await lab.muslin(*words, "-o", "json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def block(lab: Cluster, node: str) -> Network:
    """The block of a node's pod, as the routers have it."""
    address = lab.address(f"shop/web-{node[-1]}")
    return next(net for net in lab.routers["tor1"].pod_routes() if address in net and net != SERVICES)


async def test_status_shows_every_session(lab: Cluster) -> None:
    async def settled() -> bool:
        every = [each for node in (await asked(lab, "bgp", "status"))["nodes"] for each in node["bgp"]["sessions"]]
        return all(
            each["advertised"] == 2 and each["received"] == each["accepted"] + each["refused"].get("in no IPPool", 0)
            for each in every
        )

    await until("everything is told, and what is not taken is counted by cause", settled)
    page = await asked(lab, "bgp", "status", "--check")
    assert page["right"] is True
    assert [each["node"] for each in page["nodes"]] == list(NODES)
    for each in page["nodes"]:
        assert [session["peer"] for session in each["bgp"]["sessions"]] == list(TORS)
        for session in each["bgp"]["sessions"]:
            assert (session["state"], session["flaps"], session["type"]) == ("Established", 0, "GlobalPeer")
            assert session["refused"]["in no IPPool"] > 0
            assert (session["holdS"], session["families"]) == (30, ["ipv4"])


async def test_a_flap_is_counted_and_its_reason_stays(lab: Cluster) -> None:
    run("birdc", "-s", str(lab.routers["tor2"].directory / "bird.ctl"), "restart", "node3_v4")

    async def counted() -> bool:
        sessions = (await asked(lab, "bgp", "status", "--node", "node3"))["nodes"][0]["bgp"]["sessions"]
        again = sessions[1]
        return again["state"] == "Established" and again["flaps"] == 1 and "Cease" in again["lastError"]

    await until("the session is back, and its flap is counted", counted)


async def test_routes_of_every_node_with_why(lab: Cluster) -> None:
    target = block(lab, "node2")
    said = await lab.muslin("bgp", "routes", str(lab.address("shop/web-2")), "--why")
    assert said.code == 0, said.err
    rows = [line.split() for line in said.out.splitlines()[1:]]
    told = {(row[0], row[2], row[3]) for row in rows if row[1] == str(target) and row[3] != "withdrawn"}
    assert told == {
        (node, tor, standing)
        for node in ("node1", "node3")
        for tor, standing in zip(TORS, ("best", "used"), strict=True)
    }
    assert all(row[5:7] == [str(65001 + TORS.index(row[2])), "65102"] for row in rows)
    document = await asked(lab, "bgp", "routes", "--node", "node1")
    routes = document["nodes"]["node1"]["routes"]["routesV4"]
    kernel = {route["destination"] for route in routes if route["type"] == "FIB"}
    assert kernel == {str(net) for net in ip.routes(lab.namespace("node1"), 4, "proto", "201")}
    refused = [route for route in routes if route.get("state") == "refused"]
    assert {route["reason"] for route in refused} >= {"in no IPPool"}


async def test_adverts_of_a_node_and_no_question_is_left(lab: Cluster) -> None:
    document = await asked(lab, "bgp", "adverts", "--node", "node1")
    told = {(each["peerIP"], each["destination"], each["state"]) for each in document["nodes"]["node1"]["adverts"]}
    assert told == {(tor, str(net), "told") for tor in TORS for net in (block(lab, "node1"), SERVICES)}
    one = await lab.muslin("bgp", "adverts", "--peer", TORS[0])
    assert {line.split()[1] for line in one.out.splitlines()[1:]} == {TORS[0]}
    async with opened(lab.socket) as store:
        assert not (await store.list({CalicoNodeStatus.KIND})).entries


async def test_a_standing_question_is_answered_again_and_again(lab: Cluster, tmp_path: Path) -> None:
    question = tmp_path / "question.yaml"
    question.write_text(
        "apiVersion: projectcalico.org/v3\nkind: CalicoNodeStatus\nmetadata: {name: watched}\n"
        "spec: {node: node1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 1}\n"
    )
    await lab.apply(question)
    stamps: list[str] = []
    async with (
        opened(lab.socket) as store,
        asyncio.timeout(20),
        aclosing(store.watch(0, {CalicoNodeStatus.KIND})) as news,
    ):
        async for item in news:
            for event in item.events if isinstance(item, Changes) else ():
                found = decode(event.key, event.value or b"{}")
                assert isinstance(found, CalicoNodeStatus)
                if found.status:
                    stamps.append(found.status.last_updated)
            if len(set(stamps)) >= 3:
                break
    assert found.status is not None
    assert found.status.agent is not None
    assert found.status.agent.bird_v4 is not None
    assert (found.status.agent.bird_v4.state, found.status.agent.bird_v6) == ("Ready", None)
    assert found.status.bgp is not None
    assert (found.status.bgp.number_established_v4, found.status.bgp.number_not_established_v4) == (2, 0)
    assert found.status.routes is not None
    assert found.status.routes.routes_v4
    await lab.delete(question)


async def test_a_prefix_that_routers_filter_is_named_within_ten_seconds(lab: Cluster) -> None:
    lost = block(lab, "node1")
    for router in lab.routers.values():
        router.reject([lost])
    begun = time.monotonic()
    while (said := await lab.muslin("bgp", "diff", "-o", "json")).code == 0:
        assert time.monotonic() - begun < 10, "the difference is reported within ten seconds"
    document = json.loads(said.out)
    assert document["differences"] == [
        {
            "prefix": str(lost),
            "owner": "node1",
            "at": ["node2", "node3"],
            "stage": "heard",
            "why": f"told by node1 to {TORS[0]}, {TORS[1]} and not heard; nobody but its owner has it",
        }
    ]
    for router in lab.routers.values():
        router.accept()
    await until("it is gone when the routers take the prefix again", lambda: agrees(lab))


async def test_neither_a_foreign_hand_nor_a_rolling_change_of_fifty_blocks_makes_a_report(lab: Cluster) -> None:
    blocks = [ip_network(f"10.247.{128 + number // 4}.{64 * (number % 4)}/26") for number in range(50)]
    async with Reports(lab) as reports, opened(lab.socket) as store:
        lost = block(lab, "node1")
        run("ip", "-n", lab.namespace("node2"), "route", "del", str(lost), "metric", "200")

        async def back() -> bool:
            return lost in ip.routes(lab.namespace("node2"), 4, "proto", "201")

        assert await until("the route that somebody removed is back", back) < 1
        for owner in ("node1", "node2"):
            for net in blocks:
                await objects.write(store, owned(net, owner))
                await asyncio.sleep(0.03)

            async def moved(owner: str = owner) -> bool:
                gateway = str(lab.address(owner))
                held = ip.routes(lab.namespace("node3"), 4, "proto", "201")
                return all(held.get(net, {}).get("gateway") == gateway for net in blocks)

            await until(f"node3 routes all of them to {owner}", moved)
        for net in blocks:
            await objects.delete(store, IPAMBlock, owned(net, "").metadata.name)

        async def gone() -> bool:
            return not set(blocks) & set(ip.routes(lab.namespace("node3"), 4, "proto", "201"))

        await until("node3 has none of them", gone)
        await asyncio.sleep(4)  # longer than a difference has to stand
    assert reports.statuses > 3
    assert reports.differing == []


def owned(net: Network, node: str) -> IPAMBlock:
    name = re.sub(r"[./]", "-", str(net))
    document = {"metadata": {"name": name}, "spec": {"cidr": str(net), "affinity": f"host:{node}"}}
    head = {"apiVersion": IPAMBlock.KIND.api_version, "kind": IPAMBlock.KIND.name}
    return msgspec.convert({**head, **document}, IPAMBlock)


class Reports:
    """Every status that speakers write while the block runs: how many, and those with a difference."""

    def __init__(self, lab: Cluster) -> None:
        self._lab = lab
        self.statuses = 0
        self.differing: list[tuple[str, list[str]]] = []

    async def __aenter__(self) -> Reports:
        self._ready = asyncio.Event()
        self._task = asyncio.create_task(self._watch())
        await self._ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _watch(self) -> None:
        async with opened(self._lab.socket) as store:
            listed = (await store.list({SpeakerStatus.KIND})).revision
            async with aclosing(store.watch(listed, {SpeakerStatus.KIND})) as news:
                async for item in news:
                    self._ready.set()
                    for event in item.events if isinstance(item, Changes) else ():
                        found = decode(event.key, event.value or b"{}")
                        assert isinstance(found, SpeakerStatus)
                        self.statuses += 1
                        if found.status.different:
                            why = [f"{each.stage} {each.prefix}" for each in found.status.differences]
                            self.differing.append((found.metadata.name, why))


async def test_draining_moves_a_service_without_losing_a_packet(lab: Cluster) -> None:
    for node in NODES:
        ip.batch([f"route replace local {SERVICES} dev lo"], lab.namespace(node))
    clients = lab.wiring.addresses["client"][0].network
    ip.batch([f"route replace {clients} via {TORS[0]}"], lab.namespace("tor2"))  # nodes answer through either router
    targets = [str(SERVICES[number]) for number in range(1, 9)]
    shares = {node: share(lab, targets, node) for node in NODES}
    node = max(NODES, key=lambda node: len(shares[node]))
    assert sum(map(bool, shares.values())) > 1, "the service's addresses are shared to begin with"
    pings = [
        await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", lab.namespace("client"), "ping", "-q", "-i", "0.001", "-w", "6", target),
            stdout=asyncio.subprocess.PIPE,
        )
        for target in targets
    ]
    drained = await lab.muslin("node", "drain", node, "--wait", "1s")
    assert (drained.code, drained.out) == (0, f"{node} is drained: safe to stop\n"), drained.err
    assert share(lab, targets, node) == []
    own = lab.address(f"shop/web-{node[-1]}")
    assert not [net for net in lab.routers["tor1"].pod_routes() if own in net]
    status = (await asked(lab, "bgp", "status", "--node", node))["nodes"][0]["bgp"]
    assert (status["maintenance"], {each["advertised"] for each in status["sessions"]}) == ("Withdrawn", {0})
    assert await agrees(lab), "what a drained node does not tell is not missed"

    back = await lab.muslin("node", "uncordon", node)
    assert (back.code, back.out) == (0, f"{node} tells its prefixes again\n"), back.err

    async def shared() -> bool:
        return share(lab, targets, node) == shares[node]

    await until(f"{node} has its share again", shared)
    said = [(await ping.communicate())[0].decode() for ping in pings]
    lost = [re.search(r"(\d+) packets transmitted, (\d+) received", each) for each in said]
    assert all(found and int(found[1]) > 1000 and found[1] == found[2] for found in lost), said


def share(lab: Cluster, targets: list[str], node: str) -> list[str]:
    """Which addresses the client's router sends to a node."""
    client, router = str(lab.address("client")), lab.namespace("tor1")
    device = json.loads(run("ip", "-n", router, "-j", "route", "get", client))[0]["dev"]
    ways = {
        target: json.loads(run("ip", "-n", router, "-j", "route", "get", target, "from", client, "iif", device))[0]
        for target in targets
    }
    return [target for target, way in ways.items() if way.get("gateway") == str(lab.address(node))]


async def test_a_drain_that_is_interrupted_goes_on_where_it_was(lab: Cluster) -> None:
    words = ["node", "drain", "node2", "--wait", "60s", "--datastore", lab.socket]
    drain = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *words),
        cwd=HOUSE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert drain.stderr is not None
    assert b"they have 60 s" in await drain.stderr.readline()
    drain.send_signal(signal.SIGINT)
    await drain.communicate()
    assert drain.returncode == 130
    async with opened(lab.socket) as store:
        found = await objects.read(store, Node, "node2")
        assert found is not None
        assert found[0].spec.bgp is not None
        assert found[0].spec.bgp.maintenance == "GracefulShutdown"
    document = await asked(lab, "bgp", "adverts", "--node", "node2")
    communities = [each["path"]["communities"] for each in document["nodes"]["node2"]["adverts"]]
    assert communities == [["65535:0"]] * 4
    assert (await lab.muslin("node", "drain", "node2", "--wait", "0s")).code == 0
    again = await lab.muslin("node", "drain", "node2", "--wait", "60s")
    assert (again.code, again.out) == (0, "node2 is drained: safe to stop\n"), (
        "it is drained already: nothing to wait for"
    )
    assert (await lab.muslin("node", "uncordon", "node2")).code == 0
    await lab.until_routed()


async def test_a_node_whose_speaker_is_dead_is_named(lab: Cluster) -> None:
    label = "bgp@node3"
    lab.kill(label, children=True)
    try:
        said = await lab.muslin("bgp", "routes", "--timeout", "1")
        assert said.code == 1
        assert said.err == "node3: its bgp has not answered within 1 s; `muslin bgp status` may say why\n"
        assert {line.split()[0] for line in said.out.splitlines()[1:]} == {"node1", "node2"}
        drain = await lab.muslin("node", "drain", "node3", "--wait", "0s", "--timeout", "1")
        assert (drain.code, drain.out) == (1, "")
        assert "after 1 s bgp on node3 has not told its peers" in drain.err
    finally:
        lab.start(label)
    assert (await lab.muslin("node", "uncordon", "node3")).code == 0
    await lab.until_peered()
