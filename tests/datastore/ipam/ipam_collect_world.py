"""A cluster as garbage collection sees it, written down in a few words; without a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network

from core.addr import Address
from core.manifest import encode
from core.names import Key, workload_endpoint_name, workload_interface
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPPool,
    Metadata,
    Node,
    Resource,
    WorkloadEndpoint,
)
from core.resources.ipam import AffinitySpec, AffinityState, BlockSpec, HandleSpec, IPAMConfigurationSpec
from core.resources.network import IPPoolSpec, WorkloadEndpointSpec
from datastore.api import ABSENT, Entry, Listing
from datastore.ipam.block import block_name
from datastore.ipam.books import handle_name
from datastore.ipam.collecting import idle, unused
from datastore.ipam.collecting.collect import Candidate, Collection, Live, Scene, observe
from datastore.ipam.listing.holders import Holdings
from datastore.ipam.model import Remove, Step, Write

B0, B1, B2 = "10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"
NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
GRACE = 10.0


def pool(name: str = "pods", cidr: str = "10.0.0.0/16", *, ends: bool = False, **spec: object) -> IPPool:
    deleted = "2026-01-31T11:00:00Z" if ends else None
    finalizers = [IPPool.FINALIZER] if ends else []
    return IPPool(
        metadata=Metadata(name=name, deletion_timestamp=deleted, finalizers=finalizers),
        spec=IPPoolSpec(cidr=cidr, **spec),  # type: ignore[arg-type]
    )


def node(name: str, **labels: str) -> Node:
    return Node(metadata=Metadata(name=name, labels=labels))


def block(cidr: str, owner: str = "n1", *, borrowers: dict[str, str] | None = None, **held: str) -> IPAMBlock:
    """`held`: the last part of an address, as `_7`, and its handle."""
    network = ip_network(cidr)
    first = network.network_address
    allocations = {str(first + int(part.removeprefix("_"))): text for part, text in held.items()}
    return IPAMBlock(
        metadata=Metadata(name=block_name(network)),
        spec=BlockSpec(
            cidr=cidr, affinity=f"host:{owner}" if owner else "", allocations=allocations, borrowers=borrowers or {}
        ),
    )


def affinity(cidr: str, owner: str = "n1", state: AffinityState = AffinityState.CONFIRMED) -> BlockAffinity:
    return BlockAffinity(
        metadata=Metadata(name=f"{owner}-{block_name(ip_network(cidr))}"),
        spec=AffinitySpec(state=state, node=owner, cidr=cidr),
    )


def handle(
    container: str, address: str, cidr: str, *, pod: str = "web", owner: str = "n1", network: str = "net"
) -> IPAMHandle:
    text = f"{network}.{container}"
    return IPAMHandle(
        metadata=Metadata(name=handle_name(text)),
        spec=HandleSpec(
            handle_id=text,
            addresses={address: cidr},
            node=owner,
            namespace="shop",
            pod=pod,
            container=container,
            interface=workload_interface("shop", pod),
            since="2026-01-31T10:00:00Z",
        ),
    )


def bare_handle(text: str, address: str, cidr: str, owner: str = "n1") -> IPAMHandle:
    """A lab's, a tunnel's, somebody's."""
    return IPAMHandle(
        metadata=Metadata(name=handle_name(text)),
        spec=HandleSpec(handle_id=text, addresses={address: cidr}, node=owner),
    )


def endpoint(
    container: str, address: str, *, pod: str = "web", owner: str = "n1", orchestrator: str = "k8s"
) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        metadata=Metadata(name=workload_endpoint_name(owner, pod), namespace="shop"),
        spec=WorkloadEndpointSpec(
            orchestrator=orchestrator,
            node=owner,
            container_id=container,
            pod=pod,
            endpoint="eth0",
            ip_networks=[f"{address}/32" if "." in address else f"{address}/128"],
            interface_name=workload_interface("shop", pod),
        ),
    )


def cooldown(seconds: int) -> IPAMConfiguration:
    return IPAMConfiguration(metadata=Metadata(name="default"), spec=IPAMConfigurationSpec(ip_cooldown_seconds=seconds))


@dataclass
class World:
    """What is there. Each object's revision is the one at which it was put."""

    node: str = "n1"
    interfaces: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    addresses: set[Address] = field(default_factory=set)
    entries: dict[Key, Entry] = field(default_factory=dict)
    revision: int = 1
    now: datetime = NOW
    collection: Collection = field(default_factory=Collection)

    def put(self, *resources: Resource) -> World:
        for resource in resources:
            self.raw(resource.key, encode(resource))
        return self

    def raw(self, key: Key, value: bytes) -> None:
        self.revision += 1
        self.entries[key] = Entry(key, value, self.revision)

    def drop(self, *resources: Resource) -> None:
        for resource in resources:
            self.revision += 1
            del self.entries[resource.key]

    def spoil(self, resource: Resource) -> None:
        """The object cannot be read any more; at the same revision."""
        before = self.entries[resource.key]
        self.entries[resource.key] = Entry(before.key, b'{"spec": 7, ' + before.value, before.revision)

    def scene(self, order: Sequence[Key] | None = None) -> Scene:
        keys = sorted(self.entries, key=lambda key: key.path) if order is None else order
        listing = Listing(self.revision, tuple(self.entries[key] for key in keys))
        live = Live(
            interfaces=frozenset(self.interfaces),
            addresses=frozenset(self.addresses),
            busy=frozenset(self.busy),
        )
        return Scene(holdings=Holdings(listing), live=live, node=self.node, now=self.now)

    def candidates(self, order: Sequence[Key] | None = None) -> dict[str, Candidate]:
        scene = self.scene(order)
        return {each.subject: each for each in (*unused.candidates(scene), *idle.candidates(scene))}

    def scan(self, at: float) -> set[str]:
        """What is due at a scan at that time."""
        self.collection, due = observe(self.collection, self.candidates().values(), at, GRACE)
        return {each.subject for each in due}

    def due(self, graces: int = 1) -> set[str]:
        """What is due after so many graces in which nothing happens."""
        self.collection = Collection()
        first = self.scan(0.0)
        return first | self.scan(GRACE * graces)


def world(*resources: Resource, node: str = "n1", interfaces: Iterable[str] = ()) -> World:
    return World(node=node, interfaces=set(interfaces)).put(*resources)


def writes(step: Step) -> dict[str, Resource]:
    return {str(each.resource.key): each.resource for each in step.changes if isinstance(each, Write)}


def removals(step: Step) -> dict[Key, int]:
    return {each.key: each.if_revision for each in step.changes if isinstance(each, Remove)}


def carried_out(seen: World, step: Step) -> bool:
    """As a store does: all, if each object is at its revision, or nothing."""
    for change in step.changes:
        key = change.resource.key if isinstance(change, Write) else change.key
        found = seen.entries.get(key)
        if (found.revision if found else ABSENT) != change.if_revision:
            return False
    seen.revision += 1
    for change in step.changes:
        if isinstance(change, Write):
            seen.entries[change.resource.key] = Entry(change.resource.key, encode(change.resource), seen.revision)
        else:
            del seen.entries[change.key]
    return True
