"""Who may enter the store: valid resources that fit what is there already.

    operations ── decode, validate each ──> changes ── needs ──> kinds ── store.list ──> existing ── check
                         Invalid                                                           │     Invalid
                                                                                           └──> guards: Unchanged(kinds)

Most writes (pods, blocks, statuses) need nothing read. What was read may change before the write: the guards say so to
the transaction, and the server admits again. A guard does not see deletions: a tier that goes while a policy for it
comes is the policy's problem later (it blocks), never an opening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from core.admission import check, needs
from core.errors import Invalid, Problem
from core.manifest import decode
from core.names import Key, Kind
from core.resources import Resource
from datastore.api import Listing, Operation, Put, Store, Unchanged


class Admission:
    """Judges operations against a store; the same object serves any number of calls."""

    async def __call__(self, store: Store, operations: Sequence[Operation]) -> Sequence[Unchanged]:
        """Guards under which the operations are sound. Raises `Invalid` with every problem, or `Unavailable`."""
        changes = _changes(operations)
        kinds = needs(changes)
        if not kinds:
            return ()
        listing = await store.list(kinds)
        problems = check(changes, _existing(listing, changes))
        if problems:
            raise Invalid(problems)
        return [Unchanged(kind, listing.revision) for kind in sorted(kinds)]


admit: Final = Admission()
"""The one that servers use."""


def _changes(operations: Sequence[Operation]) -> Mapping[Key, Resource | None]:
    changes: dict[Key, Resource | None] = {}
    problems: list[Problem] = []
    for operation in operations:
        changes[operation.key] = None
        if isinstance(operation, Put):
            try:
                changes[operation.key] = decode(operation.key, operation.value)
            except Invalid as invalid:
                problems += invalid.problems
    if problems:
        raise Invalid(problems)
    return changes


def _existing(listing: Listing, changes: Mapping[Key, Resource | None]) -> Mapping[Kind, Mapping[Key, Resource]]:
    """What is there, typed. What cannot be read cannot be judged: it is to be replaced or deleted first (or now)."""
    existing: dict[Kind, dict[Key, Resource]] = {}
    problems: list[Problem] = []
    for entry in listing.entries:
        try:
            existing.setdefault(entry.key.kind, {})[entry.key] = decode(entry.key, entry.value)
        except Invalid as invalid:
            if entry.key not in changes:
                why = f"is in the datastore but cannot be read ({invalid.problems[0].why}); replace or delete it first"
                problems.append(Problem(what=str(entry.key), why=why))
    if problems:
        raise Invalid(problems)
    return existing
