"""bgp routes, bgp adverts: what any node's speaker hears and uses, and why; and what it tells. From anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
import typer

from cli import options, terminal
from cli.bgp_ask import Answers, ask
from cli.bgp_status import OneNodeOption
from cli.render import Table
from core.errors import Invalid, Problem
from core.resources.node_status import NodeStatus, PathStatus, RouteStatus
from core.values import network_or_address

TIMEOUT_S: Final = 10.0

FIB: Final = "FIB"
WITHDRAWN: Final = "withdrawn"

PrefixArgument = Annotated[
    str | None, typer.Argument(metavar="PREFIX", help="Only routes to it, to parts of it, and to what holds it.")
]
TimeoutOption = Annotated[float, typer.Option(help="How many seconds the nodes have to answer.", min=0)]


def routes(
    prefix: PrefixArgument = None,
    node: OneNodeOption = None,
    why: Annotated[
        bool, typer.Option("--why", help="Every path that is known, with what became of it and why.")
    ] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    timeout: TimeoutOption = TIMEOUT_S,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """The routes that nodes have learnt over BGP, and, with --why, the reason for each choice."""
    answers = asyncio.run(ask(datastore, node, ["Routes"], _checked(prefix), timeout))
    if output is options.ResultFormat.JSON:
        _show_json(answers)
    else:
        rows = [row for name, said in sorted(answers.said.items()) for row in (_paths if why else _used)(name, said)]
        head = WHY if why else USED
        if rows:
            terminal.show(Table(head, tuple(rows)))
        elif answers.said:
            terminal.tell(f"no route to {prefix} is known" if prefix else "no route is known")
    _end(answers)


def adverts(
    node: OneNodeOption = None,
    peer: Annotated[str | None, typer.Option("--peer", help="Only what this peer is told, by its address.")] = None,
    prefix: PrefixArgument = None,
    output: options.ResultOption = options.ResultFormat.TEXT,
    timeout: TimeoutOption = TIMEOUT_S,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """What nodes tell their peers: each prefix with its attributes, and whether ExaBGP has acknowledged it; and own
    prefixes that a peer is not told, with why."""
    answers = asyncio.run(ask(datastore, node, ["Adverts"], _checked(prefix), timeout))
    if output is options.ResultFormat.JSON:
        _show_json(answers)
    else:
        rows = [
            row for name, said in sorted(answers.said.items()) for row in _told(name, said) if peer in (None, row[1])
        ]
        if rows:
            terminal.show(Table(TOLD, tuple(rows)))
        elif answers.said:
            terminal.tell("nobody is told anything" if peer is None else f"{peer} is told nothing")
    _end(answers)


def _checked(prefix: str | None) -> str:
    try:
        return str(network_or_address(prefix)) if prefix else ""
    except ValueError as error:
        raise Invalid([Problem(what=prefix or "", why=str(error))]) from error


USED: Final = ("NODE", "PREFIX", "NEXT HOP", "DEVICE", "FROM", "WHY")
WHY: Final = ("NODE", "PREFIX", "FROM", "STATE", "NEXT HOP", "AS PATH", "PREF", "MED", "ORIGIN", "COMMUNITIES", "WHY")
TOLD: Final = ("NODE", "PEER", "PREFIX", "STATE", "NEXT HOP", "AS PATH", "PREF", "MED", "ORIGIN", "COMMUNITIES", "WHY")


def _all(said: NodeStatus) -> list[RouteStatus]:
    return [*said.routes.routes_v4, *said.routes.routes_v6] if said.routes else []


def _used(node: str, said: NodeStatus) -> Iterator[tuple[str, ...]]:
    """The kernel's routes; and once each, with the reason, prefixes that are heard and have none."""
    every = _all(said)
    reasons = {each.destination: each.reason for each in reversed(every) if each.type != FIB}
    routed = {each.destination for each in every if each.type == FIB}
    missing = {each.destination for each in every if each.type != FIB and each.state != WITHDRAWN} - routed
    for each in every:
        if each.type == FIB:
            why = each.reason or reasons.get(each.destination, "")
            yield node, each.destination, each.gateway or "-", each.interface, _from(each), why
        elif each.destination in missing:
            missing.discard(each.destination)
            yield node, each.destination, "-", "-", _from(each), f"{each.state}: {each.reason}"


def _paths(node: str, said: NodeStatus) -> Iterator[tuple[str, ...]]:
    for each in _all(said):
        if each.type != FIB:
            yield node, each.destination, _from(each), each.state, *_attributes(each.path), each.reason
        elif each.learned_from is None:  # no peer tells it
            yield node, each.destination, "-", "in the kernel", each.gateway or "-", *"-----", each.reason


def _told(node: str, said: NodeStatus) -> Iterator[tuple[str, ...]]:
    for each in said.adverts or ():
        yield node, each.peer_ip, each.destination, each.state, *_attributes(each.path), each.reason


def _from(route: RouteStatus) -> str:
    return route.learned_from.peer_ip if route.learned_from else "-"


def _attributes(path: PathStatus | None) -> tuple[str, ...]:
    if path is None:
        return tuple("------")
    return (
        path.next_hop,
        " ".join(map(str, path.as_path)) or "-",
        "-" if path.local_pref is None else str(path.local_pref),
        "-" if path.med is None else str(path.med),
        path.origin,
        " ".join(path.communities) or "-",
    )


def _show_json(answers: Answers) -> None:
    said: Mapping[str, Any] = {name: msgspec.to_builtins(each) for name, each in answers.said.items()}
    terminal.show_json({"nodes": said, "silent": dict(answers.silent)})


def _end(answers: Answers) -> None:
    """Say what is missing from the answer; exit 1 when a node has not answered."""
    for name, said in sorted(answers.said.items()):
        if said.reason:
            terminal.tell(f"{name}: {said.reason}; give a PREFIX to see others")
    for name, why in sorted(answers.silent.items()):
        terminal.tell(f"{name}: {why}")
    if answers.silent:
        raise typer.Exit(1)
