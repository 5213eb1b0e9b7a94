"""One stack's rules against one class of addresses: from steps in order to a table of outcomes.

    steps still possible      protocols they name      port ranges they cut      outcome
    for the class        ──>  tcp, udp, other     ──>  0-79 | 80 | 81-65535 ──>  walk: Allow | Deny | Residual

A walk goes through the steps as Calico would. A step that surely matches ends it (Allow, Deny), moves it to the next
tier (Pass) or is noted (Log). A step that depends on what no table holds (source port, ICMP type, which of its own
addresses the endpoint uses) becomes a line of a residual, and the walk goes on as if it had not matched; a Pass of
that kind carries the rest of the program, from the next tier on, as its own outcome. Where staged policies could
decide there are two walks: one without them, which is what happens, and one with them, which is what would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import pairwise
from typing import Final

from core.resources.policy import Action
from policy.model import (
    ALL_PORTS,
    Decision,
    ICMPMatch,
    Line,
    Logged,
    Outcome,
    Range,
    Reason,
    Residual,
    Settled,
    Tests,
    Verdict,
    Watched,
)
from policy.ranges import alike

ICMP_OF_FAMILY: Final = {4: 1, 6: 58}
"""The protocol number whose header ICMP tests read, by family."""

SPREAD: Final = 8
"""Port ranges of at most so many ports are spelt out one by one: the hash map answers faster than the interval map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A step that can match packets of the class at hand. `dports` None means any port."""

    position: int
    tier: int
    action: Action
    reason: Reason
    decision: Decision | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    dports: tuple[Range, ...] | None = None
    tests: Tests | None = None
    icmp: ICMPMatch | None = None
    not_icmp: ICMPMatch | None = None
    staged: bool = False
    outgoing: bool = False

    def speaks(self, protocol: int | None) -> bool:
        """Whether packets of `protocol` can match; None stands for every protocol that no step names."""
        return (self.protocol is None or self.protocol == protocol) and (
            self.not_protocol is None or self.not_protocol != protocol
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The outcomes for one class: `any`, where a protocol differs from that, and where its ports differ from that."""

    any: Outcome
    proto: dict[int, Outcome] = field(default_factory=dict)
    ports: dict[tuple[int, int, int], Outcome] = field(default_factory=dict)


def decide(steps: Sequence[Live], family: int) -> Decided:
    """Every outcome for one class of `family`. The last step surely matches and denies."""
    protocols = {step.protocol for step in steps} | {step.not_protocol for step in steps}
    fallback = walk([step for step in steps if step.speaks(None)])
    decided = Decided(any=fallback)
    for protocol in sorted(number for number in protocols if number is not None):
        speaking = [live for step in steps if step.speaks(protocol) and (live := _read(step, protocol, family))]
        pieces = _by_port(speaking)
        usual = _commonest(pieces)
        if usual != fallback:
            decided.proto[protocol] = usual
        for (first, last), outcome in pieces:
            if outcome != usual:
                decided.ports[protocol, first, last] = outcome
    return decided


def _read(step: Live, protocol: int, family: int) -> Live | None:
    """The step with its ICMP conditions settled where they cannot hold or cannot fail."""
    if step.icmp is None and step.not_icmp is None:
        return step
    if ICMP_OF_FAMILY[family] != protocol:
        return None if step.icmp is not None else step
    local, sports = (step.tests.local, step.tests.sports) if step.tests else (None, None)
    tests = Tests(local=local, sports=sports, icmp=step.icmp, not_icmp=step.not_icmp, family=family)
    return replace(step, protocol=None, not_protocol=None, dports=None, tests=tests, icmp=None, not_icmp=None)


def _by_port(steps: Sequence[Live]) -> list[tuple[Range, Outcome]]:
    """Disjoint port ranges, in order and covering all ports, neighbours with one outcome joined."""
    cuts = {0, ALL_PORTS[1] + 1}
    for step in steps:
        for first, last in step.dports or ():
            cuts.update((first, last + 1))
    edges = sorted(cuts)
    place = {edge: number for number, edge in enumerate(edges)}
    everywhere = [step for step in steps if step.dports is None]
    here: list[list[Live]] = [[] for _ in edges]
    for step in steps:
        for first, last in step.dports or ():
            for number in range(place[first], place[last + 1]):
                here[number].append(step)
    return alike(
        ((first, end - 1), walk(list(merge(everywhere, here[number], key=lambda step: step.position))))
        for number, (first, end) in enumerate(pairwise(edges))
    )


def _commonest(pieces: Sequence[tuple[Range, Outcome]]) -> Outcome:
    """The outcome of most ports; of the lowest ports when two are equal."""
    if len(pieces) == 1:
        return pieces[0][1]
    share: dict[Outcome, int] = {}
    for (first, last), outcome in pieces:
        share[outcome] = share.get(outcome, 0) + last - first + 1
    return max(share, key=lambda outcome: share[outcome])


def walk(steps: Sequence[Live]) -> Outcome:
    """What happens to packets that all of `steps` can match, in order."""
    if not any(step.staged or step.outgoing for step in steps):
        return _walk(steps, 0, {})
    enforced = _walk([step for step in steps if not step.staged], 0, {})
    pending = _walk([step for step in steps if not step.outgoing], 0, {})
    return enforced if pending == enforced else Watched(enforced, pending)


def _walk(steps: Sequence[Live], start: int, known: dict[int, Settled]) -> Settled:
    if start in known:
        return known[start]
    lines: list[Line] = []
    at = start
    while True:
        step = steps[at]
        if step.action is Action.LOG:
            lines.append(Line(step.tests, Logged(step.reason)))
        elif step.tests is not None:
            then = step.decision or _walk(steps, _next_tier(steps, at), known)
            lines.append(Line(step.tests, then))
        elif step.action is Action.PASS:
            at = _next_tier(steps, at)
            continue
        else:
            break
        at += 1
    assert step.decision is not None
    known[start] = Residual(tuple(lines), step.decision) if lines else step.decision
    return known[start]


def _next_tier(steps: Sequence[Live], at: int) -> int:
    tier = steps[at].tier
    while steps[at].tier == tier:
        at += 1
    return at


def verdict_of(action: Action) -> Verdict | None:
    """What an action decides by itself; Pass and Log decide nothing."""
    return {Action.ALLOW: Verdict.ALLOW, Action.DENY: Verdict.DENY}.get(action)
