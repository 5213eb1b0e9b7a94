"""The contract of the shared store. Everything above it (agents, CLI, IPAM) knows this file and no backend.

A store maps keys to values (the canonical JSON of one resource) under one counter, the *revision*:

- A write is a `txn` of one or more operations. It makes exactly one new revision, or changes nothing and raises
  `Conflict`. Revisions grow by at least one and never repeat. A transaction names each key at most once.
- An operation may compare: `if_revision=None` does not care, `ABSENT` (0) wants no such key, n wants the key's
  last change at n. A guard compares without writing: nothing of a kind was written after revision n, or a key's last
  change was at n (ABSENT: there is no such key). Unlike the first, the second sees a deletion.
- Deleting a key that is not there is a success and, alone, makes no revision (the current one is returned).
- An empty store is at revision 1. A read returns one consistent state and its revision.
- `watch(after, kinds)` yields every later change of those kinds, in order, each revision whole in one `Changes`.
  `after=0` first replays the present state as puts, oldest change first. When the watcher has caught up with what
  existed as the call was made, one `Synced(revision)` follows. A `Changes` without events only moves the revision
  to resume from. A watcher asking for history that is gone, or after a revision the store has not reached (it was
  restored from a backup), gets `Compacted` and the end; it lists again. A watcher that is too slow is ended with
  `Compacted` too, never buffered without bound.
- A store that cannot be reached raises `Unavailable`, from any call; the same call may be retried. Whether a
  transaction that ended so was made is not known: one that compares finds out by its `Conflict`.
- What no backend could keep is `Invalid` before it is tried: see `check`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol, TypeAlias

from core.errors import Invalid, Problem
from core.names import Key, Kind
from core.resources import parse_path

ABSENT: Final = 0
"""As `if_revision`: the key must not exist."""

VALUE_BOUND: Final = 1 << 20
"""Longest value, in bytes; what etcd takes in one request by default leaves room for no more."""

TXN_BOUND: Final = 16 << 20
"""Most that the values of one transaction may take together, in bytes."""

BATCH_EVENTS: Final = 500
BATCH_BYTES: Final = 2 << 20
"""Events, and bytes of values, after which a batch is full; the revision it is in still comes whole."""

PROGRESS: Final = 250
"""Revisions of other kinds after which a watcher is told to move its revision, lest it ask for history long gone."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's value and the revision of its last change."""

    key: Key
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries (by path) as of one revision."""

    revision: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Put:
    """Create or replace a key, if its last change was at `if_revision` (None: in any case; ABSENT: create)."""

    key: Key
    value: bytes
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key, if its last change was at `if_revision` (None: in any case)."""

    key: Key
    if_revision: int | None = None


Operation: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Guard: no object of `kind` has been created or replaced after revision `since`."""

    kind: Kind
    since: int

    def __str__(self) -> str:
        """How a `Conflict` names the guard that did not hold."""
        return f"any {self.kind}"


@dataclass(frozen=True, slots=True)
class At:
    """Guard: the last change of `key` was at `revision`; ABSENT: there is no such key."""

    key: Key
    revision: int

    def __str__(self) -> str:
        """How a `Conflict` names the guard that did not hold."""
        return str(self.key)


Guard: TypeAlias = Unchanged | At


@dataclass(frozen=True, slots=True)
class Event:
    """One key changed: its new value, or None when it was deleted."""

    key: Key
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Every change of one or more whole revisions, in order; `revision` is the last of them. May be empty."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """The watcher has seen everything up to `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Compacted:
    """The history the watcher needs is gone; the oldest revision still watchable from is `revision`. The watch ends."""

    revision: int


WatchItem: TypeAlias = Changes | Synced | Compacted


class Store(Protocol):
    """A shared store. Implementations: sqlite, etcd, and the gRPC client of a server over either."""

    async def get(self, key: Key) -> Entry | None:
        """The entry of `key`; None when there is none."""

    async def list(self, kinds: AbstractSet[Kind]) -> Listing:
        """Every entry of `kinds`, ordered by path."""

    def pages(self, kinds: AbstractSet[Kind]) -> AsyncGenerator[Listing, None]:
        """What `list` gives, a part at a time, all of one revision; at least one part. Close it when done early."""

    async def txn(self, operations: Sequence[Operation], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations or none; the new revision. Raises `Conflict`, naming the first that failed."""

    def watch(self, after: int, kinds: AbstractSet[Kind]) -> AsyncGenerator[WatchItem, None]:
        """Changes of `kinds` after revision `after`; see the module's text. Close it (`aclosing`) when done early."""

    async def compact(self, before: int) -> None:
        """Forget history older than revision `before`; present values stay."""

    async def close(self) -> None:
        """Release what the store holds."""


def check(operations: Sequence[Operation], guards: Sequence[Guard] = ()) -> None:
    """Raise `Invalid`, naming every problem, when no store could make this transaction."""
    problems: list[Problem] = []
    seen: set[Key] = set()
    for operation in operations:
        key = operation.key
        if key in seen:
            problems.append(Problem(what=str(key), why="is written twice in one transaction; keep one of the writes"))
        seen.add(key)
        if not addressable(key):
            problems.append(
                Problem(what=str(key), why="is not the name of an object: a part is empty or holds a slash")
            )
        if isinstance(operation, Put) and len(operation.value) > VALUE_BOUND:
            why = f"takes {len(operation.value)} bytes; an object may take {VALUE_BOUND}"
            problems.append(Problem(what=str(key), why=why))
        if operation.if_revision is not None and operation.if_revision < ABSENT:
            problems.append(
                Problem(what=str(key), why=f"compares with revision {operation.if_revision}; use 0 or more")
            )
    size = sum(len(operation.value) for operation in operations if isinstance(operation, Put))
    if size > TXN_BOUND:
        problems.append(Problem(why=f"the objects take {size} bytes together; write at most {TXN_BOUND} at once"))
    problems += [problem for guard in guards for problem in _check_guard(guard)]
    if problems:
        raise Invalid(problems)


def _check_guard(guard: Guard) -> Iterator[Problem]:
    match guard:
        case Unchanged(_, since) if since < 0:
            yield Problem(what=str(guard), why=f"compares with revision {since}; use 0 or more")
        case At(_, revision) if revision < ABSENT:
            yield Problem(what=str(guard), why=f"compares with revision {revision}; use 0 or more")


@lru_cache(maxsize=1 << 12)
def addressable(key: Key) -> bool:
    """Whether `key` can be told from its path: no empty part, no slash inside one, valid Unicode.

    Remembered, as a key is judged on its way from the wire, by the server and by the backend.
    """
    try:
        key.path.encode()
        return bool(key.name) and (bool(key.namespace) or not key.kind.namespaced) and parse_path(key.path) == key
    except ValueError:
        return False


def full(events: int, size: int) -> bool:
    """Whether a batch of so many events and bytes should be sent before the next revision."""
    return events >= BATCH_EVENTS or size >= BATCH_BYTES


def replay(listing: Listing) -> Iterator[Changes]:
    """A listing as a watcher sees it that asks for everything: puts, oldest change first, revisions kept whole.

    Each batch can be resumed from, because what changed later comes later.
    """
    events: list[Event] = []
    size = 0
    for entry in sorted(listing.entries, key=lambda entry: entry.revision):
        if full(len(events), size) and events[-1].revision != entry.revision:
            yield Changes(events[-1].revision, tuple(events))
            events, size = [], 0
        events.append(Event(entry.key, entry.value, entry.revision))
        size += len(entry.value)
    if events:
        yield Changes(events[-1].revision, tuple(events))
