"""What may be written to a store: valid resources that, together with those that are there, make a sound whole.

    operations ── decode ──> changes ── core.admission.needs ──> kinds ── list at revision r ──> existing
                                 └──────── core.admission.check(changes, existing) ──> Invalid, or
                                                                                       Unchanged(kind, r) for each,
                                                          At(key, its revision) for what the changes rely on

What was read may change before the write. The guards make the transaction fail then, and the server asks again.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from core import admission
from core.errors import Invalid, Problem
from core.manifest import decode
from core.names import Key, Kind
from core.resources import Resource
from datastore.api import At, Guard, Listing, Operation, Put, Store, Unchanged

log = structlog.get_logger()


async def admit(store: Store, operations: Sequence[Operation]) -> Sequence[Guard]:
    """The guards under which `operations` may be written; `Invalid` names every problem of every object."""
    changes = _decoded(operations)
    if problems := admission.check_alone(changes):
        raise Invalid(problems)
    kinds = admission.needs(changes)
    if not kinds:
        return ()
    listing = await store.list(kinds)
    problems = admission.check(changes, _existing(listing, kinds))
    if problems:
        raise Invalid(problems)
    relied = admission.relies(changes)
    present = (At(entry.key, entry.revision) for entry in listing.entries if entry.key in relied)
    return [*(Unchanged(kind, listing.revision) for kind in sorted(kinds)), *present]


def _decoded(operations: Sequence[Operation]) -> dict[Key, Resource | None]:
    changes: dict[Key, Resource | None] = {}
    problems: list[Problem] = []
    for operation in operations:
        try:
            changes[operation.key] = decode(operation.key, operation.value) if isinstance(operation, Put) else None
        except Invalid as invalid:
            problems += invalid.problems
    if problems:
        raise Invalid(problems)
    return changes


def _existing(listing: Listing, kinds: frozenset[Kind]) -> dict[Kind, dict[Key, Resource | None]]:
    """What is there; None for what nobody can read."""
    existing: dict[Kind, dict[Key, Resource | None]] = {kind: {} for kind in kinds}
    for entry in listing.entries:
        try:
            existing[entry.key.kind][entry.key] = decode(entry.key, entry.value)
        except Invalid as invalid:
            existing[entry.key.kind][entry.key] = None
            log.warning("admission.object_set_aside", object=str(entry.key), why=str(invalid))
    return existing
