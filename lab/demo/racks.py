"""Steps 1 to 4, 7 and 8: two racks on real routers, judged by real packets and by what the routers say.

node1 node2 ── tor1 (BIRD) ──┐
                           spine (BIRD) ── internet        `examples/two-racks`
node3 node4 ── tor2 (FRR) ───┘
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from ipaddress import ip_network
from typing import Final

from core.addr import Address, Network
from lab import cluster as clusters
from lab.capture import Capture
from lab.cluster import Cluster
from lab.demo.checks import Checks
from lab.demo.silence import Silence
from lab.probe import Answer

EXAMPLE: Final = clusters.HOUSE / "examples" / "two-racks"
POLICY: Final = EXAMPLE / "manifests" / "policy"
GLOBAL: Final = EXAMPLE / "manifests" / "global"
OUTSIDE: Final = "internet"

QUICK_S: Final = 0.3
"""How long a packet may take before we say that it was dropped; answers come within a few milliseconds."""

WITHIN_S: Final = 1.0
"""How soon after `apply` has returned the matrix must have flipped."""


def _reached(answers: Mapping[tuple[str, str], Answer]) -> Mapping[tuple[str, str], bool]:
    return {pair: bool(answer) for pair, answer in answers.items()}


def blocks(lab: Cluster) -> Mapping[str, set[Network]]:
    """The /26 blocks that each node's pods live in."""
    found: dict[str, set[Network]] = {node.name: set() for node in lab.topology.nodes}
    for pod in lab.topology.pods:
        found[pod.node].add(ip_network(f"{lab.address(pod.name)}/26", strict=False))
    return found


def kernel_routes(lab: Cluster, node: str) -> set[Network]:
    """The unicast /26 routes of a node's kernel, as `ip route` shows them."""
    said = subprocess.run(
        lab.command(node, ["ip", "-j", "-4", "route", "show", "type", "unicast"]),
        check=True,
        capture_output=True,
        text=True,
    )
    destinations = (route["dst"] for route in json.loads(said.stdout))
    return {ip_network(text) for text in destinations if text.endswith("/26")}


async def peering(lab: Cluster, checks: Checks) -> None:
    """Step 1."""
    checks.step(1, "nodes peer with their rack's router, and the racks know each other's blocks")
    racks = {"tor1": ["node1", "node2"], "tor2": ["node3", "node4"]}
    for tor, nodes in racks.items():
        router = lab.routers[tor]
        up = {each.neighbour for each in router.sessions() if each.up}
        checks.check(f"{tor} ({router.wiring.kind}) has its sessions with {', '.join(nodes)} up", up >= set(nodes))
    own = blocks(lab)
    every = {block for each in own.values() for block in each}
    for tor in racks:
        held = set(lab.routers[tor].pod_routes())
        seen = ", ".join(map(str, sorted(held, key=str)))
        checks.check(f"{tor} holds exactly the nodes' /26 blocks, no /32", held == every, seen)
    for node, mine in own.items():
        there = kernel_routes(lab, node)
        checks.check(f"{node}'s kernel holds the other nodes' blocks", there == every - mine, f"{len(there)} routes")
    far = [pod.name for pod in lab.topology.pods if pod.node == "node1"]
    near = [pod.name for pod in lab.topology.pods if pod.node in racks["tor2"]]
    answers = await lab.matrix(near, far)
    checks.check("node1's pods answer rack 2", all(answers.values()), f"{len(answers)} pairs")


async def everyone(lab: Cluster, checks: Checks) -> None:
    """Step 2."""
    checks.step(2, "every pod reaches every pod over TCP, and nothing is tunnelled")
    nodes = [node.name for node in lab.topology.nodes]
    captures = [Capture(lab.namespace(node)) for node in nodes]
    with Capture(lab.namespace("node1"), protocol=6) as native:
        answers = await lab.matrix()
        tunnelled = sum(each.count() for each in captures)
        checks.check("the full matrix, both directions", all(answers.values()), f"{len(answers)} pairs")
        checks.check("no protocol-4 packet on any node's uplink", tunnelled == 0, f"native TCP seen: {native.count()}")
    for each in captures:
        each.close()


async def outside(lab: Cluster, checks: Checks) -> None:
    """Step 3."""
    checks.step(3, "nodes reach pods; pods reach the outside as their node, and each other as themselves")
    nodes = [node.name for node in lab.topology.nodes]
    answers = await lab.matrix(nodes, None)
    checks.check("every node reaches every pod", all(answers.values()), f"{len(answers)} pairs")
    home: Mapping[str, Address] = {pod.name: lab.address(pod.node) for pod in lab.topology.pods}
    out = await lab.matrix(None, [OUTSIDE])
    checks.same(
        f"{OUTSIDE} sees each pod under its node's address",
        {pod: answer.seen for (pod, _), answer in out.items()},
        dict(home),
    )
    among = await lab.matrix()
    checks.same(
        "pods see each other's real addresses",
        {pair: answer.seen for pair, answer in among.items()},
        {(a, b): lab.address(a) for a, b in among},
    )


def _app(pod: str) -> str:
    return pod.partition("/")[2].partition("-")[0]


def open_to_all(source: str, destination: str) -> bool:
    """No policy at all."""
    return True


def shop_closed(source: str, destination: str) -> bool:
    """manifests/policy: into `shop` only `web` to `db`."""
    if not destination.startswith("shop/"):
        return True
    return source.startswith("shop/") and _app(source) == "web" and _app(destination) == "db"


def office_first(source: str, destination: str) -> bool:
    """manifests/global before manifests/policy: the office into all of `shop`, `web` to `db` no more."""
    return not destination.startswith("shop/") or source.startswith("office/")


async def _flips(lab: Cluster, checks: Checks, what: str, wanted: Callable[[str, str], bool]) -> None:
    """Check that the matrix is as wanted within WITHIN_S from now."""
    began = time.monotonic()
    while True:
        asked = time.monotonic() - began
        seen = _reached(await lab.matrix(timeout=QUICK_S))
        expected = {(a, b): wanted(a, b) for a, b in seen}
        if seen == expected or asked > WITHIN_S:
            break
    if checks.same(f"{what}: the matrix is exactly as written", seen, expected):
        checks.check("   and was so within a second", asked <= WITHIN_S, f"asked {asked * 1000:.0f} ms after apply")


async def policy(lab: Cluster, checks: Checks) -> None:
    """Step 4."""
    checks.step(4, "Kubernetes policies, then a GlobalNetworkPolicy ordered before them")
    await lab.apply(POLICY)
    await _flips(lab, checks, "default-deny and web to db applied", shop_closed)
    await lab.apply(GLOBAL)
    await _flips(lab, checks, "office-first (order 100) applied", office_first)
    await lab.delete(GLOBAL)
    await _flips(lab, checks, "office-first deleted", shop_closed)
    await lab.delete(POLICY)
    await _flips(lab, checks, "all policies deleted", open_to_all)


async def _killed(lab: Cluster, checks: Checks, label: str, watched: Sequence[str], *, children: bool = False) -> None:
    """`kill -9` one process, see that pods do not notice, start it again, see that kernels do not either."""
    with contextlib.ExitStack() as stack:
        silences = {node: stack.enter_context(Silence(lab, node)) for node in watched}
        async with lab.transfer("shop/web-1", "shop/db-4") as transfer:
            transfer.mark()
            lab.kill(label, children=children)
            down = _reached(await lab.matrix(timeout=QUICK_S))
            checks.same(f"{label} killed: the matrix is as it was", down, {pair: shop_closed(*pair) for pair in down})
            lab.start(label)
            await lab.until_programmed()
            await lab.until_peered()
            silence = transfer.silence_s
        checks.check(
            "   a transfer across the racks ran through it all", silence < WITHIN_S, f"{silence * 1000:.0f} ms"
        )
        for node, each in silences.items():
            heard = each.heard()
            checks.check(f"   its restart changed nothing in {node}'s kernel", not heard, "; ".join(heard[:3]))


async def killed(lab: Cluster, checks: Checks) -> None:
    """Step 7."""
    checks.step(7, "kill -9 of felix, of bgp with its ExaBGP, and of the datastore, with policy in force")
    await lab.apply(POLICY)
    await _flips(lab, checks, "default-deny and web to db applied", shop_closed)
    await _killed(lab, checks, "felix@node1", ["node1", "node4"])
    await _killed(lab, checks, "bgp@node4", ["node1", "node4"], children=True)
    await _killed(lab, checks, clusters.DATASTORE, ["node1", "node4"])
    await lab.delete(POLICY)


async def _all_right(lab: Cluster) -> str:
    """Wait until every agent has reported to the datastore that came back; what is still wrong after a while."""
    for _ in range(10):
        status = await lab.muslin("status", "--check")
        if status.code == 0:
            return ""
    return status.out.rpartition("NOT RIGHT")[2].strip()


async def said(lab: Cluster, checks: Checks) -> None:
    """Step 8."""
    checks.step(8, "muslin status and muslin explain")
    right = await _all_right(lab)
    checks.check("status --check finds nothing wrong once the datastore is back", not right, right)
    status = await lab.muslin("status", "-o", "json")
    nodes = {each["node"]: each for each in json.loads(status.out)["nodes"]}
    checks.check("status knows every node", set(nodes) == {node.name for node in lab.topology.nodes})
    own = blocks(lab)
    for node, each in nodes.items():
        felix, bgp = each["felix"], each["bgp"]
        checks.check(
            f"status of {node}: session up, routes in and out, revision programmed",
            [session["state"] for session in bgp["sessions"]] == ["Established"]
            and bgp["routesIn"] == len(kernel_routes(lab, node))
            and set(bgp["routesOut"]) == {str(block) for block in own[node]}
            and felix["programmed"] > 0,
            f"in {bgp['routesIn']}, out {', '.join(bgp['routesOut'])}, revision {felix['programmed']}",
        )
    checks.say((await lab.muslin("status")).out.rstrip())
    await lab.apply(POLICY)
    await _explained(lab, checks, "office/tool-1", "shop/web-4", "shop/default-deny")
    await lab.delete(POLICY)
    await lab.apply(GLOBAL)
    await _explained(lab, checks, "shop/web-1", "shop/db-4", "office-first")
    await lab.delete(GLOBAL)


async def _explained(lab: Cluster, checks: Checks, source: str, destination: str, policy: str) -> None:
    answer = await lab.muslin("explain", "--from", source, "--to", destination, "--tcp", "8080")
    denied = not any((await lab.matrix([source], [destination], timeout=QUICK_S)).values())
    named = policy in answer.out
    checks.check(f"explain says that {policy} denies {source} to {destination}, and it does", denied and named)
    checks.say(answer.out.rstrip())


@contextlib.asynccontextmanager
async def cluster(checks: Checks) -> AsyncIterator[Cluster]:
    """The lab of these steps, up while the block runs."""
    lab = await clusters.up(EXAMPLE / "topology.yaml", checks.progress, name="demo-racks")
    try:
        yield lab
    finally:
        await asyncio.shield(clusters.down(lab.name))
