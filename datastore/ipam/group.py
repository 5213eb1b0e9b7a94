"""One transaction that several callers share: their steps laid over one another, and who is to blame when it fails.

    caller 1   block A @7 -> A'     handle 1 absent -> 1     endpoint 1 @3
    caller 2   block A' @7 -> A''   handle 2 absent -> 2                       each decided on what the one before left
    ──────────────────────────────────────────────────────────────────────
    the group  block A @7 -> A''    handles 1, 2 absent -> 1, 2     endpoint 1 @3     all or nothing

An object is written once, as the last step leaves it, if it is as the first one found it. What a caller brings
`along` is his alone, and so are the guards that he brings: when one of them does not hold, the others are done without
him.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, Generic, TypeVar

from core.errors import Conflict
from core.names import Key
from core.resources import Resource
from datastore import objects
from datastore.api import At, Delete, Guard, Operation, Put, Unchanged
from datastore.ipam.model import Step, Write

OPERATIONS: Final = 120
"""Writes and guards of a transaction that more than one caller share: etcd takes 128 compares, as it is delivered."""

BYTES: Final = 512 << 10
"""What callers of one transaction may bring along together; etcd takes requests of 1.5 MiB."""

C = TypeVar("C")


class Group(Generic[C]):
    """A transaction in the making, for callers of any type."""

    def __init__(self) -> None:
        self._changes: dict[Key, tuple[int, Resource | None]] = {}
        self._along: dict[Key, tuple[Operation, C]] = {}
        self._at: dict[Key, int] = {}
        self._unchanged: dict[Unchanged, None] = {}
        self._brought: dict[At, list[C]] = {}
        self._bytes = 0
        self.callers: list[C] = []

    def add(self, caller: C, step: Step, along: Sequence[Operation], guards: Sequence[At] = ()) -> bool:
        """Lay a caller's step over the ones before; False, and nothing is done, when it does not go with them.

        `guards` are of objects that are not IPAM's.
        """
        if self.callers and not self._fits(step, along, guards):
            return False
        for change in step.changes:
            key = change.resource.key if isinstance(change, Write) else change.key
            first, _ = self._changes.get(key, (change.if_revision, None))
            self._changes[key] = (first, change.resource if isinstance(change, Write) else None)
        for guard in step.guards:
            if isinstance(guard, At):
                self._at.setdefault(guard.key, guard.revision)
            else:
                self._unchanged[guard] = None
        self._along |= {operation.key: (operation, caller) for operation in along}
        for each in guards:
            self._brought.setdefault(each, []).append(caller)
        self._bytes += _size(along)
        self.callers.append(caller)
        return True

    def _fits(self, step: Step, along: Sequence[Operation], guards: Sequence[At]) -> bool:
        written = self._changes.keys() | self._along.keys()
        if any(operation.key in written for operation in along):
            return False
        more = len(step.changes) + len(step.guards) + len(along) + len(guards)
        there = len(self._changes) + len(self._along) + len(self._at) + len(self._unchanged) + len(self._brought)
        return there + more <= OPERATIONS and self._bytes + _size(along) <= BYTES

    @property
    def operations(self) -> list[Operation]:
        """All writes. What was made and taken back within the group is not among them."""
        return [*self._written(), *(operation for operation, _ in self._along.values())]

    def _written(self) -> Iterator[Operation]:
        for key, (first, resource) in self._changes.items():
            if resource is not None:
                yield objects.put(resource, first)
            elif first:
                yield Delete(key, first)

    @property
    def guards(self) -> list[Guard]:
        """What must hold, each once; a guard of what the group itself creates says nothing."""
        present = (At(key, revision) for key, revision in self._at.items() if revision)
        return [*self._unchanged, *present, *self._brought]

    def along(self) -> Iterator[Operation]:
        """What all callers bring along."""
        return (operation for operation, _ in self._along.values())

    def to_blame(self, conflict: Conflict) -> Sequence[C]:
        """Who brought what the store found at another revision than they said; empty when nobody did."""
        for key, (operation, caller) in self._along.items():
            if str(key) == conflict.what and operation.if_revision == conflict.expected:
                return [caller]
        for guard, callers in self._brought.items():
            if str(guard) == conflict.what and guard.revision == conflict.expected:
                return callers
        return ()

    def about(self, conflict: Conflict) -> Key | None:
        """The object of IPAM's that was not as it was thought to be; None when it was no single one."""
        return next((key for key in chain(self._changes, self._at) if str(key) == conflict.what), None)


def _size(along: Sequence[Operation]) -> int:
    return sum(len(operation.value) for operation in along if isinstance(operation, Put))
