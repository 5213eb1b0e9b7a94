"""A snapshot as one sees it who reads some kinds only: the same object until one of their tables is another.

So what is made of it can be remembered by its identity (`core.memo`) while the rest of the cluster changes.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, cast

from core.memo import Memo
from core.names import Kind
from core.resources import Resource
from core.snapshot import Snapshot, Table

_EMPTY: Final[Table] = MappingProxyType({})


def seen(memo: Memo, snapshot: Snapshot, *classes: type[Resource]) -> Snapshot:
    """What `snapshot` says of `classes`."""
    return memo(_view, *(each for cls in classes for each in (cls.KIND, snapshot.tables.get(cls.KIND, _EMPTY))))


def _view(*given: object) -> Snapshot:
    """A snapshot of these tables alone: kind, table, kind, table ..."""
    kinds, tables = cast("tuple[Kind, ...]", given[::2]), cast("tuple[Table, ...]", given[1::2])
    return Snapshot(tables=MappingProxyType(dict(zip(kinds, tables, strict=True))))
