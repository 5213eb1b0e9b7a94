"""Nodes whose addresses leak: a real store, a real network namespace, and pods made of a ledger's call and a veth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cni.collector import Collector
from cni.model import Config
from core.manifest import decode
from core.names import Kind, workload_endpoint_name, workload_interface
from core.resources import (
    BY_KIND,
    BlockAffinity,
    IPAMBlock,
    IPAMHandle,
    IPPool,
    Metadata,
    Namespace,
    Node,
    R,
    Resource,
    WorkloadEndpoint,
)
from core.resources.network import IPPoolSpec, WorkloadEndpointSpec
from datastore import objects
from datastore.api import Changes, Delete, Store, Synced
from datastore.ipam.block import changed
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Grant, Owner, Request
from linux import interfaces, netns
from linux.interfaces import End
from linux.netlink import Netlink

HOUSE: Final = Path(__file__).parents[2]
NETWORK: Final = "net"

KILLED: Final = """
import asyncio, sys, time
from datastore.client import GrpcStore
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Owner, Request

async def main():
    owner = Owner(node="n1", namespace="shop", pod="web", container="c1", interface="mus00000000000")
    await Ledger(GrpcStore(sys.argv[1])).assign(Request(handle="net.c1", owner=owner))
    print("assigned", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def start(*nodes: str) -> list[Resource]:
    """What the cluster begins with."""
    return [
        *(Node(metadata=Metadata(name=name)) for name in nodes),
        Namespace(metadata=Metadata(name="shop")),
        IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.61.0.0/24", block_size=28)),
        IPPool(metadata=Metadata(name="six"), spec=IPPoolSpec(cidr="fd61::/112", block_size=124)),
    ]


@dataclass
class GcNode:
    """One node, with its network namespace."""

    store: Store
    name: str
    namespace: str
    busy: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.store)

    def collector(self, grace_s: float = 0.0) -> Collector:
        """An agent's that has just started. Without grace, two looks are two observations."""
        config = Config(node=self.name, datastore="", run_dir=Path("/run"), leak_grace_s=grace_s)
        return Collector(config, self.store, lambda: self.busy, namespace=self.namespace)

    async def add(self, pod: str, container: str, *, network: str = NETWORK, wire: bool = True) -> Grant:
        """What ADD leaves: addresses, endpoint and handle in one transaction, and a wire."""
        interface = workload_interface("shop", pod)
        owner = Owner(node=self.name, namespace="shop", pod=pod, container=container, interface=interface)
        grant, _ = await self.ledger.assign(
            Request(handle=f"{network}.{container}", owner=owner),
            along=lambda grant: [objects.put(self.endpoint(pod, container, grant))],
        )
        if wire:
            self.wire(interface)
        return grant

    def endpoint(self, pod: str, container: str, grant: Grant) -> WorkloadEndpoint:
        return WorkloadEndpoint(
            api_version=WorkloadEndpoint.KIND.api_version,
            kind=WorkloadEndpoint.KIND.name,
            metadata=Metadata(name=workload_endpoint_name(self.name, pod), namespace="shop"),
            spec=WorkloadEndpointSpec(
                orchestrator="k8s",
                node=self.name,
                container_id=container,
                pod=pod,
                endpoint="eth0",
                ip_networks=[f"{each}/{each.max_prefixlen}" for each in grant.addresses],
                interface_name=workload_interface("shop", pod),
            ),
        )

    def wire(self, interface: str) -> None:
        with netns.inside(self.namespace), Netlink() as netlink:
            if interfaces.find(netlink, interface) is None:
                interfaces.add_veth(netlink, End(name=interface), End(name=f"p{interface[3:]}"), 1480)

    def unwire(self, pod: str) -> None:
        with netns.inside(self.namespace), Netlink() as netlink:
            interfaces.delete_link(netlink, workload_interface("shop", pod))

    def wires(self) -> set[str]:
        with netns.inside(self.namespace), Netlink() as netlink:
            return {link.name for link in interfaces.links(netlink) if link.name.startswith("mus")}

    def wipe(self) -> None:
        """Another machine under the same name."""
        netns.delete(self.namespace)
        netns.create(self.namespace)


def assigned_and_killed(datastore: str) -> None:
    """A process took addresses for container c1 and died before it did anything with them."""
    argv = [sys.executable, "-c", KILLED, datastore]
    with subprocess.Popen(argv, cwd=HOUSE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "assigned\n"
        finally:
            process.kill()


async def every(store: Store, cls: type[R]) -> dict[str, R]:
    found: dict[str, R] = {}
    for entry in (await store.list({cls.KIND})).entries:
        resource = decode(entry.key, entry.value)
        assert isinstance(resource, cls)
        found[entry.key.name] = resource
    return found


async def held(store: Store) -> dict[str, str]:
    """Every allocation of every block; and it agrees with every handle."""
    blocks = [block.spec for block in (await every(store, IPAMBlock)).values()]
    allocations = {address: handle for block in blocks for address, handle in block.allocations.items()}
    handles = [handle.spec for handle in (await every(store, IPAMHandle)).values()]
    assert {address: each.handle_id for each in handles for address in each.addresses} == allocations
    return allocations


async def claims(store: Store) -> set[tuple[str, str]]:
    """Node and CIDR of every block with an owner; and they agree with the affinities."""
    found = {(each.spec.node, each.spec.cidr) for each in (await every(store, IPAMBlock)).values() if each.spec.node}
    assert {(each.spec.node, each.spec.cidr) for each in (await every(store, BlockAffinity)).values()} == found
    return found


async def until_gone(store: Store, kind: Kind, names: Iterable[str]) -> None:
    """Return when none of these objects is there any more, as the store tells it."""
    left, synced, there = set(names), False, set[str]()
    async with aclosing(store.watch(0, {kind})) as items:
        async for item in items:
            match item:
                case Changes():
                    for event in item.events:
                        (there.discard if event.value is None else there.add)(event.key.name)
                case Synced():
                    synced = True
                case _:
                    raise AssertionError(item)
            if synced and not left & there:
                return


async def begin(store: Store, *nodes: str) -> None:
    """A cluster without pods."""
    entries = (await store.list(BY_KIND.keys())).entries
    if entries:  # blocks in use may not be deleted
        for block in (await every(store, IPAMBlock)).values():
            await objects.write(store, changed(block, allocations={}, borrowers={}))
        await store.txn([Delete(entry.key) for entry in entries])
    await store.txn([objects.put(each) for each in start(*nodes)])


def namespace_of(name: str) -> str:
    return f"muslin-gc{os.getpid()}-{name}"
