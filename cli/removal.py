"""What deleting some objects comes to: pure, so that `delete` is one read, this, and one transaction.

An object goes, whatever its finalizers say; but for a pool, which goes with the last of its addresses, and takes its
empty blocks along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from cli.changes import Outcome
from cli.kinds import reference
from core.manifest import encode
from core.names import Key
from core.resources import IPPool
from datastore.api import Delete, Guard, Operation, Put
from datastore.ipam.ending import Ending, ending
from datastore.ipam.holders import Holdings
from datastore.ipam.model import Change, Remove, Write


@dataclass(frozen=True, slots=True)
class Removal:
    """The transaction, what becomes of each object, and what a person should know of those that stay for now."""

    operations: tuple[Operation, ...]
    guards: tuple[Guard, ...]
    outcomes: tuple[tuple[Key, Outcome], ...]
    notes: tuple[str, ...]


def removal(keys: Sequence[Key], revisions: Mapping[Key, int], seen: Holdings, now: str) -> Removal:
    """How `keys`, all of them in `revisions`, go; `now` is RFC 3339."""
    pools = seen.of(IPPool)
    operations: dict[Key, Operation] = {}
    guards: list[Guard] = []
    outcomes: dict[Key, Outcome] = {}
    notes: list[str] = []
    for key in dict.fromkeys(keys):
        pool = pools.get(key)
        if pool is None:
            operations[key] = Delete(key, revisions[key])
            outcomes[key] = Outcome.DELETED
            continue
        end = ending(pool, seen, now)
        operations |= {change.key: change for change in map(_operation, end.step.changes)}
        guards += end.step.guards
        outcomes[key] = Outcome.DELETED if end.over else Outcome.TERMINATING
        outcomes |= {change.key: Outcome.DELETED for change in end.step.changes if isinstance(change, Remove)}
        notes += _notes(end)
    return Removal(tuple(operations.values()), tuple(guards), tuple(outcomes.items()), tuple(notes))


def _operation(change: Change) -> Operation:
    match change:
        case Write(resource, revision):
            return Put(resource.key, encode(resource), revision)
        case Remove(key, revision):
            return Delete(key, revision)
        case _:
            assert_never(change)


def _notes(end: Ending) -> Iterator[str]:
    name = reference(end.pool.key)
    if end.doubt:
        yield f"{name} stays: {end.doubt}; mend or delete that, and delete {name} again"
    elif end.held:
        address, handle = min(end.held.items())
        many = f"{len(end.held)} of its addresses are" if len(end.held) > 1 else "one of its addresses is"
        yield f"{name} gives no address any more, and goes with its last: {many} in use ({address} by {handle})"
