"""plan: what an apply, or a delete, would change in who may talk to whom; nothing is written.

0  nothing flips
1  refused, as `apply` would refuse it, or failed
2  something flips
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import options, store, terminal
from cli.changes import Outcome, Verb
from cli.changes import plan as changes_of
from cli.kinds import reference
from cli.objects import load, told_where
from cli.watching import FOLLOWED
from core import admission
from core.errors import Invalid, MuslinError, Problem
from core.names import Key, Kind
from core.resources import Resource
from core.snapshot import Snapshot

if TYPE_CHECKING:
    from linux.conntrack import Flow
    from policy.whatif.ends import Crowds, Member
    from policy.whatif.plan import Connection, Cut, Flip, Plan

FLIPS: Final = 2
"""The exit code that says that something flips."""

MOST_SHOWN: Final = 20
"""Connections that are told one by one; `-o json` has all."""


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command("plan")(plan)


def plan(
    filename: options.FilesOption,
    delete: Annotated[bool, typer.Option("--delete", help="What deleting these objects would change.")] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Say who could talk to whom after an apply and cannot now, or the other way about; exit 2 when anyone.

    Nothing is written. What `apply` would refuse is refused.
    """
    found = load(filename)
    with told_where(found):
        before, after = asyncio.run(_states(datastore, [each.resource for each in found], delete))
    from policy.whatif.ends import Crowds
    from policy.whatif.plan import plan as planned

    live = _Live()
    result = planned(before, after, live.connections(), terminal.tell)
    if output is options.ResultFormat.JSON:
        terminal.show_json(document(result, Crowds(after), live.unread))
    else:
        terminal.show_lines(list(lines(result, Crowds(after))))
        if live.read and not live.unread:
            terminal.tell(
                f"live connections that would be cut: {len(result.cuts)} of this host's; others' are not read"
            )
        elif live.unread:
            terminal.tell(f"whether live connections would be cut is not known: {live.unread}")
    if not result.clean:
        raise typer.Exit(FLIPS)


async def _states(target: str, given: Sequence[Resource], delete: bool) -> tuple[Snapshot, Snapshot]:
    """What felix decides on, as it is and as it would be; refused where the server would refuse the change."""
    async with store.opened(target) as opened:
        state = await store.read(opened)
    changes = _deleted(state, given) if delete else _applied(state, given)
    problems = admission.check(changes, _existing(state, admission.needs(changes)))
    if problems:
        raise Invalid(problems)
    followed = [(key, stored.resource) for key, stored in state.objects.items() if key.kind in FOLLOWED]
    unreadable = [(key, why) for key, why in state.unreadable.items() if key.kind in FOLLOWED]
    before = Snapshot().apply(state.revision, [*followed, *unreadable])
    after = before.apply(state.revision, [(key, each) for key, each in changes.items() if key.kind in FOLLOWED])
    return before, after


def _applied(state: store.State, given: Sequence[Resource]) -> dict[Key, Resource | None]:
    planned = changes_of(Verb.APPLY, given, state.objects, state.revisions, datetime.now(UTC))
    return {change.key: change.resource for change in planned if change.outcome is not Outcome.UNCHANGED}


def _deleted(state: store.State, given: Sequence[Resource]) -> dict[Key, Resource | None]:
    missing = [each.key for each in given if each.key not in state.revisions]
    if missing:
        raise Invalid([Problem(what=str(key), why="there is none") for key in missing])
    return {each.key: None for each in given}


def _existing(state: store.State, kinds: frozenset[Kind]) -> dict[Kind, dict[Key, Resource | None]]:
    existing: dict[Kind, dict[Key, Resource | None]] = {kind: {} for kind in kinds}
    for key in state.revisions:
        if key.kind in kinds:
            stored = state.objects.get(key)
            existing[key.kind][key] = None if stored is None else stored.resource
    return existing


@dataclass(slots=True)
class _Live:
    """The connections of this host, `read` when somebody asks for them; `unread` says why they could not be."""

    read: bool = False
    unread: str = ""

    def connections(self) -> Iterator[Connection]:
        """Each one that the kernel tracks here."""
        from linux.conntrack import Conntrack

        self.read = True
        try:
            with Conntrack() as table:
                yield from map(connection, table.flows())
        except (OSError, MuslinError) as error:
            self.unread = f"{error}; run it as root on a node to learn of those that pass there"


def connection(flow: Flow) -> Connection:
    """A tracked flow as policy sees it: where its packets come from, and where they really go."""
    from policy.whatif.plan import Connection

    sent, answered = flow.original, flow.reply
    return Connection(
        source=sent.source,
        destination=answered.source,
        protocol=sent.protocol,
        sport=None if sent.icmp else sent.sport,
        dport=None if sent.icmp else answered.sport,
        icmp=None if sent.icmp is None else sent.icmp[1:],
    )


def lines(plan: Plan, crowds: Crowds) -> Iterator[str]:
    """The plan in words."""
    from policy.whatif.plan import cause

    for flip in plan.flips:
        yield f"{said(flip, crowds)}: {flip.before.verdict} -> {flip.after.verdict} by {cause(flip.after.reason)}"
        yield f"    before: {flip.before.verdict} by {cause(flip.before.reason)}"
    for word, keys in (("would be new", plan.added), ("would go", plan.removed)):
        yield from (f"{reference(key)} {word}" for key in keys[:MOST_SHOWN])
        if len(keys) > MOST_SHOWN:
            yield f"... and {len(keys) - MOST_SHOWN} endpoints more {word}"
    yield from (f"{reference(key)}: {why}" for key, why in plan.problems.items())
    yield from (
        f"{reference(key)}: its policy would be another; what a host decides is not compared" for key in plan.hosts
    )
    if plan.cuts:
        yield "live connections of this host that would be cut:"
        yield from (f"    {cut.connection} by {cause(cut.after.reason)}" for cut in plan.cuts[:MOST_SHOWN])
        if len(plan.cuts) > MOST_SHOWN:
            yield f"    ... and {len(plan.cuts) - MOST_SHOWN} more"
    if plan.left_out:
        yield f"{plan.left_out} pairs of kinds of ends were too many to compare: more may flip"
    yield "nothing flips" if plan.clean else f"pairs of ends that flip: {sum(flip.pairs for flip in plan.flips)}"


def said(flip: Flip, crowds: Crowds) -> str:
    """Who, to whom, by what: `8 pods of shop app=web -> shop/db tcp/5432`."""
    from policy.whatif.traffic import summary

    return f"{crowds.name(flip.sources)} -> {crowds.name(flip.destinations)} {summary(flip.traffic)}"


def document(plan: Plan, crowds: Crowds, unread: str) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "clean": plan.clean,
        "flips": [_flip(each, crowds) for each in plan.flips],
        "cuts": [_cut(each) for each in plan.cuts],
        "connectionsUnread": unread,
        "added": [reference(key) for key in plan.added],
        "removed": [reference(key) for key in plan.removed],
        "problems": {reference(key): why for key, why in plan.problems.items()},
        "leftOut": plan.left_out,
        "hosts": [reference(key) for key in plan.hosts],
    }


def _flip(flip: Flip, crowds: Crowds) -> dict[str, Any]:
    from cli import reasons

    return {
        "text": said(flip, crowds),
        "pairs": flip.pairs,
        "families": list(flip.families),
        "from": [_member(each, crowds) for each in flip.sources],
        "to": [_member(each, crowds) for each in flip.destinations],
        "traffic": [each.document() for each in flip.traffic],
        "before": reasons.document(flip.before),
        "after": reasons.document(flip.after),
    }


def _member(member: Member, crowds: Crowds) -> dict[str, Any]:
    if isinstance(member, Key):
        return {"name": crowds.name([member]), "endpoint": reference(member)}
    return {"name": str(member), "family": member.family, "nets": list(map(str, member.nets))}


def _cut(cut: Cut) -> dict[str, Any]:
    from cli import reasons

    live = cut.connection
    return {
        "text": str(live),
        "source": str(live.source),
        "destination": str(live.destination),
        "protocol": live.protocol,
        "sourcePort": live.sport,
        "destinationPort": live.dport,
        "before": reasons.document(cut.before),
        "after": reasons.document(cut.after),
    }
