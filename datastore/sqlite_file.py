"""The file of the embedded store: its schema, and every statement that reads or writes it. Blocking, no event loop.

Each function is one SQLite transaction. A revision is a row in no table: `state` counts, `objects` and `history`
carry the number.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import Conflict, Invalid, Problem, Unsupported
from core.names import Key, Kind
from core.resources import parse_path
from datastore.api import ABSENT, At, Entry, Event, Guard, Listing, Operation, Put, full

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x6D75736C
"""`musl`, in the file's header: the file is ours. Both stand in SCHEMA too."""

TRIM_EVERY: Final = 64
"""Revisions by which the history may outgrow its bound before it is trimmed."""

SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE objects (path TEXT PRIMARY KEY, prefix TEXT NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL);
CREATE INDEX objects_by_kind ON objects (prefix, revision);
CREATE TABLE history (id INTEGER PRIMARY KEY, revision INTEGER NOT NULL, prefix TEXT NOT NULL, path TEXT NOT NULL,
                      value BLOB);
CREATE INDEX history_by_revision ON history (revision);
CREATE TABLE state (floor INTEGER NOT NULL, revision INTEGER NOT NULL);
INSERT INTO state VALUES (1, 1);
PRAGMA application_id = 0x6D75736C;
PRAGMA user_version = 1;
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file: a connection that writes, one that reads, and the lock that makes it ours alone."""

    writer: sqlite3.Connection
    reader: sqlite3.Connection
    lock: int

    def close(self) -> None:
        """Close all three."""
        self.reader.close()
        self.writer.close()
        os.close(self.lock)


@dataclass(frozen=True, slots=True)
class Past:
    """A stretch of history up to `revision`. History begins after `floor`; the newest revision is `current`."""

    floor: int
    current: int
    revision: int
    events: tuple[Event, ...]


def open_file(path: Path) -> Opened:
    """Open or create the file at `path`; `Invalid` when it is not ours to use, `Unsupported` when we may not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unsupported(f"{path}: {error.strerror}; run as a user who may write there") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.touch(0o600)  # it holds BGP passwords
        writer = _connect(path)
        try:
            _own(writer, path)
            writer.execute("PRAGMA journal_mode = WAL")  # kept in the file; so not before it is known to be ours
            return Opened(writer, _connect(path), lock)
        except BaseException:
            writer.close()
            raise
    except BaseException as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise _refused(path, "is in use by another datastore process; stop that one first") from error
        if isinstance(error, sqlite3.Error):
            why = f"is damaged or not a datastore ({error}); move it away and restore a backup"
            raise _refused(path, why) from error
        if isinstance(error, OSError):
            raise Unsupported(f"{path}: {error.strerror}; run as a user who may write there") from error
        raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _own(connection: sqlite3.Connection, path: Path) -> None:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if not owner and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        connection.executescript(SCHEMA)
        return
    if owner != APPLICATION_ID:
        raise _refused(path, "is another program's SQLite file; name a different file")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        why = f"has schema version {version}, this muslin knows {SCHEMA_VERSION}; use the muslin that wrote it"
        raise _refused(path, why)
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _refused(path, f"is damaged ({verdict}); move it away and restore a backup")


def _refused(path: Path, why: str) -> Invalid:
    return Invalid([Problem(where=str(path), why=why)])


def get(connection: sqlite3.Connection, key: Key) -> Entry | None:
    """The entry of `key`."""
    row = connection.execute("SELECT value, revision FROM objects WHERE path = ?", (key.path,)).fetchone()
    return Entry(key, row[0], row[1]) if row else None


def list_entries(connection: sqlite3.Connection, kinds: AbstractSet[Kind]) -> Listing:
    """Every entry of `kinds`, by path."""
    marks = ",".join("?" * len(kinds))
    statement = f"SELECT path, value, revision FROM objects WHERE prefix IN ({marks}) ORDER BY path"  # noqa: S608 - marks
    with _transaction(connection, "DEFERRED") as (_, revision):
        rows = connection.execute(statement, [kind.prefix for kind in kinds]).fetchall()
    return Listing(revision, tuple(Entry(parse_path(path), value, changed) for path, value, changed in rows))


def past(connection: sqlite3.Connection, after: int, kinds: AbstractSet[Kind]) -> Past:
    """Events of `kinds` after revision `after`: about a batch of them, revisions kept whole."""
    prefixes = {kind.prefix for kind in kinds}
    events: list[Event] = []
    with _transaction(connection, "DEFERRED") as (floor, current):
        reached, last, size = current, after, 0
        rows = connection.execute(
            "SELECT revision, prefix, path, value FROM history WHERE revision > ? ORDER BY id", (after,)
        )
        for revision, prefix, path, value in rows:
            if revision != last and full(len(events), size):
                reached = last
                break
            last = revision
            if prefix in prefixes:
                events.append(Event(parse_path(path), value, revision))
                size += len(value or b"")
        rows.close()
    return Past(floor, current, reached, tuple(events))


def apply(
    connection: sqlite3.Connection, operations: Sequence[Operation], guards: Sequence[Guard], keep: int
) -> tuple[int, tuple[Event, ...]]:
    """Make the transaction; the new revision and what happened in it, or the present one when nothing had to be
    written."""
    with _transaction(connection, "IMMEDIATE") as (floor, revision):
        for operation in operations:
            _compare(connection, operation.key, operation.if_revision)
        for guard in guards:
            _hold(connection, guard)
        written = [operation for operation in operations if _write(connection, operation, revision + 1)]
        if not written:
            return revision, ()
        revision += 1
        connection.execute("UPDATE state SET revision = ?", (revision,))
        if revision - floor > keep + TRIM_EVERY:
            _trim(connection, revision - keep)
    return revision, tuple(Event(each.key, each.value if isinstance(each, Put) else None, revision) for each in written)


def compact(connection: sqlite3.Connection, before: int) -> None:
    """Forget events older than revision `before`."""
    with _transaction(connection, "IMMEDIATE") as (floor, revision):
        if before > revision + 1:
            raise Invalid([Problem(why=f"cannot forget history before revision {before}: the newest is {revision}")])
        if before - 1 > floor:
            _trim(connection, before - 1)


def _trim(connection: sqlite3.Connection, floor: int) -> None:
    connection.execute("DELETE FROM history WHERE revision <= ?", (floor,))
    connection.execute("UPDATE state SET floor = ?", (floor,))


def _compare(connection: sqlite3.Connection, key: Key, wanted: int | None) -> None:
    if wanted is None:
        return
    entry = connection.execute("SELECT revision FROM objects WHERE path = ?", (key.path,)).fetchone()
    actual = entry[0] if entry else None
    if (actual or ABSENT) != wanted:
        raise Conflict(str(key), wanted, actual)


def _hold(connection: sqlite3.Connection, guard: Guard) -> None:
    if isinstance(guard, At):
        _compare(connection, guard.key, guard.revision)
        return
    newest = connection.execute("SELECT max(revision) FROM objects WHERE prefix = ?", (guard.kind.prefix,)).fetchone()
    if newest[0] is not None and newest[0] > guard.since:
        raise Conflict(str(guard), guard.since, newest[0])


def _write(connection: sqlite3.Connection, operation: Operation, revision: int) -> bool:
    path, prefix = operation.key.path, operation.key.kind.prefix
    if isinstance(operation, Put):
        value: bytes | None = operation.value
        connection.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (path, prefix, value, revision))
    else:
        value = None
        if not connection.execute("DELETE FROM objects WHERE path = ?", (path,)).rowcount:
            return False
    connection.execute(
        "INSERT INTO history (revision, prefix, path, value) VALUES (?, ?, ?, ?)", (revision, prefix, path, value)
    )
    return True


@contextmanager
def _transaction(connection: sqlite3.Connection, mode: str) -> Iterator[tuple[int, int]]:
    """BEGIN and COMMIT, or ROLLBACK; yields (floor, revision)."""
    connection.execute(f"BEGIN {mode}")
    try:
        yield connection.execute("SELECT floor, revision FROM state").fetchone()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a failed COMMIT may have rolled back by itself
            connection.execute("ROLLBACK")
        raise
