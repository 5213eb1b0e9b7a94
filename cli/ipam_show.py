"""ipam show, ipam history: how full pools and blocks are, who holds an address now, and who did before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from cli import options, store, terminal
from cli.columns import whose
from cli.ipam_read import Scene, checked_address, read
from cli.ipam_stock import Part, address_document, blocks, borrowed, configuration, pools
from cli.render import Table
from core.addr import Address
from core.errors import Invalid, Problem
from core.manifest import decode
from core.resources import IPAMBlock, IPAMConfiguration, IPAMRecord, IPPool, IPReservation
from core.resources.ipam import RecordSpec
from datastore.api import Store

HISTORY: Final = ("SINCE", "UNTIL", "NODE", "POD", "CONTAINER", "HANDLE", "WHY")

TITLES: Final = {"usedBy": "USED BY"}

_COUNTED: Final = frozenset({IPPool.KIND, IPAMBlock.KIND, IPReservation.KIND, IPAMConfiguration.KIND})


def show(
    ip: Annotated[str | None, typer.Option("--ip", help="Only this address: who holds it, and who held it.")] = None,
    with_blocks: Annotated[bool, typer.Option("--blocks", "--show-blocks", help="Blocks as well as pools.")] = False,
    with_borrowed: Annotated[
        bool, typer.Option("--borrowed", "--show-borrowed", help="Addresses that are used on another node.")
    ] = False,
    with_configuration: Annotated[
        bool, typer.Option("--configuration", "--show-configuration", help="How addresses are given.")
    ] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """How full pools and blocks are; or one address: its holder, its block, its past."""
    if ip is not None and (with_blocks or with_borrowed or with_configuration):
        raise Invalid([Problem(why="--ip is about one address; leave the other options away")])
    address = checked_address(ip) if ip is not None else None
    scene, records = asyncio.run(_read(datastore, address))
    if address is not None:
        _show_address(scene, address, records, output)
        return
    tell_unread(scene)
    shown: dict[str, Part | None] = {
        "pools": None if with_borrowed or with_configuration else pools(scene),
        "blocks": blocks(scene) if with_blocks else None,
        "borrowed": borrowed(scene) if with_borrowed else None,
        "configuration": configuration(scene) if with_configuration else None,
    }
    if output is options.ResultFormat.JSON:
        terminal.show_json({name: part.documents for name, part in shown.items() if part is not None})
        return
    terminal.show(*_tables(shown))
    if shown["pools"] is not None and not shown["pools"].rows:
        terminal.tell("there is no IPPool here")
    if shown["borrowed"] is not None and not shown["borrowed"].rows:
        terminal.tell("no address is borrowed")


def tell_unread(scene: Scene) -> None:
    """Say what is missing in any count, because nobody can read it."""
    for key in sorted(scene.seen.unread):
        if key.kind in _COUNTED:
            terminal.tell(f"{key} cannot be read, and is not counted; `muslin ipam check` says why")


def _tables(shown: Mapping[str, Part | None]) -> Iterator[Table]:
    """Pools and their blocks in one table, the rest in tables of their own."""
    stock = [part for part in (shown["pools"], shown["blocks"]) if part is not None]
    rows = sorted((row for part in stock for row in part.rows), key=lambda row: row.order)
    if rows:
        yield Table(stock[0].head, tuple(row.cells for row in rows))
    for part in (shown["borrowed"], shown["configuration"]):
        if part is not None and part.rows:
            yield Table(part.head, tuple(row.cells for row in part.rows))


def history(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The address.")],
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Who holds an address and who held it before, the newest first."""
    given = checked_address(address)
    scene, records = asyncio.run(_read(datastore, given))
    found = [*_now(scene, given), *records]
    if output is options.ResultFormat.JSON:
        terminal.show_json({"address": str(given), "holders": [_record(each) for each in found]})
    elif found:
        terminal.show(_history(found))
    else:
        terminal.tell(f"nobody holds {given}, and no record says that anybody did")


def _show_address(scene: Scene, address: Address, records: Sequence[RecordSpec], output: options.ResultFormat) -> None:
    document = address_document(scene, address, datetime.now(UTC))
    if output is options.ResultFormat.JSON:
        terminal.show_json(document | {"history": [_record(each) for each in records]})
        return
    rows = tuple(
        (TITLES.get(name, name.upper()), _cell(value))
        for name, value in document.items()
        if value not in ("", [], None)
    )
    terminal.show(*[Table(("PROPERTY", "VALUE"), rows), *([_history(records)] if records else [])])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _history(records: Sequence[RecordSpec]) -> Table:
    rows = (
        (
            each.since or "-",
            each.until or "now",
            each.node or "-",
            whose(each),
            each.container[:12] or "-",
            each.handle_id,
            each.why,
        )
        for each in records
    )
    return Table(HISTORY, tuple(rows))


def _record(each: RecordSpec) -> dict[str, str]:
    return {
        "handleID": each.handle_id,
        "node": each.node,
        "namespace": each.namespace,
        "pod": each.pod,
        "container": each.container,
        "service": each.service,
        "since": each.since,
        "until": each.until,
        "why": each.why,
    }


def _now(scene: Scene, address: Address) -> Iterator[RecordSpec]:
    """Who holds it now, as a record that has not ended."""
    for given in scene.uses.allocations.get(address, ()):
        holder = scene.uses.holder(given)
        spec = holder.object.resource.spec if holder.object is not None else None
        yield RecordSpec(
            address=str(address),
            handle_id=given.handle,
            node=given.node,
            namespace=spec.namespace if spec else "",
            pod=spec.pod if spec else "",
            container=holder.container,
            service=spec.service if spec else "",
            since=spec.since if spec else "",
            until="",
        )


async def _read(target: str, address: Address | None) -> tuple[Scene, list[RecordSpec]]:
    async with store.opened(target) as opened:
        return await read(opened), await _records(opened, address) if address is not None else []


async def _records(opened: Store, address: Address) -> list[RecordSpec]:
    """The past of an address, the newest first."""
    found: list[RecordSpec] = []
    for entry in (await opened.list({IPAMRecord.KIND})).entries:
        try:
            record = decode(entry.key, entry.value)
        except Invalid as error:
            terminal.tell(f"left out, because it cannot be read: {error}")
            continue
        assert isinstance(record, IPAMRecord)
        if record.spec.address == str(address):
            found.append(record.spec)
    return sorted(found, key=lambda spec: (datetime.fromisoformat(spec.until), spec.since), reverse=True)
