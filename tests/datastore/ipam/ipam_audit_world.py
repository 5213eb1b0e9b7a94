"""States of IPAM, built by hand for its audits: a sound one, and objects to put into it or out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

from msgspec.structs import replace

from core.manifest import encode
from core.names import Key, workload_endpoint_name
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMHandle,
    IPPool,
    IPReservation,
    Metadata,
    Node,
    Resource,
    WorkloadEndpoint,
)
from core.resources.ipam import AffinitySpec, AffinityState, BlockSpec, HandleSpec, ReservationSpec
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec, WorkloadEndpointSpec
from datastore.api import Delete, Operation, Put
from datastore.ipam.block import block_name
from datastore.ipam.books import handle_name
from datastore.ipam.listing.holders import KINDS, Holdings
from datastore.sqlite import SqliteStore

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
LONG_AGO = "2026-01-30T12:00:00Z"
JUST_NOW = "2026-01-31T11:59:00Z"

A, B = "10.244.0.0/26", "10.244.0.64/26"
V6 = "fd00:10::/122"


def pool(name: str = "pods", cidr: str = "10.244.0.0/16", **spec: object) -> IPPool:
    return IPPool(metadata=Metadata(name=name, uid=f"uid-{name}"), spec=IPPoolSpec(cidr=cidr, **spec))


def node(name: str, tunnel: str = "") -> Node:
    bgp = NodeBGPSpec(ipv4_address=f"10.1.0.{ord(name[0])}/24", ipv4_ipip_tunnel_addr=tunnel)
    return Node(metadata=Metadata(name=name), spec=NodeSpec(bgp=bgp))


def block(cidr: str, owner: str, allocations: Mapping[str, str] = {}, **spec: object) -> IPAMBlock:
    affinity = f"host:{owner}" if owner else ""
    made = BlockSpec(cidr=cidr, affinity=affinity, allocations=allocations, **spec)
    return IPAMBlock(metadata=Metadata(name=block_name(ip_network(cidr))), spec=made)


def claim(owner: str, cidr: str, state: AffinityState = AffinityState.CONFIRMED) -> BlockAffinity:
    metadata = Metadata(name=f"{owner}-{block_name(ip_network(cidr))}")
    return BlockAffinity(metadata=metadata, spec=AffinitySpec(state=state, node=owner, cidr=cidr))


def handle(text: str, on: str, addresses: Mapping[str, str], since: str = LONG_AGO) -> IPAMHandle:
    pod, container = ("", "") if "tunnel" in text else (f"pod-{text[-2:]}", text.partition(".")[2])
    spec = HandleSpec(
        handle_id=text, addresses=addresses, node=on, namespace="shop", pod=pod, container=container, since=since
    )
    return IPAMHandle(metadata=Metadata(name=handle_name(text)), spec=spec)


def endpoint(pod: str, on: str, container: str, *addresses: str) -> WorkloadEndpoint:
    networks = [f"{address}/{32 if '.' in address else 128}" for address in addresses]
    spec = WorkloadEndpointSpec(
        node=on, pod=pod, container_id=container, ip_networks=networks, orchestrator="k8s", endpoint="eth0"
    )
    return WorkloadEndpoint(
        metadata=Metadata(name=workload_endpoint_name(on, pod), namespace="shop"),
        spec=spec,
    )


def reservation(*cidrs: str) -> IPReservation:
    return IPReservation(metadata=Metadata(name="kept"), spec=ReservationSpec(reserved_cidrs=list(cidrs)))


TUNNEL = "ipip-tunnel-addr-a"
HELD = {"10.244.0.1": TUNNEL, "10.244.0.2": "k8s.c2", "10.244.0.3": "k8s.c3"}
BORROWED = {"10.244.0.3": "b"}


def sound() -> dict[Key, Resource]:
    """Two nodes with a block each, a tunnel's address, a pod of two families, and one that has borrowed its address."""
    objects: list[Resource] = [
        pool(),
        pool("six", "fd00:10::/64"),
        node("a", tunnel="10.244.0.1"),
        node("b"),
        block(
            A,
            "a",
            {"10.244.0.1": TUNNEL, "10.244.0.2": "k8s.c2", "10.244.0.3": "k8s.c3"},
            borrowers={"10.244.0.3": "b"},
        ),
        block(B, "b", freed={"10.244.0.70": LONG_AGO}),
        block(V6, "a", {"fd00:10::2": "k8s.c2"}),
        claim("a", A),
        claim("b", B),
        claim("a", V6),
        handle(TUNNEL, "a", {"10.244.0.1": A}),
        handle("k8s.c2", "a", {"10.244.0.2": A, "fd00:10::2": V6}),
        handle("k8s.c3", "b", {"10.244.0.3": A}),
        endpoint("pod-c2", "a", "c2", "10.244.0.2", "fd00:10::2"),
        endpoint("pod-c3", "b", "c3", "10.244.0.3"),
    ]
    return {each.key: each for each in objects}


def changed(*put: Resource, gone: Iterable[Resource | Key] = ()) -> dict[Key, Resource]:
    """The sound state with some objects put in and some taken out."""
    without = {each if isinstance(each, Key) else each.key for each in gone}
    return {key: each for key, each in (sound() | {each.key: each for each in put}).items() if key not in without}


def renamed(resource: IPAMBlock, name: str) -> IPAMBlock:
    return replace(resource, metadata=replace(resource.metadata, name=name))


async def stored(folder: Path, state: Mapping[Key, Resource], raw: Mapping[Key, bytes] = {}) -> SqliteStore:
    """A store that holds `state`, unjudged; `raw` is put in as it stands."""
    store = await SqliteStore.open(folder / "datastore.db")
    operations: list[Operation] = [Put(key, encode(each)) for key, each in state.items() if key not in raw]
    await store.txn([*operations, *(Put(key, value) for key, value in raw.items())])
    return store


async def holdings(store: SqliteStore) -> Holdings:
    """What the store holds now."""
    return Holdings(await store.list(KINDS))


async def delete(store: SqliteStore, *gone: Resource) -> None:
    """Take objects out."""
    await store.txn([Delete(each.key) for each in gone])


def ended(given: IPPool) -> IPPool:
    """A pool that has been deleted and waits for its last address."""
    metadata = replace(given.metadata, deletion_timestamp=LONG_AGO, finalizers=[IPPool.FINALIZER])
    return replace(given, metadata=metadata)
