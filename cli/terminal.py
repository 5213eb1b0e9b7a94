"""Where the command's words go: results to stdout, problems and progress to stderr; rich on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from cli.render import Table


def show(*tables: Table) -> None:
    """Print tables, an empty line between."""
    for place, table in enumerate(tables):
        if place:
            print()
        _show_one(table)
    sys.stdout.flush()


def _show_one(table: Table) -> None:
    if not sys.stdout.isatty():
        print(table.plain())
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title or None, box=None, header_style="bold", pad_edge=False)
    for heading in table.head:  # where it is narrow, cells are folded: a heading stays whole, and nothing is left out
        drawn.add_column(heading, min_width=len(heading), overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    Console().print(drawn)


def show_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None), flush=True)


def show_lines(lines: Sequence[str]) -> None:
    """Print lines, if any."""
    for line in lines:
        print(line)
    sys.stdout.flush()


def clear() -> None:
    """Clear the terminal, if stdout is one."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().clear()


def tell(sentence: str) -> None:
    """Say something to the person, not to the pipe."""
    print(sentence, file=sys.stderr, flush=True)
