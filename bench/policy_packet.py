"""policy-packet: what 500 rules each way cost a packet that policy must judge, against the same node with none.

Two pods of one node, felix's own table and routes, UDP, and no conntrack (a `notrack` rule beside our table), so that
every packet is judged as the first of a flow is. Packets leave by `sendmmsg`, a thousand to a call, and travel through
both veths and the host within that call: the CPU time of the calls is that of the path, and hardly any of Python's.
That every packet arrived is checked each time.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

from bench.model import Bench, Subjects, at_most
from core.names import workload_interface
from core.reconcile import Driver, diff
from core.resources import GlobalNetworkPolicy, IPPool, Metadata, Namespace, Node, Resource, WorkloadEndpoint
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec, WorkloadEndpointSpec
from core.resources.policy import Action, EntityRule, GlobalNetworkPolicySpec, Rule
from core.routing import RouteProtocol
from core.snapshot import Snapshot
from felix.desired import desired
from felix.model import Config, Desired
from linux import netns
from linux.links import watch_facts
from linux.nft import NftDriver
from linux.nft_objects import flatten
from linux.rights import require_net_admin
from linux.routes import RouteDriver
from linux.sysctl import SysctlDriver

BENCH: Final = Bench(
    name="policy-packet",
    what="one packet of a new flow, pod to pod in one node, 500 rules in force each way",
    unit="ns/packet",
    peer="the same without policy",
    targets=(at_most(1.6),),
    runs=9,
)

RULES: Final = 500
RULES_A_POLICY: Final = 10
PACKETS: Final = 50_000
PORT: Final = 9000
_AT_ONCE: Final = 1000
_PODS: Final = {"web": "10.0.0.1", "db": "10.0.0.2"}
_NOTRACK: Final = (
    "table inet bench { chain raw { type filter hook prerouting priority -310; udp dport 9000 notrack; }; }"
)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """A node of its own with two pods; the table is changed by felix's own driver between the turns."""
    require_net_admin()
    with netns.scratch_namespace(), ExitStack() as stack:
        for pod, address in _PODS.items():
            stack.enter_context(_pod(pod, address))
        _run("nft", _NOTRACK)
        node = stack.enter_context(_programmed())
        receiver = stack.enter_context(_socket(_place("db")))
        receiver.bind((_PODS["db"], PORT))
        sender = stack.enter_context(_socket(_place("web")))
        sender.connect((_PODS["db"], PORT))
        burst = Burst(sender)
        states = {rules: _snapshot(rules) for rules in (0, RULES)}

        def timed(rules: int) -> float:
            node(states[rules])
            _await_neighbours(burst)
            before = _received()
            begun = time.thread_time_ns()
            for _ in range(PACKETS // _AT_ONCE):
                burst.send()
            took = time.thread_time_ns() - begun
            arrived = _received() - before
            assert arrived == PACKETS, f"{arrived} of {PACKETS} packets arrived"
            return took / PACKETS

        yield Subjects(lambda: timed(RULES), lambda: timed(0))


class Burst:
    """The same small datagram many times in one call."""

    def __init__(self, sender: socket.socket) -> None:
        self._payload = ctypes.create_string_buffer(b"policy")
        self._vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(self._payload), 6))
        # struct mmsghdr: name, its length, iov, how many, control, its length, flags, bytes sent
        one = struct.pack("PI4xPNPNi4xI4x", 0, 0, ctypes.addressof(self._vector), 1, 0, 0, 0, 0)
        self._messages = ctypes.create_string_buffer(one * _AT_ONCE, len(one) * _AT_ONCE)
        self._send = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._sender = sender

    def send(self) -> None:
        """Send them all; OSError if the kernel took fewer."""
        if self._send(self._sender.fileno(), self._messages, _AT_ONCE, 0) != _AT_ONCE:
            raise OSError(ctypes.get_errno(), "sendmmsg")


def _place(pod: str) -> str:
    return f"muslin-bench-{os.getpid()}-{pod}"


@contextmanager
def _pod(name: str, address: str) -> Iterator[None]:
    place, interface = _place(name), workload_interface("shop", name)
    netns.create(place)
    try:
        _run("ip", f"link add {interface} type veth peer name eth0 netns {place}")
        _run("ip", f"link set {interface} up")
        for line in (f"addr add {address} dev eth0", "link set eth0 up", "route add default dev eth0"):
            _run("ip", f"-n {place} {line}")
        yield
    finally:
        netns.delete(place)


@contextmanager
def _socket(place: str) -> Iterator[socket.socket]:
    with netns.inside(place):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with opened:
        yield opened


@contextmanager
def _programmed() -> Iterator[Any]:
    """A function that makes this namespace's kernel what felix desires of a snapshot."""
    with closing(NftDriver()) as rules, closing(RouteDriver(RouteProtocol.FELIX)) as routes:
        sysctls = SysctlDriver()

        async def program(snapshot: Snapshot) -> None:
            wanted = await _desired(snapshot)
            sysctls.watch(wanted.sysctls)
            await _apply(sysctls, wanted.sysctls)
            await _apply(rules, flatten(wanted.nft))
            await _apply(routes, wanted.routes)

        yield lambda snapshot: asyncio.run(program(snapshot))


async def _desired(snapshot: Snapshot) -> Desired:
    config = Config(node="node", datastore="", run_dir=Path())
    facts = watch_facts()
    try:
        return desired(snapshot, await anext(facts), config)
    finally:
        await facts.aclose()  # type: ignore[attr-defined]


async def _apply(driver: Driver[Any, Any], wanted: Mapping[Any, Any]) -> None:
    failed = await driver.apply(diff(wanted, await driver.read()))
    assert not failed, failed


def _snapshot(rules: int) -> Snapshot:
    """The two pods, a peer elsewhere for each rule, and policies of which the last rule lets the packets through."""
    resources: list[Resource] = [Node(metadata=Metadata(name="node"), spec=NodeSpec(bgp=NodeBGPSpec()))]
    resources.append(Namespace(metadata=Metadata(name="shop")))
    resources.append(IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.0.0.0/15")))
    resources += [_endpoint(name, address, "node") for name, address in _PODS.items()]
    resources += [_endpoint(f"peer{n}", f"10.1.{n // 250}.{n % 250}", "elsewhere") for n in range(RULES)]
    for start in range(0, rules, RULES_A_POLICY):
        last = start + RULES_A_POLICY >= rules
        for name, selector, other in (("in", "app == 'db'", "web"), ("out", "app == 'web'", "db")):
            written = [_rule(name, f"peer{n}", 1000 + n) for n in range(start, start + RULES_A_POLICY - last)]
            written += [_rule(name, other, PORT)] if last else []
            spec = GlobalNetworkPolicySpec(
                order=float(start),
                selector=selector,
                ingress=written if name == "in" else None,
                egress=written if name == "out" else None,
            )
            resources.append(GlobalNetworkPolicy(metadata=Metadata(name=f"{name}-{start}"), spec=spec))
    return Snapshot().apply(1, [(each.key, each) for each in resources])


def _endpoint(name: str, address: str, node: str) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=node,
        pod=name,
        endpoint="eth0",
        ip_networks=[f"{address}/32"],
        profiles=["kns.shop"],
        interface_name=workload_interface("shop", name),
    )
    return WorkloadEndpoint(metadata=Metadata(name=name, namespace="shop", labels={"app": name}), spec=spec)


def _rule(direction: str, peer: str, port: int) -> Rule:
    whom, where = EntityRule(selector=f"app == '{peer}'"), EntityRule(ports=[port])
    if direction == "in":
        return Rule(action=Action.ALLOW, protocol="UDP", source=whom, destination=where)
    return Rule(action=Action.ALLOW, protocol="UDP", destination=EntityRule(selector=whom.selector, ports=where.ports))


def _received() -> int:
    """Datagrams that have reached the receiving pod's socket, read or (mostly) thrown away there."""
    with netns.inside(_place("db")):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, counts = (line.split() for line in lines if line.startswith("Udp:"))
    found = dict(zip(names, counts, strict=True))
    return int(found["InDatagrams"]) + int(found["InErrors"])


def _await_neighbours(burst: Burst) -> None:
    """Send until a burst arrives whole: addresses are resolved."""
    for _ in range(1000):
        before = _received()
        burst.send()
        if _received() - before == _AT_ONCE:
            return
        time.sleep(0.01)
    raise TimeoutError("the pods' packets do not arrive")


def _run(program: str, line: str) -> None:
    argv: Sequence[str] = [program, line] if program == "nft" else [program, *line.split()]
    subprocess.run(argv, check=True)
