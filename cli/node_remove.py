"""node remove: the end of a node whose machine is gone for good.

    what is its   ── shown ── confirmed ──> endpoints, addresses, blocks, claims ──> Node, and what its agents reported
    its agents    ── heard of lately? ── refused, but for --force

What is on the machine itself, if there still is one, is `node cleanup`'s.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from cli import ipam_read, options, store, terminal
from cli.cluster import NodeReport, overview
from cli.render import Table, span
from core.errors import Conflict, Invalid, MuslinError, NotFound, Problem
from core.names import Key
from core.resources import FelixStatus, IPAMBlock, Node, SpeakerStatus
from core.resources.status import SILENT_AFTER_S
from datastore.api import Delete, Operation, Store
from datastore.ipam.collecting.departure import Departure, departure, next_step
from datastore.ipam.listing.holders import Held
from datastore.ipam.writing import operations

ROUNDS: Final = 2000
"""Transactions until a node that somebody goes on filling is left as it is."""

HEAD: Final = ("WHAT", "NAME", "ADDRESSES")


def remove(
    name: Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if the node's agents live: its pods' addresses go to others.")
    ] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Remove a node whose machine is gone for good: its pods' endpoints, their addresses, its blocks, its Node."""
    gone = asyncio.run(_remove(name, datastore, yes=yes, force=force, quiet=output is options.ResultFormat.JSON))
    if output is options.ResultFormat.JSON:
        terminal.show_json(_document(gone))
    else:
        terminal.show_lines([f"node/{name} removed"])


async def _remove(name: str, target: str, *, yes: bool, force: bool, quiet: bool) -> Departure:
    async with store.opened(target) as opened:
        report, scene = await _report(opened, name), await ipam_read.read(opened)
        going = departure(scene.uses, name)
        if report is None and going.over:
            raise NotFound(f"there is no node {name}, and nothing is its; `muslin get nodes` lists them")
        _require_possible(going)
        if not force:
            _require_dead(name, [*_alive(report), *_busy(going)])
        if not quiet:
            terminal.show(Table(HEAD, tuple(_rows(going))))
        if not yes:
            await asyncio.to_thread(_confirm, name)
        await _carry_out(opened, name)
        return going


async def _carry_out(opened: Store, name: str) -> None:
    """Everything, then the Node; what is written meanwhile is read and goes too."""
    for _ in range(ROUNDS):
        scene = await ipam_read.read(opened)
        going = departure(scene.uses, name)
        _require_possible(going)
        try:
            if going.over:
                await opened.txn(await _rest(opened, name))
                return
            step = next_step(going, scene.seen, datetime.now(UTC))
            await opened.txn(operations(step.changes), step.guards)
        except Conflict:
            continue
    raise MuslinError(f"something goes on writing what is {name}'s; end its agents, and give the command again")


async def _rest(opened: Store, name: str) -> list[Operation]:
    """The Node and its agents' reports, as far as they are there."""
    listing = await opened.list({Node.KIND, FelixStatus.KIND, SpeakerStatus.KIND})
    return [
        Delete(entry.key, entry.revision if entry.key.kind == Node.KIND else None)
        for entry in listing.entries
        if entry.key.name == name
    ]


async def _report(opened: Store, name: str) -> NodeReport | None:
    """What is known of the node and its agents; None when there is none."""
    state = await store.read(opened, {Node.KIND, FelixStatus.KIND, SpeakerStatus.KIND})
    page = overview(state.objects.values(), state.revision, datetime.now(UTC))
    found = next((each for each in page.nodes if each.node == name), None)
    if found is None and Key(Node.KIND, "", name) in state.unreadable:
        return NodeReport(node=name, felix=None, speaker=None, wrong=())
    return found


def _alive(report: NodeReport | None) -> Iterator[str]:
    """What says that an agent of the node may live."""
    if report is None:
        return
    for agent, said in (("felix", report.felix), ("bgp", report.speaker)):
        if said is not None and not said.seen.silent:
            age = said.seen.age_s
            told = age is not None and not said.seen.ahead
            yield f"{agent} reported {span(age)} ago" if told and age is not None else said.seen.wrong(agent)


def _busy(going: Departure) -> Iterator[str]:
    """What says that its CNI agent may live: it has just given an address."""
    now = datetime.now(UTC)
    for holder in going.holders:
        since = holder.object.resource.spec.since if holder.object is not None else ""
        if since and abs((now - datetime.fromisoformat(since)).total_seconds()) <= SILENT_AFTER_S:
            yield f"{holder.text} was given its addresses at {since}"


def _require_dead(name: str, signs: list[str]) -> None:
    if signs:
        more = f" (and {len(signs) - 1} more signs of life)" if len(signs) > 1 else ""
        why = f"{signs[0]}{more}: end its agents first, and wait {SILENT_AFTER_S:g} s. With --force it is removed all"
        raise MuslinError(f"node {name} may live: {why} the same, and others may be given addresses that its pods use")


def _require_possible(going: Departure) -> None:
    if going.obstacles:
        raise Invalid([Problem(what=f"Node/{going.node}", why=why) for why in going.obstacles])


def _confirm(name: str) -> None:
    if not sys.stdin.isatty():
        raise Invalid([Problem(what=f"Node/{name}", why="nothing has been removed; --yes removes all of this")])
    if not typer.confirm(f"Remove node {name} and all of this?", err=True):
        raise MuslinError("nothing has been removed")


def _rows(going: Departure) -> Iterator[tuple[str, ...]]:
    for held in going.endpoints:
        key, spec = held.resource.key, held.resource.spec
        yield "endpoint", f"{key.namespace}/{key.name}", ", ".join(map(str, spec.addresses))
    for holder in going.holders:
        yield "handle", holder.text, ", ".join(map(str, holder.addresses))
    for block in going.blocks:
        stay = len(_lent(going, block))
        yield "block", block.resource.spec.cidr, f"becomes nobody's: {stay} stay with other nodes" if stay else ""
    yield "node", going.node, ""


def _lent(going: Departure, block: Held[IPAMBlock]) -> list[str]:
    """The addresses of a block that are in use on other nodes."""
    spec = block.resource.spec
    return [address for address in spec.allocations if spec.borrowers.get(address, spec.node) != going.node]


def _document(gone: Departure) -> dict[str, Any]:
    return {
        "node": gone.node,
        "endpoints": [f"{each.resource.key.namespace}/{each.resource.key.name}" for each in gone.endpoints],
        "handles": [
            {"handle": each.text, "addresses": [str(address) for address in each.addresses]} for each in gone.holders
        ],
        "blocks": [each.resource.spec.cidr for each in gone.blocks],
    }
