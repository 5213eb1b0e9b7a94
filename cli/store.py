"""The command's way to the datastore: open it, read a consistent state, write a plan in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cli.changes import Change, Outcome, Stored
from core import manifest
from core.errors import Invalid, Unavailable
from core.names import Key, Kind
from core.resources import BY_KIND
from datastore.api import Put, Store


@dataclass(frozen=True, slots=True)
class State:
    """What the datastore holds of some kinds as of `revision`; `unreadable` objects come with the reason."""

    revision: int
    objects: Mapping[Key, Stored]
    unreadable: Mapping[Key, str]
    revisions: Mapping[Key, int]


@asynccontextmanager
async def opened(target: str) -> AsyncIterator[Store]:
    """The store that listens at `target`; closed at the end."""
    from datastore.client import GrpcStore

    store = GrpcStore(target)
    try:
        yield store
    except Unavailable as error:
        remedy = "does `muslin datastore` run there, and does --datastore or MUSLIN_DATASTORE say where?"
        raise Unavailable(f"{error}; {remedy}") from error
    finally:
        await store.close()


async def read(store: Store, kinds: AbstractSet[Kind] = BY_KIND.keys()) -> State:
    """One consistent state of `kinds` (all when none are named)."""
    listing = await store.list(kinds)
    objects: dict[Key, Stored] = {}
    unreadable: dict[Key, str] = {}
    for entry in listing.entries:
        try:
            objects[entry.key] = Stored(manifest.decode(entry.key, entry.value), entry.revision)
        except Invalid as error:
            unreadable[entry.key] = str(error)
    return State(listing.revision, objects, unreadable, {entry.key: entry.revision for entry in listing.entries})


async def write(store: Store, state: State, changes: Sequence[Change]) -> int:
    """Write what the plan changes, in one transaction; its revision, or the state's when nothing changes."""
    puts = [
        Put(change.key, manifest.encode(change.resource), change.compare)
        for change in changes
        if change.outcome is not Outcome.UNCHANGED
    ]
    return await store.txn(puts) if puts else state.revision
