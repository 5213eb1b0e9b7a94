"""What deleting some objects comes to: pure, so that `delete` is one read, this, and one transaction.

An object goes, whatever its finalizers say; but for a pool, which goes with the last of its addresses, and takes its
empty blocks along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cli.changes import Outcome
from cli.kinds import reference
from core.names import Key
from core.resources import IPPool
from datastore.api import Delete, Guard, Operation
from datastore.ipam.listing.ending import Ending, ending
from datastore.ipam.listing.holders import Holdings
from datastore.ipam.model import Remove
from datastore.ipam.writing import operations as to_operations


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
        operations |= {change.key: change for change in to_operations(end.step.changes)}
        guards += end.step.guards
        outcomes[key] = Outcome.DELETED if end.over else Outcome.TERMINATING
        outcomes |= {change.key: Outcome.DELETED for change in end.step.changes if isinstance(change, Remove)}
        notes += _notes(end)
    return Removal(tuple(operations.values()), tuple(guards), tuple(outcomes.items()), tuple(notes))


def _notes(end: Ending) -> Iterator[str]:
    name = reference(end.pool.key)
    if end.waits:
        yield f"{name} gives no address any more, and goes later: {end.waits}"
    elif end.held:
        address, handle = min(end.held.items())
        many = f"{len(end.held)} of its addresses are" if len(end.held) > 1 else "one of its addresses is"
        yield f"{name} gives no address any more, and goes with its last: {many} in use ({address} by {handle})"
