"""bgp status: every session of every node, on one page."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from cli import cluster, options, store, terminal
from cli.cluster import NodeReport, Overview, bgp_table, overview, plain, speaker_wrong
from cli.render import Table, age
from core.errors import NotFound
from core.resources import Node, SpeakerStatus
from core.resources.status import SessionState

HEAD: Final = ("NODE", "PEER", "FROM", "AS", "STATE", "SINCE", "FLAPS", "IN", "OUT", "HOLD", "BFD", "WHY")

OneNodeOption = Annotated[str | None, typer.Option("--node", help="Only of this node.")]


def status(
    node: OneNodeOption = None,
    output: options.ResultOption = options.ResultFormat.TEXT,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when anything is not right.")] = False,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Every BGP session of every node: where it comes from, its state, flaps, last error, prefixes in and out."""
    page = asyncio.run(_read(datastore, node))
    if output is options.ResultFormat.JSON:
        terminal.show_json(document(page))
    else:
        terminal.show(*tables(page))
    if check and wrong(page):
        raise typer.Exit(1)


async def _read(target: str, node: str | None) -> Overview:
    async with store.opened(target) as opened:
        state = await store.read(opened, {Node.KIND, SpeakerStatus.KIND})
    page = overview(state.objects.values(), state.revision, datetime.now(UTC))
    if node is None:
        return page
    chosen = tuple(each for each in page.nodes if each.node == node)
    if not chosen:
        raise NotFound(f"there is no node {node}; `muslin get nodes` lists them")
    return Overview(revision=page.revision, at=page.at, nodes=chosen)


def wrong(page: Overview) -> list[tuple[str, str]]:
    """What a person should see: node ("-" for the cluster) and sentence."""
    told = [(each.node, sentence) for each in page.nodes for sentence in speaker_wrong(each.speaker)]
    return [*(("-", sentence) for sentence in page.wrong), *told]


def tables(page: Overview) -> list[Table]:
    """Nodes, sessions, and, when there is anything to say, what is not right."""
    rows = tuple(
        (report.node, *_cells(session, page.at, silent=report.speaker.seen.silent))
        for report in page.nodes
        if report.speaker
        for session in report.speaker.state.sessions
    )
    found = [_nodes(page), Table(HEAD, rows), Table(("NODE", "NOT RIGHT"), tuple(wrong(page)))]
    return [table for table in found if table.rows]


def _nodes(page: Overview) -> Table:
    table = bgp_table(page)
    kept = [each.speaker.state.maintenance if each.speaker else "" for each in page.nodes]
    if not any(kept):
        return table
    return Table((*table.head, "MAINTENANCE"), tuple((*row, said) for row, said in zip(table.rows, kept, strict=True)))


def _cells(session: SessionState, now: datetime, *, silent: bool) -> tuple[str, ...]:
    taken = f"{session.accepted}/{session.received}" if session.refused else f"{session.received}"
    told = session.advertised if session.state == cluster.ESTABLISHED else 0
    to_tell = session.advertised - told + session.pending
    return (
        session.peer,
        session.name,
        str(session.as_number),
        f"{session.state} (silent)" if silent else session.state,
        age(session.since, now),
        str(session.flaps),
        taken,
        f"{told}" + (f"+{to_tell}" if to_tell else ""),
        f"{session.hold_s}s" if session.hold_s else "-",
        session.bfd or "-",
        _why(session, now),
    )


def _why(session: SessionState, now: datetime) -> str:
    """Why it is not up; or what stands against it although it is, its last error with its age behind it."""
    if session.state != cluster.ESTABLISHED:
        return session.reason
    refused = [f"{count} refused: {cause}" for cause, count in session.refused.items() if cause != "ours"]
    error = [f"{age(session.last_error_at, now)} ago: {session.last_error}"] if session.last_error else []
    return "; ".join([*session.warnings, *refused, *error])


def document(page: Overview) -> dict[str, Any]:
    """The page for programs: the agents' reports under their manifests' field names, every session whole."""
    return {
        "right": not wrong(page),
        "wrong": list(page.wrong),
        "nodes": [_node(report) for report in page.nodes],
    }


def _node(report: NodeReport) -> dict[str, Any]:
    said = plain(report.speaker)
    if report.speaker is not None:
        said["sessions"] = [cluster.whole(session) for session in report.speaker.state.sessions]
    return {"node": report.node, "bgp": said, "wrong": list(speaker_wrong(report.speaker))}
