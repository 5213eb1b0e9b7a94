"""The whole cluster on one page: what each node's agents report, held against what the datastore has. Pure.

A cluster without nodes is not right: it is programmed nowhere. A node is right when both agents have reported lately,
are ready and not stale, felix has programmed the newest change that concerns it, every endpoint is up (or waits for its
interface), and every session is established.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from cli.changes import Stored
from cli.render import Table, age
from cli.seen import Seen, seen
from core.names import Key
from core.resources import FelixStatus, SpeakerStatus
from core.resources.status import EndpointState, FelixState, SessionState, SpeakerState

ESTABLISHED: Final = "Established"

NO_NODES: Final = "there are no nodes: apply a Node for each, and run `muslin node` there"

S = TypeVar("S", FelixState, SpeakerState)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport(Generic[S]):
    """One agent: its last words, and when they were said."""

    state: S
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One node: its agents' reports (None: never heard of), and what is not right, one sentence each."""

    node: str
    felix: AgentReport[FelixState] | None
    speaker: AgentReport[SpeakerState] | None
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Every node, by name, as of `at`. `revision` is what felix must have programmed to be up to date."""

    revision: int
    at: datetime
    nodes: tuple[NodeReport, ...]

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is not right with the cluster rather than with one of its nodes, one sentence each."""
        return () if self.nodes else (NO_NODES,)

    @property
    def right(self) -> bool:
        """Whether nothing is wrong anywhere."""
        return not self.wrong and not any(report.wrong for report in self.nodes)

    def behind(self) -> tuple[str, ...]:
        """The nodes whose felix has not programmed `revision` yet."""
        return tuple(each.node for each in self.nodes if _lags(each, self.revision))


def _lags(report: NodeReport, revision: int) -> bool:
    return report.felix is None or report.felix.state.programmed < revision


def overview(found: Iterable[Stored], revision: int, now: datetime) -> Overview:
    """The page, from every Node, FelixStatus and SpeakerStatus there is."""
    nodes: set[str] = set()
    felix: dict[str, FelixStatus] = {}
    speakers: dict[str, SpeakerStatus] = {}
    times: list[tuple[Key, int, str]] = []
    for stored in found:
        resource, name = stored.resource, stored.resource.metadata.name
        nodes.add(name)
        if isinstance(resource, FelixStatus):
            felix[name] = resource
        elif isinstance(resource, SpeakerStatus):
            speakers[name] = resource
        if isinstance(resource, FelixStatus | SpeakerStatus):
            times.append((resource.key, stored.revision, resource.status.reported))
    heard = seen(times, now)
    return Overview(
        revision=revision,
        at=now,
        nodes=tuple(_node(name, felix.get(name), speakers.get(name), heard, revision) for name in sorted(nodes)),
    )


def _node(
    name: str, felix: FelixStatus | None, speaker: SpeakerStatus | None, heard: Mapping[Key, Seen], revision: int
) -> NodeReport:
    one = AgentReport(state=felix.status, seen=heard[felix.key]) if felix else None
    other = AgentReport(state=speaker.status, seen=heard[speaker.key]) if speaker else None
    wrong = (*_felix_wrong(one, revision), *speaker_wrong(other))
    return NodeReport(node=name, felix=one, speaker=other, wrong=wrong)


def _felix_wrong(report: AgentReport[FelixState] | None, revision: int) -> Iterator[str]:
    if report is None:
        yield "felix has never reported"
        return
    yield from filter(None, [report.seen.wrong("felix")])
    state = report.state
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


def speaker_wrong(report: AgentReport[SpeakerState] | None) -> Iterator[str]:
    """What is not right with a node's bgp, one sentence each."""
    if report is None:
        yield "bgp has never reported"
        return
    yield from filter(None, [report.seen.wrong("bgp")])
    state = report.state
    if not state.ready:
        yield "bgp is not ready"
    if state.stale:
        yield "bgp cannot reach the datastore and works from its last snapshot"
    for session in state.sessions:
        if session.state != ESTABLISHED:
            why = f": {session.reason}" if session.reason else ""
            yield f"session with {session.peer} ({session.name}) is {session.state}{why}"
        yield from (f"session with {session.peer} ({session.name}): {warning}" for warning in session.warnings)
    if state.different:
        many = "1 prefix is not where it" if state.different == 1 else f"{state.different} prefixes are not where they"
        yield f"{many} should be; `muslin bgp diff` names them"
    yield from (f"bgp: {problem}" for problem in state.problems)


def tables(page: Overview) -> list[Table]:
    """What `status` shows a person: felix, bgp, and, when there are any, sessions and what is not right."""
    wrong = [("-", sentence) for sentence in page.wrong]
    wrong += [(report.node, sentence) for report in page.nodes for sentence in report.wrong]
    optional = (_sessions(page), Table(("NODE", "NOT RIGHT"), tuple(wrong)))
    return [_felix(page), bgp_table(page), *(table for table in optional if table.rows)]


def _felix(page: Overview) -> Table:
    head = ("NODE", "FELIX", "SINCE", "SEEN", "PROGRAMMED", "ENDPOINTS", "ROUTES")
    return Table(head, tuple((each.node, *_felix_cells(each.felix, page)) for each in page.nodes))


def _felix_cells(report: AgentReport[FelixState] | None, page: Overview) -> tuple[str, ...]:
    if report is None:
        return ("no report", *"-----")
    state = report.state
    programmed = min(state.programmed, page.revision)  # beyond it nothing has changed that felix would program
    counts = (f"{programmed}/{page.revision}", counted(state.endpoints), str(state.routes))
    return (_word(report), age(state.since, page.at), str(report.seen), *counts)


def bgp_table(page: Overview) -> Table:
    """One row a node: how its bgp is."""
    head = ("NODE", "BGP", "SINCE", "SEEN", "AS", "SESSIONS", "ROUTES IN", "ROUTES OUT")
    return Table(head, tuple((each.node, *_bgp_cells(each.speaker, page)) for each in page.nodes))


def _bgp_cells(report: AgentReport[SpeakerState] | None, page: Overview) -> tuple[str, ...]:
    if report is None:
        return ("no report", *"------")
    state = report.state
    up = sum(session.state == ESTABLISHED for session in state.sessions)
    counts = (f"{up}/{len(state.sessions)}", str(state.routes_in), str(len(state.routes_out)))
    return (_word(report), age(state.since, page.at), str(report.seen), str(state.as_number), *counts)


def _sessions(page: Overview) -> Table:
    return Table(
        ("NODE", "PEER", "NAME", "AS", "STATE", "SINCE", "IN", "OUT", "WHY"),
        tuple(
            (report.node, *_session_cells(session, page.at))
            for report in page.nodes
            if report.speaker
            for session in report.speaker.state.sessions
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
        "wrong": list(page.wrong),
        "nodes": [
            {
                "node": report.node,
                "felix": plain(report.felix),
                "bgp": plain(report.speaker),
                "wrong": list(report.wrong),
            }
            for report in page.nodes
        ],
    }


def plain(report: AgentReport[S] | None) -> Any:
    """Every field, the empty ones too: a program wants `routesIn: 0`, not its absence. And when it was heard of."""
    if report is None:
        return None
    age_s = report.seen.age_s
    return {
        **whole(report.state),
        "silent": report.seen.silent,
        "seenSecondsAgo": None if age_s is None else int(age_s),
    }


def whole(said: msgspec.Struct) -> dict[str, Any]:
    """A struct with every field, under its manifest's name."""
    fields = {field.encode_name: getattr(said, field.name) for field in msgspec.structs.fields(said)}
    return cast("dict[str, Any]", msgspec.to_builtins(fields))


def _word(report: AgentReport[S]) -> str:
    if report.seen.silent:
        return "silent"
    return "stale" if report.state.stale else "ready" if report.state.ready else "not ready"
