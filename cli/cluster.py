"""The whole cluster on one page: what each node's agents report, held against what the datastore has. Pure.

A node is right when both agents have reported, are ready and not stale, felix has programmed the newest change
that concerns it, every endpoint is up (or waits for its interface), and every session is established.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from cli.render import Table, age
from core.resources import FelixStatus, Node, Resource, SpeakerStatus
from core.resources.status import EndpointState, FelixState, SessionState, SpeakerState

ESTABLISHED: Final = "Established"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One node: its agents' last words (None: never heard of), and what is not right, one sentence each."""

    node: str
    felix: FelixState | None
    speaker: SpeakerState | None
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Every node, by name. `revision` is what felix must have programmed to be up to date."""

    revision: int
    nodes: tuple[NodeReport, ...]

    @property
    def right(self) -> bool:
        """Whether nothing is wrong anywhere."""
        return not any(report.wrong for report in self.nodes)

    def behind(self) -> tuple[str, ...]:
        """The nodes whose felix has not programmed `revision` yet."""
        return tuple(each.node for each in self.nodes if each.felix is None or each.felix.programmed < self.revision)


def overview(resources: Iterable[Resource], revision: int) -> Overview:
    """The page, from every Node, FelixStatus and SpeakerStatus there is."""
    nodes: set[str] = set()
    felix: dict[str, FelixState] = {}
    speakers: dict[str, SpeakerState] = {}
    for resource in resources:
        name = resource.metadata.name
        if isinstance(resource, Node):
            nodes.add(name)
        elif isinstance(resource, FelixStatus):
            felix[name] = resource.status
        elif isinstance(resource, SpeakerStatus):
            speakers[name] = resource.status
    return Overview(
        revision=revision,
        nodes=tuple(
            NodeReport(
                node=name,
                felix=felix.get(name),
                speaker=speakers.get(name),
                wrong=(*_felix_wrong(felix.get(name), revision), *_speaker_wrong(speakers.get(name))),
            )
            for name in sorted(nodes | felix.keys() | speakers.keys())
        ),
    )


def _felix_wrong(state: FelixState | None, revision: int) -> Iterator[str]:
    if state is None:
        yield "felix has never reported"
        return
    if not state.ready:
        yield "felix is not ready"
    if state.stale:
        yield "felix cannot reach the datastore and works from its last snapshot"
    if state.programmed < revision:
        yield f"felix has programmed revision {state.programmed}, the datastore is at {revision}"
    for name, endpoint in sorted(state.endpoints.items()):
        if endpoint.state == "error":
            yield f"endpoint {name}: {endpoint.reason or 'error'}"
    yield from (f"felix: {problem}" for problem in state.problems)


def _speaker_wrong(state: SpeakerState | None) -> Iterator[str]:
    if state is None:
        yield "bgp has never reported"
        return
    if not state.ready:
        yield "bgp is not ready"
    if state.stale:
        yield "bgp cannot reach the datastore and works from its last snapshot"
    for session in state.sessions:
        if session.state != ESTABLISHED:
            why = f": {session.reason}" if session.reason else ""
            yield f"session with {session.peer} ({session.name}) is {session.state}{why}"
    yield from (f"bgp: {problem}" for problem in state.problems)


def tables(page: Overview, now: datetime) -> list[Table]:
    """What `status` shows a person: nodes, sessions, and, when there are any, what is not right."""
    wrong = tuple((report.node, sentence) for report in page.nodes for sentence in report.wrong)
    optional = (_sessions(page, now), Table(("NODE", "NOT RIGHT"), wrong))
    return [_nodes(page, now), *(table for table in optional if table.rows)]


def _nodes(page: Overview, now: datetime) -> Table:
    head = (
        "NODE",
        "FELIX",
        "PROGRAMMED",
        "ENDPOINTS",
        "ROUTES",
        "SINCE",
        "BGP",
        "AS",
        "SESSIONS",
        "IN",
        "OUT",
        "SINCE",
    )
    rows = (
        (each.node, *_felix_cells(each.felix, page.revision, now), *_bgp_cells(each.speaker, now))
        for each in page.nodes
    )
    return Table(head, tuple(rows))


def _felix_cells(state: FelixState | None, revision: int, now: datetime) -> tuple[str, ...]:
    if state is None:
        return ("no report", "-", "-", "-", "-")
    programmed = min(state.programmed, revision)  # beyond it nothing has changed that felix would program
    endpoints, routes, since = counted(state.endpoints), str(state.routes), age(state.since, now)
    return (_word(state.ready, state.stale), f"{programmed}/{revision}", endpoints, routes, since)


def _bgp_cells(state: SpeakerState | None, now: datetime) -> tuple[str, ...]:
    if state is None:
        return ("no report", "-", "-", "-", "-", "-")
    up = sum(session.state == ESTABLISHED for session in state.sessions)
    return (
        _word(state.ready, state.stale),
        str(state.as_number),
        f"{up}/{len(state.sessions)}",
        str(state.routes_in),
        str(len(state.routes_out)),
        age(state.since, now),
    )


def _sessions(page: Overview, now: datetime) -> Table:
    return Table(
        ("NODE", "PEER", "NAME", "AS", "STATE", "SINCE", "IN", "OUT", "WHY"),
        tuple(
            (report.node, *_session_cells(session, now))
            for report in page.nodes
            if report.speaker
            for session in report.speaker.sessions
        ),
    )


def _session_cells(session: SessionState, now: datetime) -> tuple[str, ...]:
    numbers = (str(session.received), str(session.advertised))
    since = age(session.since, now)
    return (session.peer, session.name, str(session.as_number), session.state, since, *numbers, session.reason)


def counted(endpoints: Mapping[str, EndpointState]) -> str:
    """Endpoints by state: `3 up, 1 pending`; `0` when there are none."""
    counts = Counter(endpoint.state for endpoint in endpoints.values())
    order = ("up", "pending", "error")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state]) or "0"


def document(page: Overview) -> dict[str, Any]:
    """The page for programs: the agents' reports under their manifests' field names."""
    return {
        "revision": page.revision,
        "right": page.right,
        "nodes": [
            {
                "node": report.node,
                "felix": _plain(report.felix),
                "bgp": _plain(report.speaker),
                "wrong": list(report.wrong),
            }
            for report in page.nodes
        ],
    }


def _plain(state: FelixState | SpeakerState | None) -> Any:
    """Every field, the empty ones too: a program wants `routesIn: 0`, not its absence."""
    if state is None:
        return None
    encoded = {field.encode_name: getattr(state, field.name) for field in msgspec.structs.fields(state)}
    return msgspec.to_builtins(encoded)


def _word(ready: bool, stale: bool) -> str:
    return "stale" if stale else "ready" if ready else "not ready"
