"""bgp diff: what the nodes' speakers miss, joined: for each prefix, how far it came and who has it. Pure, but for the
command itself.

    owner: told? ──> another node: heard? taken? ──> its kernel: routed?       each audited by the node it happens on

A node audits itself all the time and reports what has been wrong for some seconds; here only the reports are read. So
what one node misses can be held against what its owner says it told, and against what everybody else has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Final

import typer

from cli import options, store, terminal
from cli.cluster import ESTABLISHED, NodeReport, Overview, overview
from cli.render import Table
from core.resources import Node, SpeakerStatus
from core.resources.status import Difference, SpeakerState
from datastore.api import Store

NAMED: Final = 5
"""How many nodes a sentence names; it counts the others."""

SECOND_LOOK_S: Final = 3.0

TOLD: Final = "told"
HEARD: Final = "heard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """One prefix that is not where it should be: of whom, at which nodes it is wrong, and where it was last seen."""

    prefix: str
    owner: str
    at: tuple[str, ...]
    stage: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The whole cluster's differences. `unknown` says of which nodes nothing is known, and why; `unnamed` counts
    differences that reports count and do not name; nodes that are `converging` do not look yet."""

    lost: tuple[Lost, ...]
    unknown: Mapping[str, str]
    unnamed: int
    converging: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether everything that is known is where it should be, and everything is known."""
        return not self.lost and not self.unknown and not self.unnamed


def diff(
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Prefixes that are not told, not heard, or not routed as they should be, cluster-wide; exit 1 if there are any."""
    found = asyncio.run(_compare(datastore))
    if output is options.ResultFormat.JSON:
        terminal.show_json(
            {
                "same": found.same,
                "differences": [asdict(each) for each in found.lost],
                "unnamed": found.unnamed,
                "unknown": dict(found.unknown),
                "converging": list(found.converging),
            }
        )
    elif found.same:
        terminal.show_lines(["every prefix is told, heard and routed as it should be"])
    else:
        terminal.show(*tables(found))
    if found.converging:
        terminal.tell(f"not ready yet, so not compared in full: {_listed(found.converging)}")
    if not found.same:
        raise typer.Exit(1)


async def _compare(target: str) -> Comparison:
    """What differs. Nodes do not look at the same moment, so what is found is looked at a second time: who has not
    reported it by then has what others miss."""
    async with store.opened(target) as opened:
        found = compare(await _read(opened))
        if found.lost:
            await asyncio.sleep(SECOND_LOOK_S)
            found = compare(await _read(opened))
    return found


async def _read(opened: Store) -> Overview:
    state = await store.read(opened, {Node.KIND, SpeakerStatus.KIND})
    return overview(state.objects.values(), state.revision, datetime.now(UTC))


def tables(found: Comparison) -> list[Table]:
    """The differences, then the nodes of which nothing is known."""
    rows = tuple((each.prefix, each.owner or "-", _listed(each.at), each.why) for each in found.lost)
    rows += (("...", "-", "-", f"and {found.unnamed} more that the reports do not name"),) if found.unnamed else ()
    unknown = Table(("NODE", "NOT KNOWN"), tuple(found.unknown.items()))
    return [table for table in (Table(("PREFIX", "OF", "WRONG AT", "WHY"), rows), unknown) if table.rows]


def compare(page: Overview) -> Comparison:
    """The differences of all reports, those of one prefix and one cause in one."""
    nodes = {report.node: report for report in page.nodes}
    unknown = {name: why for name, report in nodes.items() if (why := _unknown(report))}
    states = {name: r.speaker.state for name, r in nodes.items() if r.speaker is not None and name not in unknown}
    wrong: dict[tuple[str, str, str, str], list[str]] = {}
    for node, difference in _reported(states):
        owner = difference.node or node
        why = _why(difference, node, states, unknown)
        wrong.setdefault((difference.prefix, owner, difference.stage, why), []).append(node)
    lost = [
        Lost(prefix=prefix, owner=owner, at=tuple(sorted(at)), stage=stage, why=why)
        for (prefix, owner, stage, why), at in wrong.items()
    ]
    unnamed = sum(state.different - len(state.differences) for state in states.values())
    converging = tuple(name for name, state in states.items() if not state.ready)
    return Comparison(lost=tuple(sorted(lost, key=_order)), unknown=unknown, unnamed=unnamed, converging=converging)


def _unknown(report: NodeReport) -> str:
    if report.speaker is None:
        return "its bgp has never reported"
    if report.speaker.seen.silent:
        return report.speaker.seen.wrong("bgp")
    if report.speaker.state.stale:
        return "its bgp cannot reach the datastore and works from its last snapshot"
    return ""


def _reported(states: Mapping[str, SpeakerState]) -> Iterator[tuple[str, Difference]]:
    """What each node says; a prefix that its owner has not told is not said again by all those who do not hear it."""
    for node, state in states.items():
        for each in state.differences:
            if not (each.stage == HEARD and each.node in states and _untold(each.prefix, states[each.node])):
                yield node, each


def _untold(prefix: str, owner: SpeakerState) -> bool:
    """Whether the owner itself reports that it has told nobody."""
    untold = {each.peer for each in owner.differences if each.stage == TOLD and each.prefix == prefix}
    return bool(untold) and set(_peers(prefix, owner)) <= untold


def _peers(prefix: str, state: SpeakerState) -> list[str]:
    """The established sessions that carry the prefix's family."""
    version = ip_network(prefix).version
    up = (each.peer for each in state.sessions if each.state == ESTABLISHED)
    return [peer for peer in up if ip_address(peer).version == version]


def _why(difference: Difference, node: str, states: Mapping[str, SpeakerState], unknown: Mapping[str, str]) -> str:
    """Where the prefix was last seen, as a sentence about who did not pass it on."""
    prefix, owner = difference.prefix, difference.node
    if difference.stage == TOLD:
        return f"not told to {difference.peer}: {difference.why}"
    if difference.stage != HEARD:
        return f"not routed: {difference.why}"
    if difference.why:
        return f"heard and not taken: {difference.why}"
    if not _peers(prefix, states[node]):
        return "not heard; there is no session established to hear it over"
    if owner in unknown:
        return f"not heard; of {owner}, {unknown[owner]}"
    state = states.get(owner)
    if state is None:
        return f"not heard; there is no Node {owner} to tell it"
    if not _peers(prefix, state):
        return f"not heard; {owner} has no session established to tell it over"
    if prefix not in state.routes_out:
        return f"not heard; {owner} does not tell it"
    return _unheard(prefix, owner, states)


def _unheard(prefix: str, owner: str, states: Mapping[str, SpeakerState]) -> str:
    """It was told, and does not arrive: somebody between drops it."""
    peers = _peers(prefix, states[owner])
    missing = {
        name for name, each in states.items() if any(d.stage == HEARD and d.prefix == prefix for d in each.differences)
    }
    named = {name for name, each in states.items() if each.ready and each.different == len(each.differences)}
    having = sorted(named - missing - {owner})
    has = f"{_listed(having)} has it" if len(having) == 1 else f"{_listed(having)} have it"
    return f"told by {owner} to {_listed(peers)} and not heard; " + (has if having else "nobody but its owner has it")


def _order(lost: Lost) -> tuple[int, int, int, str]:
    prefix = ip_network(lost.prefix)
    return prefix.version, int(prefix.network_address), prefix.prefixlen, lost.stage


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more
