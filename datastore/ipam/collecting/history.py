"""How long the past is kept: the records of who held an address. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Final

from core.errors import Invalid
from core.manifest import decode
from core.resources import IPAMRecord
from datastore.api import Delete, Entry

MOST_RECORDS: Final = 1000
"""Records that a node keeps: four times the pods of a full one, and 400 KB of the store."""

OLDEST: Final = timedelta(days=7)
"""A week: who looks for the holder of an address has it from a log or a complaint, and those are not older."""

BATCH: Final = 100
"""Records that one transaction removes: etcd takes 128 operations, as it is delivered."""


def outdated(entries: Iterable[Entry], node: str, nodes: Collection[str], now: datetime) -> Iterator[list[Delete]]:
    """What to remove, a transaction at a time: of `node`'s records, and of those whose node is not among `nodes`.

    Of `node`'s the newest MOST_RECORDS stay, if they are not older than OLDEST; of the others all that are younger. A
    record that cannot be read stays.
    """
    own: list[tuple[datetime, Entry]] = []
    gone: list[Entry] = []
    for entry in entries:
        try:
            record = decode(entry.key, entry.value)
        except Invalid:
            continue
        assert isinstance(record, IPAMRecord)
        until = datetime.fromisoformat(record.spec.until)
        if record.spec.node == node:
            own.append((until, entry))
        elif record.spec.node not in nodes and now - until > OLDEST:
            gone.append(entry)
    kept = {entry.key for until, entry in nlargest(MOST_RECORDS, own, key=_age) if now - until <= OLDEST}
    doomed = [*(entry for _, entry in own if entry.key not in kept), *gone]
    for start in range(0, len(doomed), BATCH):
        yield [Delete(entry.key, entry.revision) for entry in doomed[start : start + BATCH]]


def _age(dated: tuple[datetime, Entry]) -> tuple[datetime, int]:
    until, entry = dated
    return until, entry.revision
