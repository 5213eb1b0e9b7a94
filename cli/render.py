"""Values to text and tables; no I/O. Tables come out by `rich` on a terminal and as plain columns elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cli.changes import Stored
from cli.columns import COLUMNS, Column
from core import manifest
from core.names import Kind

UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of text, ready to print. `title` stands above, when there is one."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def plain(self) -> str:
        """Columns lined up with two spaces between, as pipes and people like them."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in self._all()]
        return "\n".join([*([self.title] if self.title else []), *(line.rstrip() for line in lines)])

    def _all(self) -> tuple[tuple[str, ...], ...]:
        return (self.head, *self.rows)


def objects(kind: Kind, stored: Sequence[Stored], *, wide: bool, namespaces: bool, now: datetime) -> Table:
    """The table of `get`: one row an object."""
    columns = [column for column in COLUMNS.get(kind, ()) if wide or not column.wide]
    named = [Column("NAME", lambda resource: resource.metadata.name), *columns]
    if namespaces:
        named.insert(0, Column("NAMESPACE", lambda resource: resource.metadata.namespace))
    named.append(Column("AGE", lambda resource: age(resource.metadata.creation_timestamp or "", now)))
    return Table(
        head=tuple(column.title for column in named),
        rows=tuple(tuple(column.text(each.resource) for column in named) for each in stored),
    )


def manifests(stored: Sequence[Stored], *, one: bool) -> dict[str, Any]:
    """What `get -o yaml` and `-o json` print: the object alone when `one` was asked for, else a List."""
    items = [manifest.render(each.resource, each.revision) for each in stored]
    return items[0] if one else {"apiVersion": "v1", "kind": "List", "items": items}


def age(stamp: str, now: datetime) -> str:
    """How long ago an RFC 3339 moment was, in its largest whole unit: `3m`; "" when there is none."""
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return ""
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return span((now - then).total_seconds())


def span(seconds: float) -> str:
    """A length of time in its largest whole unit: `3m`."""
    whole = max(0, int(seconds))
    size, unit = next((each for each in UNITS if whole >= each[0]), UNITS[-1])
    return f"{whole // size}{unit}"
