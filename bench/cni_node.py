"""A node with felix and the CNI agent, one with the CNI project's own plugins, and a runtime that calls either.

    runtime: a thread in the node's namespace ── fork, exec ──> muslin | ptp + host-local
                environment, configuration on stdin ──────────────^

Ours is installed by `muslin cni install` and configured by what that writes. Both nodes are namespaces with one uplink
and, as nodes have, a default route.
A NetworkPolicy selects every pod of ours and looks for its peers by a selector that every pod meets, so each ADD writes
rules of its own and an address into a set; ptp has no policy. A pod's namespace is made, and removed, out of time.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.rack import Rack, until
from core.errors import Unsupported
from core.names import WORKLOAD_PREFIX
from core.resources import (
    IPAMBlock,
    IPAMHandle,
    IPPool,
    Metadata,
    Namespace,
    NetworkPolicy,
    Node,
    Resource,
    WorkloadEndpoint,
)
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from core.resources.policy import Action, Direction, EntityRule, NetworkPolicySpec, Rule
from core.routing import RouteProtocol
from datastore import objects
from datastore.client import GrpcStore
from linux import netns

PLUGINS: Final = Path("/usr/lib/cni")
NODE: Final = "node-1"
NAMESPACE: Final = "shop"
POOL: Final = "10.96.0.0/16"
_ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Container:
    """A container to be: its id, its pod's name, and where its network namespace is."""

    id: str
    pod: str
    netns: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """Calls one plugin on one node, `place` (a namespace)."""

    place: str
    executable: Path
    conf: Mapping[str, Any]

    def call(self, command: str, container: Container, **asked: object) -> bytes:
        """One call, of a thread in the node's namespace; what it prints. RuntimeError when it fails."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container.id,
            "CNI_NETNS": container.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.executable.parent}:{PLUGINS}",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={container.pod}",
            "PATH": os.environ["PATH"],
        }
        given = json.dumps({**self.conf, **asked}).encode()
        done = subprocess.run([self.executable], input=given, env=environment, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.executable.name} {command}: {(done.stdout or done.stderr).decode()}")
        return done.stdout

    def alone(self, command: str, containers: Iterable[Container]) -> list[float]:
        """Milliseconds of each call, one after the other."""
        took = []
        with netns.inside(self.place):
            for each in containers:
                begun = time.perf_counter()
                self.call(command, each)
                took.append((time.perf_counter() - begun) * 1000)
        return took

    def at_once(self, command: str, containers: Iterable[Container], most: int) -> float:
        """Seconds of all calls, so many under way at a time."""
        begun = time.perf_counter()
        with netns.inside(self.place), ThreadPoolExecutor(most) as threads:  # which begin where we are
            for _ in threads.map(lambda each: self.call(command, each), containers):
                pass
        return time.perf_counter() - begun


@dataclass(frozen=True, slots=True)
class Pods:
    """Network namespaces that pods are given, again and again: a new container, and so a new pod, each time."""

    places: Sequence[str]

    def containers(self, turn: int, first: int = 0, count: int | None = None) -> list[Container]:
        """Containers of a turn; those of another have other names."""
        chosen = self.places[first : None if count is None else first + count]
        return [
            Container(f"{turn:016x}{number:016x}", f"pod-{turn}-{number}", place)
            for number, place in enumerate(chosen, first)
        ]


def pods(rack: Rack, name: str, count: int) -> Pods:
    """So many."""
    return Pods([netns.path(rack.place(f"{name}{number}")) for number in range(count)])


@dataclass(frozen=True, slots=True)
class Left:
    """What a node holds of pods: by the datastore, and by its kernel, whose table is as `nft` lists it."""

    endpoints: int
    handles: int
    addresses: int
    interfaces: int
    routes: int
    table: str


def wire(rack: Rack, one: str, other: str, number: int) -> None:
    """Two nodes, linked; each is the other's router to everywhere. Their addresses end in .1 and .2."""
    addresses = [f"192.168.{number}.{end}" for end in (1, 2)]
    rack.wire(one, f"{addresses[0]}/24", other, f"{addresses[1]}/24")
    rack.ip(one, f"route add default via {addresses[1]}")
    rack.ip(other, f"route add default via {addresses[0]}")


class CniNode:
    """Felix and the CNI agent in a place of a rack, and the plugin installed."""

    def __init__(self, rack: Rack, place: str, datastore: str, node: str = NODE) -> None:
        self.place, self._datastore = netns.path(rack.place(place)), datastore
        folder = rack.folder / place
        run_dir = folder / "run"
        for room in ("felix", "cni"):
            words = ("--node", node, "--datastore", datastore, "--run-dir", str(run_dir))
            rack.start(place, sys.executable, "-m", room, *words)
        words = ("--bin-dir", str(folder / "bin"), "--conf-dir", str(folder / "net.d"), "--run-dir", str(run_dir))
        argv = [sys.executable, "-m", "cli", "cni", "install", *words]
        subprocess.run(argv, check=True, capture_output=True, cwd=_ROOT)
        listed = json.loads(next((folder / "net.d").iterdir()).read_text())
        conf = {"cniVersion": listed["cniVersion"], "name": listed["name"], **listed["plugins"][0]}
        self.runtime = Runtime(self.place, folder / "bin" / "muslin", conf)
        until(f"the CNI agent of {place} serves", self._serves, 0.2)

    def _serves(self) -> bool:
        nobody = Container("none", "none", "")
        try:
            self.runtime.call("STATUS", nobody, cniVersion="1.1.0")
        except RuntimeError:
            return False
        return True

    def left(self) -> Left:
        """What there is now."""
        inside = netns.command(self.place)
        endpoints, handles, addresses = asyncio.run(_stored(self._datastore))
        links = _said(*inside, "ip", "-o", "link", "show").splitlines()
        routes = _said(*inside, "ip", "route", "show", "table", "all", "proto", str(int(RouteProtocol.FELIX)))
        return Left(
            endpoints=endpoints,
            handles=handles,
            addresses=addresses,
            interfaces=sum(line.split()[1].startswith(WORKLOAD_PREFIX) for line in links),
            routes=sum(f"dev {WORKLOAD_PREFIX}" in line for line in routes.splitlines()),
            table=_said(*inside, "nft", "-s", "list", "ruleset"),
        )


async def _stored(datastore: str) -> tuple[int, int, int]:
    store = GrpcStore(datastore)
    try:
        listing = await store.list({WorkloadEndpoint.KIND, IPAMHandle.KIND, IPAMBlock.KIND})
        blocks = [
            await objects.read(store, IPAMBlock, each.key.name)
            for each in listing.entries
            if each.key.kind == IPAMBlock.KIND
        ]
    finally:
        await store.close()
    endpoints, handles = (
        sum(each.key.kind == kind for each in listing.entries) for kind in (WorkloadEndpoint.KIND, IPAMHandle.KIND)
    )
    return endpoints, handles, sum(len(found[0].spec.allocations) for found in blocks if found)


def _said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def cluster(*nodes: str) -> Iterator[Resource]:
    """The nodes by name and address, a pool, and a policy under which pods of the namespace reach each other."""
    yield IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr=POOL))
    for number, address in enumerate(nodes, 1):
        yield Node(metadata=Metadata(name=f"node-{number}"), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address=address)))
    yield Namespace(metadata=Metadata(name=NAMESPACE))
    spec = NetworkPolicySpec(
        selector="all()",
        types=[Direction.INGRESS, Direction.EGRESS],
        ingress=[
            Rule(action=Action.ALLOW, source=EntityRule(selector="projectcalico.org/orchestrator == 'k8s'")),
            Rule(action=Action.ALLOW, protocol="ICMP"),
        ],
        egress=[Rule(action=Action.ALLOW)],
    )
    yield NetworkPolicy(metadata=Metadata(name="one-another", namespace=NAMESPACE), spec=spec)


def ptp(rack: Rack, place: str, subnet: str = POOL) -> Runtime:
    """The CNI project's plugins on a node of their own. Raises `Unsupported` where they are not installed."""
    if not (PLUGINS / "ptp").exists():
        raise Unsupported(f"{PLUGINS}/ptp is not there: apt-get install containernetworking-plugins")
    ipam = {
        "type": "host-local",
        "dataDir": str(rack.folder / f"host-local-{place}"),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    conf = {"cniVersion": "1.0.0", "name": "bench", "type": "ptp", "ipMasq": False, "ipam": ipam}
    return Runtime(netns.path(rack.place(place)), PLUGINS / "ptp", conf)


@contextmanager
def removed(runtime: Runtime, containers: Sequence[Container], most: int) -> Iterator[None]:
    """DEL of all of them at the end, whatever happens, out of time."""
    try:
        yield
    finally:
        runtime.at_once("DEL", containers, most)
