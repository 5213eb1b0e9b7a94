"""The store's values on the wire and back. Total: what comes from the wire is either a value or `Invalid`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any, Final

import msgspec

from core.errors import Conflict, Invalid, Problem
from core.names import Key, Kind
from core.resources import BY_KIND, parse_path
from datastore.api import (
    ABSENT,
    At,
    Changes,
    Compacted,
    Delete,
    Entry,
    Event,
    Guard,
    Operation,
    Put,
    Synced,
    Unchanged,
    WatchItem,
    addressable,
)
from proto.v1 import datastore_pb2 as pb

CONFLICT: Final = "muslin-conflict-bin"
PROBLEMS: Final = "muslin-problems-bin"
"""Names of the trailing metadata that carry an error's details."""

DETAIL_BOUND: Final = 32 << 10
"""Most that an error's details may take, in bytes; METADATA_BOUND leaves room for it."""

METADATA_BOUND: Final = 64 << 10
MESSAGE_BOUND: Final = 32 << 20
"""Longest metadata and message that server and client take, in bytes."""

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Datastore"].full_name

_BY_PREFIX: Final[Mapping[str, Kind]] = MappingProxyType({kind.prefix: kind for kind in BY_KIND})


def key_from(path: str) -> Key:
    """The key at `path`."""
    try:
        key = parse_path(path)
    except ValueError as error:
        raise _garbage(path, str(error)) from error
    if not addressable(key):
        raise _garbage(path, "has an empty part")
    return key


def kind_from(prefix: str) -> Kind:
    """The kind whose objects lie under `prefix`."""
    kind = _BY_PREFIX.get(prefix)
    if kind is None:
        raise _garbage(prefix, "is not the prefix of a kind this muslin knows; is the other side of a newer version?")
    return kind


def kinds_from(prefixes: Iterable[str]) -> frozenset[Kind]:
    """Several kinds."""
    return frozenset(kind_from(prefix) for prefix in prefixes)


def prefixes_to(kinds: AbstractSet[Kind]) -> list[str]:
    """Several kinds, in one order."""
    return sorted(kind.prefix for kind in kinds)


def entry_to(entry: Entry) -> pb.Entry:
    """An entry as a message."""
    return pb.Entry(path=entry.key.path, value=entry.value, revision=entry.revision)


def entry_from(message: pb.Entry) -> Entry:
    """An entry from a message."""
    return Entry(key_from(message.path), message.value, message.revision)


def operation_to(operation: Operation) -> pb.Operation:
    """An operation as a message."""
    message = pb.Operation(path=operation.key.path)
    if isinstance(operation, Put):
        message.put = operation.value
    else:
        message.delete.SetInParent()
    if operation.if_revision == ABSENT:
        message.absent.SetInParent()
    elif operation.if_revision is not None:
        message.at = operation.if_revision
    return message


def operation_from(message: pb.Operation) -> Operation:
    """An operation from a message."""
    key = key_from(message.path)
    compare = message.WhichOneof("compare")
    if compare == "at" and message.at <= ABSENT:
        raise _garbage(message.path, f"compares with revision {message.at}; revisions are 1 or more")
    if_revision = None if compare is None else message.at if compare == "at" else ABSENT
    match message.WhichOneof("action"):
        case "put":
            return Put(key, message.put, if_revision)
        case "delete":
            return Delete(key, if_revision)
        case _:
            raise _garbage(message.path, "says neither put nor delete")


def txn_to(operations: Sequence[Operation], guards: Sequence[Guard]) -> pb.TxnRequest:
    """A transaction as a message."""
    return pb.TxnRequest(
        operations=[operation_to(operation) for operation in operations],
        guards=[
            pb.Unchanged(prefix=each.kind.prefix, since=each.since) for each in guards if isinstance(each, Unchanged)
        ],
        at=[pb.At(path=each.key.path, revision=each.revision) for each in guards if isinstance(each, At)],
    )


def txn_from(message: pb.TxnRequest) -> tuple[list[Operation], list[Guard]]:
    """A transaction from a message, guards of kinds first; `Invalid` names everything that is wrong."""
    problems: list[Problem] = []
    operations: list[Operation] = []
    for operation in message.operations:
        try:
            operations.append(operation_from(operation))
        except Invalid as invalid:
            problems += invalid.problems
    guards: list[Guard] = [Unchanged(kind_from(guard.prefix), guard.since) for guard in message.guards]
    guards += [At(key_from(guard.path), guard.revision) for guard in message.at]
    if problems:
        raise Invalid(problems)
    return operations, guards


def item_to(item: WatchItem) -> pb.WatchResponse:
    """What a watcher hears, as a message."""
    match item:
        case Changes():
            events = [pb.Event(path=each.key.path, value=each.value, revision=each.revision) for each in item.events]
            return pb.WatchResponse(changes=pb.Changes(revision=item.revision, events=events))
        case Synced():
            return pb.WatchResponse(synced=pb.Synced(revision=item.revision))
        case Compacted():
            return pb.WatchResponse(compacted=pb.Compacted(revision=item.revision))


def item_from(message: pb.WatchResponse) -> WatchItem:
    """What a watcher hears, from a message."""
    match message.WhichOneof("item"):
        case "changes":
            return Changes(message.changes.revision, tuple(_event_from(event) for event in message.changes.events))
        case "synced":
            return Synced(message.synced.revision)
        case "compacted":
            return Compacted(message.compacted.revision)
        case _:
            raise _garbage("watch", "a message says nothing this muslin knows; is the other side of a newer version?")


def _event_from(message: pb.Event) -> Event:
    value = message.value if message.HasField("value") else None
    return Event(key_from(message.path), value, message.revision)


class _ConflictDetail(msgspec.Struct, frozen=True):
    what: str
    expected: int | None
    actual: int | None


class _ProblemDetail(msgspec.Struct, frozen=True):
    why: str
    path: str = ""
    what: str = ""
    where: str = ""


def conflict_to(conflict: Conflict) -> bytes:
    """A conflict as JSON."""
    return msgspec.json.encode(_ConflictDetail(conflict.what, conflict.expected, conflict.actual))


def conflict_from(detail: bytes) -> Conflict:
    """A conflict from JSON."""
    fields = _decode(detail, _ConflictDetail)
    return Conflict(fields.what, fields.expected, fields.actual)


def problems_to(invalid: Invalid) -> bytes:
    """Problems as JSON; as many as fit, then one that counts the rest."""
    details: list[bytes] = []
    room = DETAIL_BOUND
    for problem in invalid.problems:
        detail = msgspec.json.encode(_ProblemDetail(problem.why, problem.path, problem.what, problem.where))
        room -= len(detail) + 1
        if room < 0:
            left = len(invalid.problems) - len(details)
            details.append(msgspec.json.encode(_ProblemDetail(f"and {left} more problems, too long to send")))
            break
        details.append(detail)
    return b"[" + b",".join(details) + b"]"


def problems_from(detail: bytes) -> Invalid:
    """Problems from JSON."""
    fields = _decode(detail, list[_ProblemDetail])
    return Invalid([Problem(why=each.why, path=each.path, what=each.what, where=each.where) for each in fields])


def _decode(detail: bytes, what: type[Any]) -> Any:
    try:
        return msgspec.json.decode(detail, type=what)
    except msgspec.MsgspecError as error:
        raise _garbage("error details", str(error)) from error


def _garbage(what: str, why: str) -> Invalid:
    return Invalid([Problem(what=what, why=why)])
