"""A pod that speaks BGP with its node: felix answers on the address for it, bgp holds the session, and no more of what
the pod says is believed than concerns itself."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from core.addr import Network
from core.resources import BGPPeer, Metadata, SpeakerStatus, WorkloadEndpoint
from core.resources.bgp import BGPPeerSpec
from core.resources.status import SessionState
from datastore import objects
from lab import cluster as clusters
from lab import ip, processes
from lab.cluster import Cluster
from lab.store import opened, read

pytestmark = pytest.mark.lab

TOPOLOGY = """
name: pods
pools: [10.247.0.0/16, "fd00:10:247::/48"]
routers: [{name: tor, kind: kernel}]
racks: [{name: rack1, router: tor}]
nodes: [{name: node1, rack: rack1, asNumber: 65101}]
pods:
  - {name: shop/router, node: node1, labels: {bgp: "yes"}}
  - {name: shop/plain, node: node1, labels: {bgp: "no"}}
manifests: [manifests.yaml]
"""
MANIFESTS = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: four}
spec: {cidr: 10.247.0.0/16, blockSize: 26, ipipMode: Never, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: six}
spec: {cidr: "fd00:10:247::/48", blockSize: 122, ipipMode: Never, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  nodeToNodeMeshEnabled: false
  localWorkloadPeeringIPV4: 169.254.0.179
  localWorkloadPeeringIPV6: fd12:3456:789a::1
"""
NODE = {4: "169.254.0.179", 6: "fd12:3456:789a::1"}
MORE = {4: "10.247.99.9/32", 6: "fd00:10:247:99::9/128"}
"""Addresses of the pod's besides those from IPAM, in no block: the routes to them are heard, and not the node's own."""

FOREIGN = {4: ("10.247.77.7/32", "10.247.80.0/26"), 6: ("fd00:10:247:77::7/128", "fd00:10:247:80::/122")}
"""In the pools, but another's."""

PODS = BGPPeer(
    api_version=BGPPeer.KIND.api_version,
    kind=BGPPeer.KIND.name,
    metadata=Metadata(name="pods"),
    spec=BGPPeerSpec(local_workload_selector="bgp == 'yes'", as_number=65100),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node with two pods, behind a router that speaks no BGP."""
    here = tmp_path_factory.mktemp("pods")
    (here / "topology.yaml").write_text(TOPOLOGY)
    (here / "manifests.yaml").write_text(MANIFESTS)
    name = f"w{os.getpid()}"
    made = asyncio.run(clusters.up(here / "topology.yaml", lambda _: None, name=name))
    try:
        asyncio.run(ask(made))
        yield made
    finally:
        asyncio.run(clusters.down(name))


async def ask(lab: Cluster) -> None:
    """Have the node peer with the pod, which gets more addresses."""
    async with opened(lab.socket) as store:
        (endpoint,) = (each for each in await read(store, WorkloadEndpoint) if each.spec.pod == "router")
        more = replace(endpoint.spec, ip_networks=[*endpoint.spec.ip_networks, *MORE.values()])
        revision = await store.txn([objects.put(replace(endpoint, spec=more)), objects.put(PODS)])
    await lab.until_programmed(revision)


def configuration(lab: Cluster) -> str:
    """BIRD in the pod, as its owner would write it."""
    text = f"router id {lab.address('shop/router')};\nprotocol device {{ scan time 1; }}\n"
    for version in (4, 6):
        own = lab.address("shop/router", version)
        said = "".join(f" route {each} blackhole;" for each in (ip_network(own), MORE[version], *FOREIGN[version]))
        text += f"""
protocol static s{version} {{ ipv{version};{said} }}
protocol bgp n{version} {{
  local {own} as 65100; neighbor {NODE[version]} as 65101; multihop 2;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv{version} {{ import all; export all; }};
}}
"""
    return text


async def sessions(lab: Cluster) -> dict[str, SessionState]:
    """By the peer's address."""
    async with opened(lab.socket) as store:
        return {session.peer: session for each in await read(store, SpeakerStatus) for session in each.status.sessions}


def learnt(lab: Cluster) -> set[Network]:
    return {net for version in (4, 6) for net in ip.routes(lab.namespace("node1"), version, "proto", "201")}


def said(argv: list[str]) -> str:
    """What a command prints, its errors too."""
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


async def test_a_pod_peers_with_its_node_and_speaks_for_itself(lab: Cluster, tmp_path: Path) -> None:
    config, control = tmp_path / "bird.conf", tmp_path / "bird.ctl"
    config.write_text(configuration(lab))
    argv = ["bird", "-f", "-c", str(config), "-s", str(control)]
    processes.start(argv, log=tmp_path / "log", namespace=lab.namespace("shop/router"))
    own = {version: str(lab.address("shop/router", version)) for version in (4, 6)}

    async def up() -> str:
        found = await sessions(lab)
        told = {peer: found[peer].received if peer in found else 0 for peer in own.values()}
        return "" if set(told.values()) == {4} else f"the node has heard {told}"

    await lab.until(up, "both sessions", 30, "felix@node1", "bgp@node1")
    await lab.until(lambda: "" if learnt(lab) else "a route", "the kernel to have what was heard", 20)
    assert learnt(lab) == {ip_network(each) for each in MORE.values()}

    async def counted() -> str:
        found = await sessions(lab)
        left = {peer for peer in own.values() if found[peer].accepted + sum(found[peer].refused.values()) < 4}
        return f"what became of it is not counted for {left}" if left else ""

    await lab.until(counted, "what the node made of it", 20)
    for version, peer in own.items():
        session = (await sessions(lab))[peer]
        assert (session.state, session.name.partition("/shop/")[0]) == ("Established", "BGPPeer/pods")
        assert (session.accepted, sum(session.refused.values())) == (1, 3), session
        heard = said(["birdc", "-s", str(control), "show", "route", "protocol", f"n{version}"])
        block = ip_network(own[version]).supernet(new_prefix={4: 26, 6: 122}[version])
        assert re.findall(r"^([\da-f.:]+/\d+)", heard, re.MULTILINE) == [str(block)], (
            "and not the address that it calls"
        )


async def test_a_pod_that_is_not_asked_for_cannot_call(lab: Cluster) -> None:
    script = "import socket, sys; socket.create_connection((sys.argv[1], 179), 0.7)"
    for address in NODE.values():
        assert address in said(lab.command("node1", ["ip", "addr", "show", "dev", "lo"]))
        assert "timed out" in said(lab.command("shop/plain", [sys.executable, "-c", script, address]))
        call = lab.command("shop/router", [sys.executable, "-c", script, address])
        await lab.until(partial(said, call), "an answer", 20)
