"""What bgp says of itself, from what it wanted and how each part of it stands. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from bgp.bfd.watch import BfdState
from bgp.model import Maintenance, Speaker
from bgp.paths.decision import Decision
from bgp.reporting.audit import MOST_SHOWN
from core import breaker
from core.addr import Address, Network
from core.reconcile import Progress
from core.resources.status import Difference, SessionState, SpeakerState
from core.snapshot import Snapshot

MOST_CAUSES: Final = 5
"""Causes of refusal that a session's status names; it counts the others together."""

OTHER: Final = "other"

MOST_ERRORS: Final = 10
"""Errors of one reconciler that the status repeats; when ExaBGP is away every advert has one."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the prefixes that a peer tells: how many may be used, and how many may not, by cause."""

    accepted: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)


def taken(decisions: Iterable[Decision]) -> Mapping[str, Taken]:
    """By peer's address. Prefixes of which the same is said share one decision, so this is quick for large tables."""
    accepted: Counter[Address] = Counter()
    refused: dict[Address, Counter[str]] = {}
    for decision, count in Counter(decisions).items():
        choice = decision.choice
        fit = [*choice.used, *(candidate for candidate, _ in choice.lost)]
        unfit = [(each, why) for each, why in choice.refused]
        if decision.route is None:
            fit, unfit = [], [*unfit, *((each, decision.why) for each in fit)]
        accepted.update({each.session.peer: count for each in fit})
        for each, why in unfit:
            refused.setdefault(each.session.peer, Counter())[why] += count
    peers = accepted.keys() | refused.keys()
    return {str(peer): Taken(accepted[peer], _bounded(refused.get(peer, Counter()))) for peer in peers}


def _bounded(causes: Counter[str]) -> Mapping[str, int]:
    named = dict(causes.most_common(MOST_CAUSES))
    others = causes.total() - sum(named.values())
    return {**named, OTHER: others} if others else named


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the parts stand: the two reconcilers, whether ExaBGP runs, whether what was found at the start has been let
    go. `trouble` are sentences about what keeps the agent from working at all, `missing` about what it does without.

    `own_told` are own prefixes that some peer is told; `maintained` is what of the maintenance that includes. `routes`
    counts what is in the kernel, `restarts` ExaBGP's starts but the first; `taken` and `paths`, what BFD knows, are by
    peer.
    """

    told: Progress
    kernel: Progress
    running: bool
    settled: bool
    since: str
    trouble: Sequence[str] = ()
    missing: Sequence[str] = ()
    sessions: Sequence[SessionState] = ()
    own_told: Sequence[Network] = ()
    maintained: Maintenance = Maintenance.NONE
    routes: int = 0
    restarts: int = 0
    differences: Sequence[Difference] = ()
    taken: Mapping[str, Taken] = field(default_factory=dict)
    paths: Mapping[str, BfdState] = field(default_factory=dict)


def state(speaker: Speaker | None, snapshot: Snapshot, outcome: Outcome) -> SpeakerState:
    """The status. `speaker` is None before the first snapshot that has one."""
    told, kernel = outcome.told, outcome.kernel
    programmed = min(told.revision, kernel.revision)
    calm = outcome.running and outcome.settled and not snapshot.held
    return SpeakerState(
        programmed=programmed,
        stale=snapshot.stale,
        ready=programmed > 0 and calm and told.healthy and kernel.healthy,
        since=outcome.since,
        as_number=speaker.as_number if speaker else 0,
        sessions=_counted(outcome),
        routes_in=outcome.routes,
        routes_out=[str(prefix) for prefix in outcome.own_told],
        problems=list(_problems(speaker, snapshot, outcome)),
        told=told.revision,
        maintenance=outcome.maintained,
        heard=sum(session.received for session in outcome.sessions),
        pending=sum(session.pending for session in outcome.sessions),
        restarts=outcome.restarts,
        different=len(outcome.differences),
        differences=list(outcome.differences[:MOST_SHOWN]),
    )


def _counted(outcome: Outcome) -> list[SessionState]:
    """The sessions, with what is taken from them, and what BFD knows."""
    nothing = Taken()
    return [
        replace(
            each,
            accepted=outcome.taken.get(each.peer, nothing).accepted,
            refused={**each.refused, **outcome.taken.get(each.peer, nothing).refused},
            bfd=path.state if path else "",
            bfd_flaps=path.losses if path else 0,
            warnings=[*each.warnings, *([f"BFD: {path.reason}"] if path and path.reason else [])],
        )
        for each in outcome.sessions
        for path in [outcome.paths.get(each.peer)]
    ]


def _problems(speaker: Speaker | None, snapshot: Snapshot, outcome: Outcome) -> Iterator[str]:
    if speaker is not None:
        yield from speaker.problems
    yield from outcome.missing
    yield from breaker.problems(snapshot.held.values())
    yield from (f"{key}: {why}" for key, why in snapshot.problems.items())
    yield from filter(None, (*outcome.trouble, outcome.told.failure, outcome.kernel.failure))
    for progress in (outcome.told, outcome.kernel):
        errors = [f"{key}: {why}" for key, why in progress.errors.items()]
        yield from errors[:MOST_ERRORS]
        if len(errors) > MOST_ERRORS:
            yield f"and {len(errors) - MOST_ERRORS} more errors like these"
