"""node drain, node uncordon: take a node out of traffic before it is stopped, and back into it.

    drain     GracefulShutdown ── told? ── --wait ──> Withdrawn ── told? ──> safe to stop
              (who has another way takes it)          (nobody is sent here any more)
    uncordon  neither ── told? ──> back

What is wanted stands in the Node (`spec.bgp.maintenance`): given again, an interrupted drain goes on where it was, and
an agent that restarts meanwhile tells the same. What has been told is read from the node's status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from msgspec.structs import replace

from cli import options, store, terminal
from cli.cluster import AgentReport, overview
from core.errors import Conflict, Invalid, MuslinError, NotFound, Problem
from core.resources import Node, SpeakerStatus
from core.resources.status import SpeakerState
from core.values import duration
from datastore import objects
from datastore.api import Changes, Store

GRACEFUL: Final = "GracefulShutdown"
WITHDRAWN: Final = "Withdrawn"

ATTEMPTS: Final = 4
"""How often a Node is read again when somebody else wrote it in between."""

ON_THE_WIRE_S: Final = 1.0
"""What ExaBGP has acknowledged may still be on its way to the peers."""

TimeoutOption = Annotated[
    float, typer.Option(help="How many seconds the node's bgp may take to tell its peers.", min=0)
]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")]


def drain(
    name: NodeArgument,
    wait: Annotated[str, typer.Option(help="How long others have to move their traffic: 10s, 2m.")] = "10s",
    timeout: TimeoutOption = 60.0,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Have the node's speaker ask that traffic go elsewhere, wait, and withdraw everything: then it is safe to stop."""
    asyncio.run(_drain(name, _seconds(wait), timeout, datastore))
    terminal.show_lines([f"{name} is drained: safe to stop"])


def uncordon(
    name: NodeArgument, timeout: TimeoutOption = 60.0, datastore: options.DatastoreOption = options.DATASTORE
) -> None:
    """Take a drained node back: its speaker tells everything again."""
    asyncio.run(_uncordon(name, timeout, datastore))
    terminal.show_lines([f"{name} tells its prefixes again"])


def _seconds(text: str) -> float:
    try:
        return float(duration(text))
    except ValueError as error:
        raise Invalid([Problem(why=f"{error}; give it as in 10s or 2m", what="--wait")]) from error


async def _drain(name: str, wait_s: float, timeout_s: float, target: str) -> None:
    async with store.opened(target) as opened:
        node, _ = await _node(opened, name)
        _require_alive(name, await _report(opened, name))
        if _maintenance(node) != WITHDRAWN:
            await _change(opened, name, GRACEFUL, timeout_s)
            terminal.tell(f"{name} asks its peers to send traffic elsewhere; they have {wait_s:g} s")
            await asyncio.sleep(wait_s)
        await _change(opened, name, WITHDRAWN, timeout_s)
        await asyncio.sleep(ON_THE_WIRE_S)


async def _uncordon(name: str, timeout_s: float, target: str) -> None:
    async with store.opened(target) as opened:
        await _change(opened, name, "", timeout_s)


async def _node(opened: Store, name: str) -> tuple[Node, int]:
    """The Node, which must be one that can tell anything, and the revision of its last change."""
    found = await objects.read(opened, Node, name)
    if found is None:
        raise NotFound(f"there is no node {name}; `muslin get nodes` lists them")
    if found[0].spec.bgp is None:
        raise Invalid([Problem(what=f"Node/{name}", path="spec.bgp", why="is not there: it tells nobody anything")])
    return found


def _maintenance(node: Node) -> str:
    return node.spec.bgp.maintenance if node.spec.bgp else ""


async def _change(opened: Store, name: str, maintenance: str, timeout_s: float) -> None:
    """Set it, and wait until the node's peers have been told."""
    revision = await _set(opened, name, maintenance)
    state: SpeakerState | None = None
    bound = asyncio.timeout(timeout_s)
    try:
        async with bound, aclosing(_states(opened, name)) as states:
            async for state in states:
                if _done(state, revision, maintenance):
                    return
    except TimeoutError:
        if not bound.expired():
            raise
    _require_alive(name, await _report(opened, name))
    why = "; ".join(state.problems) if state and state.problems else "`muslin bgp status` may say why"
    what = "withdrawn everything" if maintenance == WITHDRAWN else "told its peers"
    raise MuslinError(f"after {timeout_s:g} s bgp on {name} has not {what}: {why}. Give the command again to go on")


def _done(state: SpeakerState, revision: int, maintenance: str) -> bool:
    if state.told < revision or state.maintenance != maintenance or state.pending:
        return False
    return maintenance != WITHDRAWN or not any(session.advertised for session in state.sessions)


async def _set(opened: Store, name: str, maintenance: str) -> int:
    """The revision at which the Node says so."""
    for attempt in range(1, ATTEMPTS + 1):
        node, revision = await _node(opened, name)
        if node.spec.bgp is None or node.spec.bgp.maintenance == maintenance:
            return revision
        after = replace(node, spec=replace(node.spec, bgp=replace(node.spec.bgp, maintenance=maintenance)))
        try:
            return await objects.write(opened, after, revision)
        except Conflict:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


async def _states(opened: Store, name: str) -> AsyncGenerator[SpeakerState, None]:
    """What the node's speaker reports, now and whenever it changes, for ever."""
    while True:
        listed = (await opened.list({SpeakerStatus.KIND})).revision
        if found := await objects.read(opened, SpeakerStatus, name):
            yield found[0].status
        async with aclosing(opened.watch(listed, {SpeakerStatus.KIND})) as items:
            async for item in items:
                events = item.events if isinstance(item, Changes) else ()
                if any(event.key.name == name for event in events):
                    break


async def _report(opened: Store, name: str) -> AgentReport[SpeakerState] | None:
    """The speaker's last report, with its age held against all others'."""
    state = await store.read(opened, {Node.KIND, SpeakerStatus.KIND})
    page = overview(state.objects.values(), state.revision, datetime.now(UTC))
    return next((each.speaker for each in page.nodes if each.node == name), None)


def _require_alive(name: str, report: AgentReport[SpeakerState] | None) -> None:
    """A speaker that says nothing withdraws nothing."""
    remedy = "its peers keep its routes until their hold time has passed, or their restart time: see docs/bgp.md"
    if report is None:
        raise MuslinError(
            f"bgp on {name} has never reported, so it can withdraw nothing; does `muslin node` run there?"
        )
    if report.seen.silent:
        raise MuslinError(f"{report.seen.wrong('bgp')} ({name}): it can withdraw nothing; {remedy}")
