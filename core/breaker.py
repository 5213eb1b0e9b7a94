"""Too much gone at once: hold it until an operator has looked.

A datastore restored from the wrong backup, emptied, or struck by a bug shows as objects that vanish together. Rules
and routes would follow: policies that vanish open what they closed. So the breaker stands before every decision, where
objects can be counted, and not at the kernel, where one policy is a thousand elements:

    snapshot ──> hold(accepted, snapshot) ──> what the agents decide on, and the next `accepted`
                   └── a group lost too much: what is gone stays as it was accepted, the rest goes ahead

Too much, in one step, is one of three things:

    many       more than 50 objects of a group, and more than half of it
    all        every pool or every tier, when they were three or more; every other Node, when they were two or more:
               few objects, on which everything rests. Who deletes their only pool, or all their policies, is let
    emptied    every Node or every pool, and all of another group with it, however few: no one's daily work

A group that is held stays so, also across a restart (`accepted` is what the disk keeps), until no more than half of it
is missing or the own Node gets a new value of the annotation RELEASE. That counts only while something is held: an old
backup brings back an old value, and is not an operator who has looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from core.names import Key, Kind
from core.resources import (
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    ClusterNetworkPolicy,
    EndpointSlice,
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    HostEndpoint,
    IPAMBlock,
    IPPool,
    KubernetesNetworkPolicy,
    Namespace,
    NetworkPolicy,
    NetworkSet,
    Node,
    Profile,
    Resource,
    Secret,
    Service,
    ServiceAccount,
    Tier,
    WorkloadEndpoint,
)
from core.snapshot import Snapshot, Table

RELEASE: Final = "muslin.io/release-breaker"
"""The Node annotation by which an operator lets held removals go: any new value does."""

FLOOR: Final = 50
"""As many objects of a group may vanish at once, whatever their share."""

NODES: Final = "nodes"
POOLS: Final = "pools"

GROUPS: Final[Mapping[str, tuple[type[Resource], ...]]] = MappingProxyType(
    {
        "policies": (
            NetworkPolicy,
            GlobalNetworkPolicy,
            KubernetesNetworkPolicy,
            AdminNetworkPolicy,
            BaselineAdminNetworkPolicy,
            ClusterNetworkPolicy,
        ),
        "tiers": (Tier,),
        "profiles": (Profile, ServiceAccount),
        "network sets": (NetworkSet, GlobalNetworkSet),
        "endpoint slices": (EndpointSlice,),
        "services": (Service,),
        "namespaces": (Namespace,),
        "workload endpoints": (WorkloadEndpoint,),
        "host endpoints": (HostEndpoint,),
        "blocks": (IPAMBlock,),
        POOLS: (IPPool,),
        NODES: (Node,),
        "BGP settings": (BGPConfiguration, BGPFilter, BGPPeer, Secret),  # one without another is a session held down
    }
)
"""What is counted together."""

ALL: Final[Mapping[str, int]] = MappingProxyType({"tiers": 3, POOLS: 3, NODES: 2})
"""From how many on a group may not vanish whole; of nodes the others are counted."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """What became of a group: keys that are gone, and those that are left."""

    gone: AbstractSet[Key]
    left: AbstractSet[Key]

    @property
    def most(self) -> bool:
        return len(self.gone) > len(self.left)

    @property
    def whole(self) -> bool:
        return bool(self.gone) and not self.left


def hold(accepted: Snapshot, snapshot: Snapshot, node: str) -> Snapshot:
    """`snapshot`, with what too large a loss took from `accepted` put back and said in its `held`; for node `node`.

    What cannot be read any more counts as gone.
    """
    if accepted.held and _released(accepted, snapshot, node):
        return snapshot
    losses = {name: _loss(accepted, snapshot, classes) for name, classes in GROUPS.items()}
    own = Key(Node.KIND, "", node)
    tripped = {name for name, loss in losses.items() if _many(loss) or _all(name, loss, own)}
    tripped |= _emptied(losses) | {name for name in accepted.held if losses[name].most}
    if not tripped:
        return snapshot
    held = {
        name: f"{len(loss.gone)} of {len(loss.gone | loss.left)} {name} vanished at once"
        for name, loss in losses.items()
        if name in tripped
    }
    return replace(
        snapshot,
        held=MappingProxyType(held),
        tables=MappingProxyType({**snapshot.tables, **dict(_together(accepted, snapshot, tripped))}),
    )


def problems(held: Iterable[str]) -> tuple[str, ...]:
    """What is held, as an agent's status says it."""
    how = f"held until the Node gets a new value of the annotation {RELEASE} (`muslin node release`)"
    return tuple(f"{what}; {how}" for what in held)


def _released(accepted: Snapshot, snapshot: Snapshot, node: str) -> bool:
    before, now = (
        found.metadata.annotations.get(RELEASE, "") if (found := each.get(Node, node)) else ""
        for each in (accepted, snapshot)
    )
    return now not in ("", before)


def _loss(accepted: Snapshot, snapshot: Snapshot, classes: tuple[type[Resource], ...]) -> _Loss:
    if all(accepted.tables.get(cls.KIND) is snapshot.tables.get(cls.KIND) for cls in classes):
        return _Loss(frozenset(), frozenset())  # the very same tables: nothing went, and there may be 100,000 to count
    gone: set[Key] = set()
    left: set[Key] = set()
    for cls in classes:
        before = _keys(accepted, cls)
        gone |= before - _keys(snapshot, cls)
        left |= before - gone
    return _Loss(gone, left)


def _keys(snapshot: Snapshot, cls: type[Resource]) -> set[Key]:
    table: dict[Key, Resource] = MappingProxyType(snapshot.of(cls)) | {}  # a copy knows its hashes: it is made often
    return set(table)


def _many(loss: _Loss) -> bool:
    return len(loss.gone) > FLOOR and loss.most


def _all(name: str, loss: _Loss, own: Key) -> bool:
    return name in ALL and len(loss.gone) >= ALL[name] and not loss.left - {own}


def _emptied(losses: Mapping[str, _Loss]) -> set[str]:
    whole = {name for name, loss in losses.items() if loss.whole}
    return whole if whole & {NODES, POOLS} and len(whole) > 1 else set()


def _together(accepted: Snapshot, snapshot: Snapshot, groups: set[str]) -> Iterator[tuple[Kind, Table]]:
    for cls in (cls for name in groups for cls in GROUPS[name]):
        yield cls.KIND, MappingProxyType({**accepted.of(cls), **snapshot.of(cls)})
