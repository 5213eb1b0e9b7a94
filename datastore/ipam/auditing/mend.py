"""`ipam check --fix`: carries out what an audit is certain of, against the store as it is now.

    agreed findings ──┐
                      ├──> those that are there still and have a step ──> one transaction each ──> read and audit again
    read, audit ──────┘    (of several that write one object, one a round)

Each step compares with the revisions that this very audit read. Who wrote meanwhile wins, and the finding is judged
again on what he wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from core.errors import Conflict, Invalid
from core.names import Key
from datastore.api import Operation, Store
from datastore.ipam.auditing.audit import audit
from datastore.ipam.auditing.findings import Finding, Identity, Report
from datastore.ipam.listing.holders import AUDITED, Holdings
from datastore.ipam.writing import operations

ROUNDS: Final = 20
"""Reads and audits until what still changes underneath is left as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What was done, and what is left, as it is now. `refused`: why the store did not take a step."""

    done: tuple[Finding, ...]
    left: Report
    refused: dict[Identity, str]


async def look(store: Store, now: datetime) -> Report:
    """The audit of what the store has now."""
    return audit(Holdings(await store.list(AUDITED)), now)


async def mend(store: Store, agreed: AbstractSet[Identity], now: Callable[[], datetime]) -> Mended:
    """Mend those of `agreed` that are certain. Raises `Unavailable`; what was done by then stays done."""
    done: dict[Identity, Finding] = {}
    refused: dict[Identity, str] = {}
    for _ in range(ROUNDS):
        report = await look(store, now())
        there = [each for each in report.findings if each.identity in agreed and each.identity not in refused]
        certain = [each for each in there if each.step is not None]
        if not certain:
            break
        written: set[Key] = set()
        for finding in certain:
            assert finding.step is not None
            changes = operations(finding.step.changes)
            keys = {each.key for each in changes}
            if written.isdisjoint(keys):
                written |= keys
                await _carry_out(store, finding, changes, done, refused)
            elif keys <= written:
                done[finding.identity] = finding  # what was written for another mends it too, if it is gone at the end
    left = await look(store, now())
    there_still = {each.identity for each in left.findings}
    return Mended(
        done=tuple(each for each in done.values() if each.identity not in there_still), left=left, refused=refused
    )


async def _carry_out(
    store: Store,
    finding: Finding,
    changes: tuple[Operation, ...],
    done: dict[Identity, Finding],
    refused: dict[Identity, str],
) -> None:
    assert finding.step is not None
    try:
        await store.txn(changes, finding.step.guards)
    except Conflict:
        return  # somebody was faster: it is judged again
    except Invalid as invalid:
        refused[finding.identity] = str(invalid)
        return
    done[finding.identity] = finding
