"""ipam check: every inconsistency of what IPAM keeps; with --fix, mends what is certain to harm nobody.

Two looks, a moment apart: what only one of them sees was on its way.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli import options, store, terminal
from cli.ipam_report import document
from cli.render import Table
from core.errors import Invalid, MuslinError, Problem
from datastore.api import Store
from datastore.ipam.auditing.audit import same
from datastore.ipam.auditing.findings import Finding, Report
from datastore.ipam.auditing.mend import Mended, look, mend

SECOND_LOOK_S: Final = 1.0

SHOWN: Final = 20
"""Findings of one class that are shown unless all are asked for; nodes that are shown by their addresses."""

NO_FORMATS: Final = frozenset({"yaml", "table", "wide", "name"})
"""What other commands print: here it would be taken for the name of a file."""

FOUND: Final = ("FAULT", "WHAT", "WHO", "WHY", "REMEDY")
NODES: Final = ("NODE", "ADDRESSES")
ALL: Final = ("IP", "IN USE", "NODE", "BLOCK", "HANDLE")


@dataclass(frozen=True, slots=True)
class Checked:
    """What is left at the end, and what was mended."""

    report: Report
    mended: Mended | None


def check(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is certain to harm nobody.")] = False,
    show_all_ips: Annotated[bool, typer.Option("--show-all-ips", help="List every address that is held.")] = False,
    show_problem_ips: Annotated[
        bool, typer.Option("--show-problem-ips", help="List every finding, however many there are.")
    ] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", help="text for people, json for programs; else a file for the report.")
    ] = "text",
    output_file: Annotated[
        Path | None, typer.Option("--output-file", help="Write the report (JSON) to this file too.")
    ] = None,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Look for addresses that leak or are doubled, and for anything that does not agree; exit 1 when there is any."""
    if output in NO_FORMATS:
        why = f"{output!r} is not one of text, json; for a report in a file of that name, give ./{output}"
        raise Invalid([Problem(what="--output", why=why)])
    checked = asyncio.run(_check(datastore, fix=fix))
    said = document(checked.report) | ({"mended": _mended(checked.mended)} if checked.mended else {})
    file = output_file or (Path(output) if output not in set(options.ResultFormat) else None)
    if file is not None:
        _write(file, said)
    if output == options.ResultFormat.JSON:
        terminal.show_json(said)
    else:
        _show(checked, every=show_problem_ips, addresses=show_all_ips)
    if checked.report.findings:
        raise typer.Exit(1)


async def _check(target: str, *, fix: bool) -> Checked:
    async with store.opened(target) as opened:
        report = await twice(opened)
        if not fix or not report.findings:
            return Checked(report, None)
        mended = await mend(opened, {each.identity for each in report.findings}, lambda: datetime.now(UTC))
        return Checked(mended.left, mended)


async def twice(opened: Store) -> Report:
    """What two looks agree on; one is enough where it finds nothing."""
    first = await look(opened, datetime.now(UTC))
    if not first.findings:
        return first
    await asyncio.sleep(SECOND_LOOK_S)
    return same(first, await look(opened, datetime.now(UTC)))


def _write(file: Path, said: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(said, indent=2) + "\n")
    except OSError as error:
        raise MuslinError(f"the report cannot be written to {file}: {error.strerror}") from error


def _show(checked: Checked, *, every: bool, addresses: bool) -> None:
    report, mended = checked.report, checked.mended
    held = [given for given, _ in report.allocations]
    counts = f"addresses: {len(held)}, handles: {report.handles}, blocks: {report.blocks}, pools: {report.pools}"
    terminal.show_lines([f"{counts}, revision: {report.revision}"])
    tables = [
        *([Table(FOUND, tuple(map(_cells, mended.done)), title="mended")] if mended and mended.done else []),
        *([Table(FOUND, _found(report.findings, every=every))] if report.findings else []),
        *([_nodes(report)] if report.stocks else []),
        *([Table(ALL, tuple(_all(report)))] if addresses and held else []),
    ]
    for table in tables:
        print()
        terminal.show(table)
    for note in report.notes:
        terminal.tell(note)
    for identity, why in (mended.refused if mended else {}).items():
        terminal.tell(f"{identity[1]} was not mended: {why}")
    terminal.tell(_verdict(checked))


def _verdict(checked: Checked) -> str:
    count = len(checked.report.findings)
    if checked.mended is not None:
        return f"{len(checked.mended.done)} mended, {count} left"
    if not count:
        return "nothing is wrong"
    certain = sum(each.step is not None for each in checked.report.findings)
    return f"{count} found" + (f"; `muslin ipam check --fix` mends {certain} of them" if certain else "")


def _found(findings: Sequence[Finding], *, every: bool) -> tuple[tuple[str, ...], ...]:
    """A row for each finding; the first of each class, and how many more, unless all are asked for."""
    total = Counter(each.fault for each in findings)
    shown: Counter[str] = Counter()
    rows: list[tuple[str, ...]] = []
    for each in findings:
        shown[each.fault] += 1
        if every or shown[each.fault] <= SHOWN:
            rows.append(_cells(each))
        elif shown[each.fault] == SHOWN + 1:
            rows.append((each.fault, f"{total[each.fault] - SHOWN} more", "", "--show-problem-ips shows all", ""))
    return tuple(rows)


def _cells(each: Finding) -> tuple[str, ...]:
    return each.fault, each.what, each.who or "-", each.why, f"--fix: {each.remedy}" if each.step else each.remedy


def _nodes(report: Report) -> Table:
    rows = tuple((stock.node, str(stock.addresses)) for stock in report.stocks[:SHOWN])
    return Table(NODES, (*rows, (f"(median of {len(report.stocks)})", f"{report.median:g}")))


def _all(report: Report) -> Iterator[tuple[str, ...]]:
    for given, used in report.allocations:
        cidr = given.block.resource.spec.cidr
        yield str(given.address), "yes" if used else "no", given.node or "-", cidr, given.handle


def _mended(mended: Mended) -> dict[str, Any]:
    return {
        "done": [{"fault": each.fault, "what": each.what, "who": each.who} for each in mended.done],
        "refused": [{"fault": fault, "what": what, "why": why} for (fault, what, _), why in mended.refused.items()],
    }
