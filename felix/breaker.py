"""Too much gone at once: hold it until an operator has looked.

A datastore restored from the wrong backup, or a bug, shows as objects that vanish together. Rules and routes would
follow: policies that vanish open what they closed. So the breaker stands before the decision, where objects are still
countable, and not at the kernel, where one policy is a thousand elements and a pool's new mode is every tunnel route:

    snapshot ──> hold(accepted, snapshot) ──> what felix decides on
                    └── a group lost more than half, and more than 50: that group stays as it was accepted

The first snapshot after a start has nothing to compare with and is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from core.names import Key
from core.reconcile import Breaker, Plan
from core.resources import (
    GlobalNetworkPolicy,
    IPAMBlock,
    KubernetesNetworkPolicy,
    NetworkPolicy,
    Resource,
    WorkloadEndpoint,
)
from core.snapshot import Snapshot

GROUPS: Final[Mapping[str, tuple[type[Resource], ...]]] = MappingProxyType(
    {
        "policies": (NetworkPolicy, GlobalNetworkPolicy, KubernetesNetworkPolicy),
        "workload endpoints": (WorkloadEndpoint,),
        "blocks": (IPAMBlock,),
    }
)
"""What is counted together."""


def hold(accepted: Snapshot, snapshot: Snapshot, breaker: Breaker | None = None) -> tuple[Snapshot, tuple[str, ...]]:
    """`snapshot` with the groups that lost too much as they are in `accepted`; and a sentence for each of those."""
    breaker = breaker or Breaker()
    said: list[str] = []
    tables = dict(snapshot.tables)
    for name, classes in GROUPS.items():
        before, now = _keys(accepted, classes), _keys(snapshot, classes)
        gone = Plan(upsert={}, delete={key: None for key in before if key not in now})
        if breaker.holds(gone, len(before)):
            said.append(f"{len(gone.delete)} of {len(before)} {name} vanished at once")
            tables |= {cls.KIND: accepted.tables.get(cls.KIND, {}) for cls in classes}
    return (replace(snapshot, tables=MappingProxyType(tables)), tuple(said)) if said else (snapshot, ())


def _keys(snapshot: Snapshot, classes: tuple[type[Resource], ...]) -> set[Key]:
    return {key for cls in classes for key in snapshot.of(cls)}
