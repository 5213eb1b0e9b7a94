"""The last snapshot on an agent's own disk, to start from when the store is away.

JSON lines: one that says what the file is and how many follow, then one for each object. The file is replaced whole
(written aside, synced, renamed). One that is not whole, or lacks a kind, is as good as none: a part of a snapshot
would look like a snapshot with things deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
import structlog

from core import manifest
from core.errors import Invalid
from core.names import Key, Kind
from core.resources import Resource, parse_path
from core.snapshot import Snapshot
from core.thrift import Decode

log = structlog.get_logger()

FORMAT: Final = "muslin snapshot 1"


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: str
    revision: int
    prefixes: list[str]
    objects: int
    held: dict[str, str] = {}


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    path: str
    value: msgspec.Raw = msgspec.Raw(b"null")
    problem: str = ""


def save(path: Path, snapshot: Snapshot, kinds: AbstractSet[Kind]) -> None:
    """Replace the file at `path` by `snapshot`, of `kinds`; OSError when the disk does not let us."""
    count = sum(len(snapshot.tables.get(kind, ())) for kind in kinds) + len(snapshot.problems)
    head = _Head(FORMAT, snapshot.revision, sorted(kind.prefix for kind in kinds), count, dict(snapshot.held))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(head) + b"\n")
        for line in _lines(snapshot, kinds):  # one at a time: all of them are as large as the cluster
            file.write(msgspec.json.encode(line) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path, kinds: AbstractSet[Kind], decode: Decode) -> Snapshot | None:
    """The snapshot at `path`, marked stale; None when there is none; also when it is not whole, which is logged."""
    if not path.exists():
        return None  # a new agent
    try:
        return _load(path, kinds, decode)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("datastore.cache_ignored", file=str(path), why=str(error))
    return None


def _lines(snapshot: Snapshot, kinds: AbstractSet[Kind]) -> Iterator[_Line]:
    for kind in sorted(kinds):
        for key, resource in snapshot.tables.get(kind, {}).items():
            yield _Line(key.path, msgspec.Raw(manifest.encode(resource)))
    for key, problem in snapshot.problems.items():
        yield _Line(key.path, problem=problem)


def _load(path: Path, kinds: AbstractSet[Kind], decode: Decode) -> Snapshot:
    tables: dict[Kind, dict[Key, Resource]] = {kind: {} for kind in kinds}
    problems: dict[Key, str] = {}
    decoder, count = msgspec.json.Decoder(_Line), 0
    with path.open("rb") as file:
        head = msgspec.json.decode(file.readline(), type=_Head)
        if head.format != FORMAT:
            raise ValueError(f"is of format {head.format!r}, not {FORMAT!r}")
        if missing := {kind.prefix for kind in kinds} - set(head.prefixes):
            raise ValueError(f"does not hold {', '.join(sorted(missing))}")
        for text in file:
            line = decoder.decode(text)
            count += 1
            key = parse_path(line.path)
            if key.kind not in kinds:
                continue
            if line.problem:
                problems[key] = line.problem
                continue
            try:
                found = decode(key, bytes(line.value))
            except Invalid as invalid:
                problems[key] = str(invalid)
                continue
            if found is not None:
                tables[key.kind][key] = found
    if head.objects != count:
        raise ValueError(f"has {count} objects of {head.objects}")
    return Snapshot(
        revision=head.revision,
        stale=True,
        tables=MappingProxyType({kind: MappingProxyType(table) for kind, table in tables.items()}),
        problems=MappingProxyType(problems),
        held=MappingProxyType(head.held),
    )
