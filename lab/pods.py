"""Pods: an address from IPAM, a namespace, the CNI plugin's wire to the node, and servers to answer."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cni.conf import MTU
from cni.endpoint import own_mac
from cni.wiring import Furniture, Place, attach, furnish, routes_of
from core import names
from core.addr import Address, Family
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Owner, Request
from lab import processes, underlay
from lab.manifests import handle
from lab.processes import Process
from lab.routers import await_ready
from lab.topology import Pod, Topology
from lab.wiring import UPLINK
from linux import netns


async def addresses(ledger: Ledger, pods: Sequence[Pod], families: Iterable[Family]) -> dict[str, tuple[Address, ...]]:
    """The pods' addresses by the pods' names, each from a block of its node; many in one transaction."""
    wanted = tuple(families)
    async with asyncio.TaskGroup() as group:
        asked = {pod.name: group.create_task(ledger.assign(_request(pod, wanted))) for pod in pods}
    return {name: task.result()[0].addresses for name, task in asked.items()}


def _request(pod: Pod, families: tuple[Family, ...]) -> Request:
    interface = names.workload_interface(pod.namespace, pod.short)
    owner = Owner(node=pod.node, namespace=pod.namespace, pod=pod.short, interface=interface)
    return Request(handle=handle(pod), owner=owner, families=families)


def create(lab: str, pods: Sequence[Pod], found: Mapping[str, Sequence[Address]]) -> None:
    """Make the pods' namespaces, and wire them to their nodes as the CNI plugin does; the rest is felix's to do."""
    for pod in pods:
        inside = underlay.namespace(lab, pod.name)
        netns.create(inside)
        host = names.workload_interface(pod.namespace, pod.short)
        join(underlay.namespace(lab, pod.node), inside, host, found[pod.name], own_mac(handle(pod)))


def join(node: str, pod: str, host: str, addresses: Sequence[Address], mac: str, mtu: int = MTU) -> None:
    """The CNI plugin's wire from the namespace `node`, where its end is called `host`, to the namespace `pod`."""
    with open(netns.path(pod)) as there, netns.inside(node):
        place = Place(host=host, inside=UPLINK, path=netns.path(pod), netns=there.fileno())
        furniture = Furniture(addresses=tuple(addresses), routes=routes_of(addresses, None))
        furnish(place, attach(place, mtu, mac), furniture, mac)


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
