"""A step's changes as the store takes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from core.manifest import encode
from datastore.api import Delete, Operation, Put
from datastore.ipam.model import Change, Remove, Write


def operations(changes: Iterable[Change]) -> tuple[Operation, ...]:
    """One operation for each change, with its compare."""
    return tuple(map(_operation, changes))


def _operation(change: Change) -> Operation:
    match change:
        case Write(resource, revision):
            return Put(resource.key, encode(resource), revision)
        case Remove(key, revision):
            return Delete(key, revision)
        case _:
            assert_never(change)
