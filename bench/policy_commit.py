"""policy-commit: from the apply of one policy change to the first packet that is judged by it, in a busy cluster.

A datastore's server and felix run as they do in service, each a process of its own. One pod of the node sends another
a datagram every fifth of a millisecond; a policy allows it to one port. Each change moves that port; what is timed
begins with the write to the datastore and ends when the first datagram to the new port arrives. The peer is the same
in a cluster that holds nothing but the two pods and the policy.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Final

from bench.busy_cluster import NODE, cluster
from bench.filling import fill
from bench.model import Bench, Figures, Subjects, at_most
from core.names import workload_endpoint_name, workload_interface
from core.resources import FelixStatus, IPPool, Metadata, Namespace, NetworkPolicy, Node, Resource, WorkloadEndpoint
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec, WorkloadEndpointSpec
from core.resources.policy import Action, Direction, EntityRule, NetworkPolicySpec, Rule
from datastore import objects
from datastore.client import GrpcStore
from linux import netns
from linux.rights import require_net_admin

P99: Final = "p99 ms"
CHANGES: Final = 60
READY_S: Final = 120.0
ARRIVAL_S: Final = 10.0

BENCH: Final = Bench(
    name="policy-commit",
    what="apply of a policy change to the first packet judged by it; 250 local pods, 1,000 policies, 10,000 endpoints",
    unit="ms (p50)",
    peer="the same in a cluster of two pods and one policy",
    targets=(at_most(20, absolute=True), at_most(60, of=P99, absolute=True)),
    runs=3,
)

_PODS: Final = {"probe": "10.127.0.1", "target": "10.127.0.2"}
_SHOP: Final = "bench"

PROBER: Final = """
import selectors, socket, sys, time
sender, receivers = int(sys.argv[1]), [int(each) for each in sys.argv[2].split(",")]
out = socket.socket(fileno=sender)
into = {8000 + place: socket.socket(fileno=number) for place, number in enumerate(receivers)}
print("ready", flush=True)
for line in sys.stdin:
    port, end = int(line), time.monotonic() + 10
    while time.monotonic() < end:
        try:
            out.sendto(b"?", ("10.127.0.2", port))
            into[port].recv(16)
        except BlockingIOError:
            time.sleep(0.0002)
            continue
        print(time.monotonic_ns(), flush=True)
        break
    else:
        print(0, flush=True)
"""


@contextmanager
def subjects() -> Iterator[Subjects]:
    """Both clusters, programmed; each turn changes the policy CHANGES times."""
    require_net_admin()
    with ExitStack() as stack:
        busy = stack.enter_context(_node("busy", list(cluster(pods=10_000, policies=1_000, local=250, namespaces=500))))
        quiet = stack.enter_context(_node("quiet", [_pool(), _self()]))
        yield Subjects(busy, quiet)


class Turn:
    """A running node, and CHANGES changes of its policy."""

    def __init__(self, datastore: str, prober: subprocess.Popen[str]) -> None:
        self._datastore, self._prober = datastore, prober
        self._place = 0

    def __call__(self) -> Figures:
        took = sorted(asyncio.run(self._changes()))
        return Figures(median(took), {P99: quantiles(took, n=100, method="inclusive")[98]})

    async def _changes(self) -> list[float]:
        store = GrpcStore(self._datastore)
        try:
            return [await self._change(store) for _ in range(CHANGES)]
        finally:
            await store.close()

    async def _change(self, store: GrpcStore) -> float:
        """Milliseconds from the write to the first packet."""
        self._place = 1 - self._place
        port = 8000 + self._place
        _tell(self._prober, str(port))
        await asyncio.sleep(0.01)  # packets to the new port are on their way, and denied
        begun = time.monotonic_ns()
        await objects.write(store, _policy(port))
        arrived = int(await asyncio.to_thread(_hear, self._prober))
        assert arrived > begun, f"nothing arrived at port {port} within {ARRIVAL_S:g} s"
        return (arrived - begun) / 1e6


@contextmanager
def _node(name: str, state: list[Resource]) -> Iterator[Turn]:
    with ExitStack() as stack:
        place = f"muslin-bench-{os.getpid()}-{name}"
        netns.create(place)
        stack.callback(netns.delete, place)
        for pod, address in _PODS.items():
            _wire(stack, place, pod, address)
        _wire_others(place, [each for each in state if isinstance(each, WorkloadEndpoint) and each.spec.node == NODE])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muslin-bench-")))
        datastore = f"unix:{folder}/datastore.sock"
        log = stack.enter_context((folder / "log").open("w"))
        _start(
            stack,
            log,
            sys.executable,
            "-m",
            "cli",
            "datastore",
            "--backend",
            f"sqlite:{folder}/db",
            "--listen",
            datastore,
        )
        own = [_shop(), *(_endpoint(pod, address) for pod, address in _PODS.items()), _policy(8000)]
        asyncio.run(fill(datastore, [*state, *own]))
        words = ("felix", "--node", NODE, "--datastore", datastore, "--run-dir", str(folder))
        _start(stack, log, *netns.command(place, sys.executable, "-m", "cli", *words))
        asyncio.run(_programmed(datastore))
        yield Turn(datastore, _prober(stack, place))


def _wire(stack: ExitStack, place: str, pod: str, address: str) -> None:
    inside, interface = f"{place}-{pod}", workload_interface(_SHOP, pod)
    netns.create(inside)
    stack.callback(netns.delete, inside)
    _ip(place, f"link add {interface} type veth peer name eth0 netns {inside}")
    _ip(place, f"link set {interface} up")
    for line in (f"addr add {address} dev eth0", "link set eth0 up", "route add default dev eth0"):
        _ip(inside, line)


def _wire_others(place: str, pods: list[WorkloadEndpoint]) -> None:
    """Interfaces of pods that nobody asks anything of; their other ends stay beside them."""
    names = [each.spec.interface_name for each in pods]
    lines = [f"link add {name} type veth peer name p{number}" for number, name in enumerate(names)]
    lines += [f"link set {name} up" for name in names] + [f"link set p{number} up" for number in range(len(names))]
    subprocess.run(["ip", "-n", place, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def _start(stack: ExitStack, log: IO[str], *argv: str) -> None:
    process = subprocess.Popen(argv, stdout=log, stderr=log)

    def end() -> None:
        process.terminate()
        process.wait(20)

    stack.callback(end)


def _prober(stack: ExitStack, place: str) -> subprocess.Popen[str]:
    sender = netns.open_socket(f"{place}-probe", socket.AF_INET, socket.SOCK_DGRAM)
    receivers = [netns.open_socket(f"{place}-target", socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for number, each in enumerate(receivers):
        each.bind((_PODS["target"], 8000 + number))
        each.setblocking(False)
    numbers = [each.fileno() for each in (sender, *receivers)]
    argv = [sys.executable, "-c", PROBER, str(numbers[0]), ",".join(map(str, numbers[1:]))]
    prober = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=numbers)
    for each in (sender, *receivers):
        each.close()

    def end() -> None:
        prober.kill()
        prober.communicate()

    stack.callback(end)
    assert _hear(prober) == "ready"
    return prober


def _tell(prober: subprocess.Popen[str], line: str) -> None:
    assert prober.stdin is not None
    print(line, file=prober.stdin, flush=True)


def _hear(prober: subprocess.Popen[str]) -> str:
    assert prober.stdout is not None
    return prober.stdout.readline().strip()


async def _programmed(datastore: str) -> None:
    store = GrpcStore(datastore)
    try:
        async with asyncio.timeout(READY_S):
            newest = (await store.list({NetworkPolicy.KIND})).revision
            while True:
                found = await objects.read(store, FelixStatus, NODE)
                if found and found[0].status.programmed >= newest:
                    return
                await asyncio.sleep(0.05)
    finally:
        await store.close()


def _policy(port: int) -> NetworkPolicy:
    rule = Rule(action=Action.ALLOW, protocol="UDP", destination=EntityRule(ports=[port]))
    spec = NetworkPolicySpec(selector="app == 'target'", types=[Direction.INGRESS], ingress=[rule])
    return NetworkPolicy(metadata=Metadata(name="moving", namespace=_SHOP), spec=spec)


def _shop() -> Namespace:
    return Namespace(metadata=Metadata(name=_SHOP))


def _pool() -> IPPool:
    return IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.64.0.0/10"))


def _self() -> Node:
    return Node(metadata=Metadata(name=NODE), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.168.0.1/16")))


def _endpoint(pod: str, address: str) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=NODE,
        pod=pod,
        endpoint="eth0",
        ip_networks=[f"{address}/32"],
        profiles=[f"kns.{_SHOP}"],
        interface_name=workload_interface(_SHOP, pod),
    )
    metadata = Metadata(name=workload_endpoint_name(NODE, pod), namespace=_SHOP, labels={"app": pod})
    return WorkloadEndpoint(metadata=metadata, spec=spec)


def _ip(place: str, line: str) -> None:
    subprocess.run(["ip", "-n", place, *line.split()], check=True)
