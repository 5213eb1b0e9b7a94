"""Two nodes for real: namespaces, wires and pods; felix on each as `muslin felix` runs it; one datastore server.

        pods ── node n1 ──┐                 ┌── node n2 ── pods
                 10.9.0.1 ├── lan (bridge) ─┤ 10.9.0.2
                          └── out-a, out-b, out-c: hosts that are in no cluster

Routes between nodes are static: what BGP would bring is not asked here. Pods alternate between the nodes, so each
namespace lies on both. Only the node's own agent touches the rules; a test writes to the datastore and sends packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cni.endpoint import own_mac
from core.manifest import decode
from core.names import Key, workload_interface
from core.resources import FelixStatus, IPPool, Metadata, Node, Resource, Tier
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from core.resources.policy import TierSpec
from core.resources.status import FelixState
from datastore import objects
from datastore.api import Changes, Delete
from datastore.client import GrpcStore
from lab import ip, processes
from lab.pods import join
from lab.routers import forward
from linux import netns
from tests.packets.cases import OUTSIDE

HOUSE = Path(__file__).parents[2]
NODES = ("n1", "n2")
PATIENCE_S = 30.0
MTU = 1450
NODE_ADDRESSES = {"n1": ("10.9.0.1", "fd09::1"), "n2": ("10.9.0.2", "fd09::2")}
LAN = ("10.9.0.0/24", "fd09::/64")


@dataclass
class Ground:
    """What stands while the tests run. `programmed` is what each node's felix has said last."""

    folder: Path
    target: str
    addresses: Mapping[str, tuple[str, str]]
    felixes: dict[str, processes.Process] = field(default_factory=dict)
    said: dict[str, FelixState] = field(default_factory=dict)
    held: dict[Key, Resource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.node_of = {name: NODES[number % 2] for number, name in enumerate(self._pods())}
        self._loop = asyncio.Runner()
        self._store = self._loop.run(self._open())
        self._news = asyncio.Event()
        self._watch = self._loop.get_loop().create_task(self._listen())

    def _pods(self) -> list[str]:
        return [name for name in self.addresses if not name.startswith(OUTSIDE)]

    async def _open(self) -> GrpcStore:
        return GrpcStore(self.target)

    def space(self, host: str) -> str:
        """The network namespace of a node, a pod or an outside host."""
        return space(host)

    def place(self, pod: str) -> str:
        """The node a pod is on."""
        return self.node_of[pod]

    # --- the datastore

    def write(self, wanted: Mapping[Key, Resource]) -> int:
        """Make the datastore hold `wanted` and nothing else of a user's, in one transaction; its revision."""
        puts = [objects.put(each) for key, each in wanted.items() if self.held.get(key) != each]
        gone = [Delete(key) for key in self.held if key not in wanted]
        revision = self._loop.run(self._store.txn([*puts, *gone])) if puts or gone else 0
        self.held = dict(wanted)
        return revision

    def settle(self, wanted: Mapping[Key, Resource]) -> None:
        """Write, and wait until both nodes' kernels hold it."""
        self.await_programmed(self.write({**self.base(), **wanted}))

    def await_programmed(self, revision: int) -> None:
        """Wait for both felixes to say that `revision` is wholly in the kernel."""
        self._loop.run(self._until(revision))

    async def _until(self, revision: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while any(node not in self.said or self.said[node].programmed < revision for node in self.felixes):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"revision {revision} is not programmed: {self.said}\n{self.logs()}") from None

    async def _listen(self) -> None:
        async with contextlib.aclosing(self._store.watch(0, {FelixStatus.KIND})) as watch:
            async for item in watch:
                for event in item.events if isinstance(item, Changes) else ():
                    if event.value is not None:
                        status = decode(event.key, event.value)
                        assert isinstance(status, FelixStatus)
                        self.said[event.key.name] = status.status
                self._news.set()

    def base(self) -> dict[Key, Resource]:
        """What every state has: the nodes, the pools and the tier that is always there."""
        found: list[Resource] = [
            *(_node(name) for name in NODES),
            _pool("four", "10.65.0.0/16"),
            _pool("six", "fd00:65::/32"),
            Tier(
                api_version="projectcalico.org/v3",
                kind="Tier",
                metadata=Metadata(name="default"),
                spec=TierSpec(order=1_000_000),
            ),
        ]
        return {each.key: each for each in found}

    # --- felix

    def start(self, node: str) -> None:
        """Start a node's agent, as the command line starts it."""
        run_dir = self.folder / node
        argv = [sys.executable, "-m", "cli", "felix", "--node", node, "--datastore", self.target]
        argv += ["--run-dir", str(run_dir)]
        self.felixes[node] = processes.start(argv, log=self.folder / f"{node}.log", namespace=space(node), cwd=HOUSE)

    def kill(self, node: str) -> None:
        """End a node's agent as the kernel's out-of-memory killer would."""
        process = self.felixes[node]
        process.signal(signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while process.alive():
            assert time.monotonic() < deadline, f"{process} does not die"
            time.sleep(0.005)

    def logs(self) -> str:
        """The ends of the agents' logs."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:]) for path in self.folder.glob("*.log")
        )

    def close(self) -> None:
        """End the agents and let go of the store."""
        processes.stop(self.felixes.values())
        self._watch.cancel()

        async def end() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            await self._store.close()

        self._loop.run(end())
        self._loop.close()


def space(host: str) -> str:
    """The network namespace of a host or pod; no other run's."""
    return f"mu-pk-{os.getpid()}-{host.replace('/', '-')}"


@contextlib.contextmanager
def ground(folder: Path, target: str, addresses: Mapping[str, tuple[str, str]]) -> Iterator[Ground]:
    """Build everything, start both agents, and leave nothing behind. `addresses` are IPv4 then IPv6, by name."""
    made = Ground(folder, target, addresses)
    hosts = ["lan", *NODES, *addresses]
    try:
        for host in hosts:
            netns.create(space(host))
        _wire([*NODES, *(name for name in addresses if name.startswith(OUTSIDE))])
        for node in NODES:
            _node_routes(made, node)
        for name, own in addresses.items():
            if name.startswith(OUTSIDE):
                _outside_routes(made, name, own)
            else:
                _attach(made, name, own)
        for node in NODES:
            made.start(node)
        yield made
    finally:
        made.close()
        left = netns.inhabitants([space(host) for host in hosts])
        processes.stop(processes.known(left))
        for host in hosts:
            netns.delete(space(host))


def _wire(hosts: Sequence[str]) -> None:
    ip.batch(["link add lan type bridge", "link set lan up"], space("lan"))
    for number, host in enumerate(hosts):
        ip.batch([f"link add name eth0 netns {space(host)} type veth peer name port{number} netns {space('lan')}"])
        ip.batch([f"link set port{number} master lan", f"link set port{number} up"], space("lan"))
        ip.batch(["link set eth0 up"], space(host))


def _node_routes(made: Ground, node: str) -> None:
    v4, v6 = NODE_ADDRESSES[node]
    other4, other6 = NODE_ADDRESSES[next(each for each in NODES if each != node)]
    forward(space(node))
    lines = [f"addr add {v4}/24 dev eth0", f"addr add {v6}/64 dev eth0 nodad"]
    lines.append("route add default via 10.9.0.254")  # nobody is there: proxy ARP wants a route to the pods' gateway
    for name, own in made.addresses.items():
        if name.startswith(OUTSIDE):
            lines += [f"route add {address} dev eth0" for address in own]
        elif made.place(name) != node:
            lines += [f"route add {own[0]} via {other4}", f"route add {own[1]} via {other6}"]
    ip.batch(lines, space(node))


def _outside_routes(made: Ground, host: str, own: tuple[str, str]) -> None:
    lines = [f"addr add {own[0]}/32 dev eth0", f"addr add {own[1]}/128 dev eth0 nodad"]
    lines += [f"route add {net} dev eth0" for net in LAN]
    for name, theirs in made.addresses.items():
        if not name.startswith(OUTSIDE):
            via4, via6 = NODE_ADDRESSES[made.place(name)]
            lines += [f"route add {theirs[0]} via {via4}", f"route add {theirs[1]} via {via6}"]
    ip.batch(lines, space(host))


def _attach(made: Ground, pod: str, own: tuple[str, str]) -> None:
    """The CNI plugin's wire; the route on the node and everything else is felix's."""
    addresses = [ip_address(each) for each in own]
    join(space(made.place(pod)), space(pod), workload_interface(*pod.split("/")), addresses, own_mac(pod), MTU)


def _node(name: str) -> Node:
    v4, v6 = NODE_ADDRESSES[name]
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"{v4}/24", ipv6_address=f"{v6}/64"))
    return Node(api_version="projectcalico.org/v3", kind="Node", metadata=Metadata(name=name), spec=spec)


def _pool(name: str, cidr: str) -> IPPool:
    kind = IPPool.KIND
    metadata, spec = Metadata(name=name), IPPoolSpec(cidr=cidr)
    return IPPool(api_version=kind.api_version, kind=kind.name, metadata=metadata, spec=spec)
