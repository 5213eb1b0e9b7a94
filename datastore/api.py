"""The contract of the shared store. Everything above it (agents, CLI, IPAM) knows this file and no backend.

A store maps keys to values (the canonical JSON of one resource) under one counter, the *revision*:

- A write is a `txn` of one or more operations. It makes exactly one new revision, or changes nothing and raises
  `Conflict`. Revisions grow by at least one and never repeat. A transaction names each key at most once.
- An operation may compare: `if_revision=None` does not care, `ABSENT` (0) wants no such key, n wants the key's
  last change at n. A guard compares without writing: nothing of that kind was written after revision n.
- Deleting a key that is not there is a success and, alone, makes no revision (the current one is returned).
- A read returns one consistent state and its revision.
- `watch(after, kinds)` yields every later change of those kinds, in order, each revision whole in one `Changes`.
  `after=0` first replays the present state as puts. When the watcher has caught up with what existed as the call
  was made, one `Synced(revision)` follows. A watcher asking for history that is gone gets `Compacted` and the end;
  it lists again. A watcher that is too slow is skipped forward or ended with `Compacted`, never buffered without bound.
- A store that cannot be reached raises `Unavailable`, from any call; the same call may be retried.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from core.names import Key, Kind

ABSENT: Final = 0
"""As `if_revision`: the key must not exist."""


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


@dataclass(frozen=True, slots=True)
class Event:
    """One key changed: its new value, or None when it was deleted."""

    key: Key
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Every change of one or more whole revisions, in order; `revision` is the last of them."""

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

    async def txn(self, operations: Sequence[Operation], guards: Sequence[Unchanged] = ()) -> int:
        """Apply all operations or none; the new revision. Raises `Conflict` (naming the first key that failed)."""

    def watch(self, after: int, kinds: AbstractSet[Kind]) -> AsyncIterator[WatchItem]:
        """Changes of `kinds` after revision `after`; see the module's text."""

    async def compact(self, before: int) -> None:
        """Forget history older than revision `before`; present values stay."""

    async def close(self) -> None:
        """Release what the store holds."""
