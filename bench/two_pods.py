"""A node in a network namespace of its own: two pods wired to it, felix's own rules and routes in its kernel."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.many_policies import NAMESPACE, NODE, PODS
from core.names import workload_interface
from core.reconcile import Driver, diff
from core.routing import RouteProtocol
from core.snapshot import Snapshot
from felix.desired import desired
from felix.model import Config, Desired
from linux import netns
from linux.links import watch_facts
from linux.nft import NftDriver
from linux.nft_parts import Flattener
from linux.routes import RouteDriver
from linux.sysctl import SysctlDriver

_ASK_AGAIN: Final = 20
"""Milliseconds until a neighbour is asked again: what is sent while a link comes up is lost, and a second is long."""


@dataclass(frozen=True, slots=True)
class TwoPods:
    """A node and its pods; `name` tells it from the run's other nodes."""

    name: str

    @property
    def place(self) -> str:
        """The node's namespace."""
        return f"muslin-bench-{os.getpid()}-{self.name}"

    def pod(self, pod: str) -> str:
        """A pod's namespace."""
        return f"{self.place}-{pod}"

    def socket(self, pod: str, kind: socket.SocketKind) -> socket.socket:
        """An IPv4 socket of that kind in a pod."""
        return netns.open_socket(self.pod(pod), socket.AF_INET, kind)

    def arrived(self, pod: str) -> int:
        """UDP datagrams that have reached a pod, whether a socket took them or not."""
        return self.counted(pod, "Udp", "InDatagrams", "InErrors", "NoPorts")

    def counted(self, pod: str, protocol: str, *names: str) -> int:
        """The sum of a pod's counters of those names, of /proc/net/snmp."""
        with netns.inside(self.pod(pod)):
            lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        heads, counts = (line.split() for line in lines if line.startswith(f"{protocol}:"))
        found = dict(zip(heads, counts, strict=True))
        return sum(int(found[each]) for each in names)

    def load(self, rules: str) -> None:
        """Give the node's kernel a file of nft's."""
        argv = netns.command(self.place, "nft", "-f", "-")
        subprocess.run(argv, input=rules, text=True, check=True)

    def program(self, snapshot: Snapshot) -> None:
        """Make the node's kernel what felix desires of a snapshot."""
        with netns.inside(self.place):
            asyncio.run(_programmed(snapshot))


@contextmanager
def two_pods(name: str) -> Iterator[TwoPods]:
    """The node, until the end of the block. Its kernel forwards nothing before `program`."""
    node = TwoPods(name)
    with ExitStack() as stack:
        for place in (node.place, *map(node.pod, PODS)):
            netns.create(place)
            stack.callback(netns.delete, place)
        for pod, address in PODS.items():
            interface = workload_interface(NAMESPACE, pod)
            _ip(node.place, f"link add {interface} type veth peer name eth0 netns {node.pod(pod)}")
            _ip(node.place, f"link set {interface} up")
            for line in (f"addr add {address} dev eth0", "link set eth0 up", "route add default dev eth0"):
                _ip(node.pod(pod), line)
            for place, device in ((node.place, interface), (node.pod(pod), "eth0")):
                _ip(place, f"ntable change name arp_cache dev {device} retrans {_ASK_AGAIN}")
        yield node


def _ip(place: str, line: str) -> None:
    subprocess.run(["ip", "-n", place, *line.split()], check=True)


async def _programmed(snapshot: Snapshot) -> None:
    wanted = await _desired(snapshot)
    sysctls = SysctlDriver()
    sysctls.watch(wanted.sysctls)
    await _apply(sysctls, wanted.sysctls)
    with closing(NftDriver()) as rules, closing(RouteDriver(RouteProtocol.FELIX)) as routes:
        await _apply(rules, Flattener().flatten(wanted.nft))
        await _apply(routes, wanted.routes)


async def _desired(snapshot: Snapshot) -> Desired:
    config = Config(node=NODE, datastore="", run_dir=Path())
    facts = watch_facts()
    try:
        return desired(snapshot, await anext(facts), config)
    finally:
        await facts.aclose()  # type: ignore[attr-defined]


async def _apply(driver: Driver[Any, Any], wanted: Mapping[Any, Any]) -> None:
    failed = await driver.apply(diff(wanted, await driver.read()))
    assert not failed, failed
