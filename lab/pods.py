"""Pods, as the CNI plugin makes them: an address from IPAM, a namespace, a veth to the node, and servers to answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from core import names
from core.addr import Address, Family, host_prefix
from datastore import ipam
from datastore.api import Store
from lab import ip, processes, underlay
from lab.manifests import GATEWAYS, HOST_MAC, handle
from lab.processes import Process
from lab.routers import await_ready
from lab.topology import Pod, Topology
from lab.wiring import UPLINK
from linux import netns, sysctl

MTU: Final = 1480
"""What IP-in-IP leaves of an Ethernet packet. Pods have it in every mode, so that a pool can change its mode."""


async def addresses(store: Store, pod: Pod, families: Iterable[Family]) -> tuple[Address, ...]:
    """The pod's addresses, from a block of its node."""
    requests = [
        ipam.Request(node=pod.node, handle=handle(pod), family=family, namespace=pod.namespace) for family in families
    ]
    return tuple([await ipam.allocate(store, request) for request in requests])


def create(lab: str, pods: Sequence[Pod], found: Mapping[str, Sequence[Address]]) -> None:
    """Make the pods' namespaces and wire them to their nodes. No route on the host: that is felix's to do.

    Neither end of a pod's link looks for duplicates of its address: the link has no other, and while the host's end
    looks (up to two seconds) the pod has no IPv6 gateway.
    """
    for pod in pods:
        netns.create(underlay.namespace(lab, pod.name))
    ip.batch(
        f"link add name {UPLINK} netns {underlay.namespace(lab, pod.name)} mtu {MTU} type veth"
        f" peer name {_host_end(pod)} netns {underlay.namespace(lab, pod.node)} mtu {MTU} address {HOST_MAC}"
        for pod in pods
    )
    for pod in pods:
        for host, device in ((pod.name, UPLINK), (pod.node, _host_end(pod))):
            with netns.inside(underlay.namespace(lab, host)):
                sysctl.write(f"net/ipv6/conf/{device}/accept_dad", "0")
        ip.batch(_inside(found[pod.name]), underlay.namespace(lab, pod.name))
    for node in dict.fromkeys(pod.node for pod in pods):
        ends = (f"link set {_host_end(pod)} up" for pod in pods if pod.node == node)
        ip.batch(ends, underlay.namespace(lab, node))


def _host_end(pod: Pod) -> str:
    return names.workload_interface(pod.namespace, pod.short)


def _inside(own: Iterable[Address]) -> Iterator[str]:
    """The `ip` lines of a pod's own namespace."""
    own = tuple(own)
    for address in own:
        yield f"addr add {host_prefix(address)} dev {UPLINK}{' nodad' if address.version == 6 else ''}"
    yield f"link set {UPLINK} up"
    for address in own:
        gateway = GATEWAYS[Family(address.version)]
        if address.version == 4:
            yield f"route add {gateway} dev {UPLINK} scope link"
        yield f"route add default via {gateway} dev {UPLINK}"


def serve(lab: str, topology: Topology, directory: Path) -> Process:
    """Start the one process that answers for all pods and external hosts; returns when all its ports are open."""
    served = [(pod.name, pod.numbers) for pod in topology.pods]
    served += [(each.name, each.ports) for each in topology.external]
    services = [{"name": name, "namespace": underlay.namespace(lab, name), "ports": ports} for name, ports in served]
    listing, ready = directory / "probe.json", directory / "probe.ready"
    listing.write_text(json.dumps(services))
    argv = [sys.executable, "-m", "lab.probe", str(listing), str(ready)]
    process = processes.start(argv, log=directory / "probe.log", cwd=Path(__file__).parents[1])
    await_ready("the probe server", ready.exists, process, directory / "probe.log")
    return process
