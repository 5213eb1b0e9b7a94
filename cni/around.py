"""What the datastore says of a pod besides its endpoint: its Pod and its Namespace.

    follow ──> known(): at no cost, maybe old ──> guards ──┐
    store  ──> read(): as it is now ──────────────guards ──┴──> ADD's transaction: made only while it is still so

A Pod is often written a moment before its ADD comes, and of other nodes' nothing is followed: both look as if there
were none, which the guard of its absence then refutes. So what is known is good for the first attempt, and for no word
that something cannot be.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from core.latest import Latest
from core.names import Key
from core.resources import Namespace, Pod
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import ABSENT, At, Store


@dataclass(frozen=True, slots=True)
class Around:
    """The Pod and the Namespace, None where there is none, and the guards that this is so."""

    pod: Pod | None
    namespace: Namespace | None
    guards: tuple[At, At]


def known(latest: Latest[Snapshot], namespace: str, pod: str) -> Around | None:
    """What is around a pod by the last snapshot of what is followed; None when that cannot tell."""
    snapshot = latest.peek()
    keys = Key(Pod.KIND, namespace, pod), Key(Namespace.KIND, "", namespace)
    if snapshot is None or snapshot.stale or snapshot.problems.keys() & {*keys}:
        return None
    its, around = snapshot.get(Pod, pod, namespace), snapshot.get(Namespace, namespace)
    return Around(its, around, (At(keys[0], _revision(its)), At(keys[1], _revision(around))))


async def read(store: Store, namespace: str, pod: str) -> Around:
    """What is around a pod now. Raises `Unavailable`, or `Invalid` when it cannot be read."""
    found = await asyncio.gather(objects.read(store, Pod, pod, namespace), objects.read(store, Namespace, namespace))
    (its, at), (around, around_at) = found[0] or (None, ABSENT), found[1] or (None, ABSENT)
    keys = Key(Pod.KIND, namespace, pod), Key(Namespace.KIND, "", namespace)
    return Around(its, around, (At(keys[0], at), At(keys[1], around_at)))


def _revision(followed: Pod | Namespace | None) -> int:
    return int(followed.metadata.resource_version) if followed else ABSENT
