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
    if snapshot is None or snapshot.stale or snapshot.problems.keys() & {_pod(namespace, pod), _namespace(namespace)}:
        return None
    its, around = snapshot.get(Pod, pod, namespace), snapshot.get(Namespace, namespace)
    return Around(its, around, (At(_pod(namespace, pod), _revision(its)), At(_namespace(namespace), _revision(around))))


async def read(store: Store, namespace: str, pod: str) -> Around:
    """What is around a pod now. Raises `Unavailable`, or `Invalid` when it cannot be read."""
    its, around = await asyncio.gather(
        objects.read(store, Pod, pod, namespace), objects.read(store, Namespace, namespace)
    )
    return Around(
        its[0] if its else None,
        around[0] if around else None,
        (
            At(_pod(namespace, pod), its[1] if its else ABSENT),
            At(_namespace(namespace), around[1] if around else ABSENT),
        ),
    )


def _revision(followed: Pod | Namespace | None) -> int:
    return int(followed.metadata.resource_version) if followed else ABSENT


def _pod(namespace: str, name: str) -> Key:
    return Key(Pod.KIND, namespace, name)


def _namespace(name: str) -> Key:
    return Key(Namespace.KIND, "", name)
