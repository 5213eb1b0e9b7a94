"""One consistent state of the datastore, as typed resources: what every `desired` function starts from.

Immutable. `apply` makes the next one and shares the tables that did not change. An object that cannot be read is
left out and named in `problems`, so that one bad object disables that object only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast

from core.names import Key, Kind
from core.resources import R, Resource

Table = Mapping[Key, Resource]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The resources as of `revision`.

    `stale` says it came from the agent's own disk because the datastore is away. There is no snapshot before the
    first complete one: a partial state is never visible. `held` says, by group of objects, what `core.breaker` put
    back into the tables although the datastore no longer has it.
    """

    revision: int = 0
    stale: bool = False
    tables: Mapping[Kind, Table] = field(default_factory=lambda: MappingProxyType({}))
    problems: Mapping[Key, str] = field(default_factory=lambda: MappingProxyType({}))
    held: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, cls: type[R]) -> Mapping[Key, R]:
        """Every resource of one class, by key."""
        return cast("Mapping[Key, R]", self.tables.get(cls.KIND, {}))

    def get(self, cls: type[R], name: str, namespace: str = "") -> R | None:
        """One resource by name; None when there is none."""
        return self.of(cls).get(Key(cls.KIND, namespace, name))

    def apply(
        self,
        revision: int,
        changes: Iterable[tuple[Key, Resource | str | None]],
    ) -> Snapshot:
        """The snapshot after `changes`: a resource replaces, None removes, a str removes and says what is wrong."""
        tables: dict[Kind, dict[Key, Resource]] = {}
        problems = dict(self.problems)
        for key, value in changes:
            table = tables.get(key.kind)
            if table is None:
                table = tables[key.kind] = _copy(self.tables.get(key.kind, {}))
            table.pop(key, None)
            problems.pop(key, None)
            if isinstance(value, str):
                problems[key] = value
            elif value is not None:
                table[key] = value
        return replace(
            self,
            revision=revision,
            stale=False,
            held=MappingProxyType({}),
            tables=MappingProxyType({**self.tables, **{k: MappingProxyType(t) for k, t in tables.items()}}),
            problems=MappingProxyType(problems),
        )


def _copy(table: Table) -> dict[Key, Resource]:
    """To change. A read-only view copies what it shows in one go; `dict` of it would look up one key after another."""
    return table.copy() if isinstance(table, MappingProxyType) else dict(table)
