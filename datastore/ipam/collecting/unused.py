"""Which holders of addresses nobody uses any more: containers of this node, and what nodes that are gone have left.

handle NETWORK.CONTAINER   of this node    no endpoint, no interface, nothing under way ──> handle, addresses
endpoint of a container    of this node    its interface is not in the kernel ──> endpoint, handle, addresses
handle NETWORK.CONTAINER   of a node gone  no endpoint ──> handle, addresses
KIND-tunnel-addr-NODE                      no such Node ──> handle, addresses
any other                                  in use
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from core.names import Key
from core.resources import IPAMBlock, WorkloadEndpoint
from core.resources.ipam import HandleSpec
from datastore.api import ABSENT
from datastore.ipam.block import give_back
from datastore.ipam.collecting.collect import Candidate, Scene, Subject, Witness
from datastore.ipam.giving.past import record
from datastore.ipam.listing.holders import Held, Holder
from datastore.ipam.model import Change, Remove, Step, Write

ORCHESTRATOR = "k8s"
"""Of endpoints that the CNI plugin makes."""


def candidates(scene: Scene) -> Iterator[Candidate]:
    """Every holder that nobody seems to use, and every endpoint whose wire is gone."""
    if not scene.elsewhere:
        yield from _containers_here(scene)
    yield from _left_behind(scene)


def _containers_here(scene: Scene) -> Iterator[Candidate]:
    holdings = scene.holdings
    containers = {each.container for each in holdings.holders.values() if each.container and each.node == scene.node}
    for held in holdings.of(WorkloadEndpoint).values():
        if wire_is_gone(scene, held.resource):
            containers.add(held.resource.spec.container_id)
    for container in sorted(containers):
        holders = holdings.of_container.get(container, ())
        endpoints = endpoints_of(scene, container, holders)
        if not in_use(scene, container, holders, endpoints):
            yield Candidate(
                subject=Subject(f"container {container}"),
                why="its interface is gone" if endpoints else "no endpoint and no interface is its",
                witness=_witness(holders, endpoints),
                patience=1,
                step=Step(changes=tuple(freeing(holders, endpoints, scene.now, "collected"))),
            )


def _left_behind(scene: Scene) -> Iterator[Candidate]:
    """What nodes that are gone held."""
    for text, holder in sorted(scene.holdings.holders.items()):
        node = holder.owner_of_tunnel or (holder.container and holder.node)
        if not node or node in scene.holdings.nodes or node == scene.node:
            continue
        rank = scene.rank(node)
        if rank is None or scene.holdings.users(holder) or scene.holdings.doubtful(holder):
            continue
        yield Candidate(
            subject=Subject(f"handle {text}"),
            why=f"its node {node} is gone",
            witness=_witness([holder], ()),
            patience=1 + rank,
            step=Step(changes=tuple(freeing([holder], (), scene.now, "collected: its node is gone"))),
        )


def endpoints_of(scene: Scene, container: str, holders: Iterable[Holder]) -> tuple[Held[WorkloadEndpoint], ...]:
    """Every endpoint, of any node, that speaks for the container or for one of its holders' addresses."""
    found = {held.resource.key: held for held in scene.holdings.by_container.get(container, ())}
    for holder in holders:
        found.update({held.resource.key: held for held in scene.holdings.users(holder)})
    return tuple(held for _, held in sorted(found.items()))


def wire_is_gone(scene: Scene, endpoint: WorkloadEndpoint) -> bool:
    """Whether it is of a container of this node, and its interface is not in the kernel."""
    spec = endpoint.spec
    ours = spec.node == scene.node and spec.orchestrator == ORCHESTRATOR and bool(spec.container_id)
    return ours and bool(spec.interface_name) and spec.interface_name not in scene.live.interfaces


def in_use(
    scene: Scene, container: str, holders: Iterable[Holder], endpoints: Iterable[Held[WorkloadEndpoint]]
) -> bool:
    """Whether anything speaks for a container of this node that holds what `holders` do."""
    if container in scene.live.busy:
        return True
    for held in endpoints:
        if held.resource.spec.container_id != container or not wire_is_gone(scene, held.resource):
            return True
    return any(
        holder.node != scene.node
        or scene.holdings.doubtful(holder)
        or own_interface(scene, holder) in scene.live.interfaces
        for holder in holders
    )


def own_interface(scene: Scene, holder: Holder) -> str:
    """The interface that is the holder's; "" when another container's endpoint has it: a pod's next container has the
    interface of the one before."""
    there = scene.holdings.by_interface.get((scene.node, holder.interface), ())
    taken = any(endpoint.spec.container_id not in ("", holder.container) for endpoint in there)
    return "" if taken else holder.interface


def freeing(
    holders: Iterable[Holder], endpoints: Iterable[Held[WorkloadEndpoint]], now: datetime, why: str
) -> Iterator[Change]:
    """All that `holders` have is free, and the endpoints and handles are gone; a record stays of each address."""
    blocks: dict[Key, tuple[IPAMBlock, int]] = {}
    for holder in holders:
        for address, held in holder.addresses.items():
            if held is not None:
                block, revision = blocks.get(held.resource.key, (held.resource, held.revision))
                yield Write(record(block, address, _spec(holder), why, now), ABSENT)
                blocks[block.key] = (give_back(block, address, now), revision)
        if holder.object is not None:
            yield Remove(holder.object.resource.key, holder.object.revision)
    for block, revision in blocks.values():
        yield Write(block, revision)
    for each in endpoints:
        yield Remove(each.resource.key, each.revision)


def _witness(holders: Iterable[Holder], endpoints: Iterable[Held[WorkloadEndpoint]]) -> Witness:
    """A holder without an object is told by its addresses' blocks alone, which change for others' sake."""
    handles = [(each.object.resource.key, each.object.revision) for each in holders if each.object is not None]
    return tuple(sorted([*handles, *((each.resource.key, each.revision) for each in endpoints)]))


def _spec(holder: Holder) -> HandleSpec:
    if holder.object is not None:
        return holder.object.resource.spec
    return HandleSpec(handle_id=holder.text, addresses={}, node=holder.node, container=holder.container)
