"""Which policies and profiles apply to an endpoint in one direction and plane, as a program: steps in the order asked.

    first of all      a policy in whose reach the endpoint is and that cannot be read: deny
    tier by tier      policies of the tier that select the endpoint, rules in order, then the end of the tier
    then, by plane    WORKLOAD, HOST         the endpoint's profiles in order, then deny
                      FORWARD                allow
                      PRE_DNAT, UNTRACKED    go on; and tiers have no ends

A tier in which no policy selects the endpoint for the direction is skipped. A staged policy's steps are staged, and so
is the end of a tier that only staged policies bring about. Endpoints to which the same policies and profiles apply
share one program.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final, TypeAlias

from core.memo import Memo
from core.names import Key
from core.resources.network import HostEndpoint, WorkloadEndpoint
from core.resources.policy import Action, Direction
from core.snapshot import Snapshot
from policy.convert import Converted
from policy.doubt import perhaps
from policy.entities import Crowd
from policy.index import Group
from policy.model import Cause, Plane, Policy, ProfileRules, Reason, Step, TierOrder

Local: TypeAlias = WorkloadEndpoint | HostEndpoint
"""An endpoint that programs are wanted for."""

Applying: TypeAlias = tuple[tuple[TierOrder, Policy], ...]

BY_RULES_ALONE: Final = frozenset({Plane.PRE_DNAT, Plane.UNTRACKED})
"""Planes in which only rules decide."""

WITH_PROFILES: Final = frozenset({Plane.WORKLOAD, Plane.HOST})
"""Planes in which profiles are asked."""

_AFTER_ALL: Final[Mapping[Plane, tuple[Action, Cause]]] = {
    Plane.FORWARD: (Action.ALLOW, Cause.NO_FORWARD_RULE),
    Plane.PRE_DNAT: (Action.ALLOW, Cause.UNDECIDED),
    Plane.UNTRACKED: (Action.ALLOW, Cause.UNDECIDED),
}
"""How the last step ends a walk where that is not denied; UNDECIDED makes it a Continue."""

OF_PLANE: Final[Mapping[Plane, tuple[Direction, ...]]] = {
    Plane.WORKLOAD: (Direction.INGRESS, Direction.EGRESS),
    Plane.HOST: (Direction.INGRESS, Direction.EGRESS),
    Plane.FORWARD: (Direction.INGRESS, Direction.EGRESS),
    Plane.PRE_DNAT: (Direction.INGRESS,),
    Plane.UNTRACKED: (Direction.INGRESS, Direction.EGRESS),
}
"""The directions that a plane judges."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Steps for one direction. `names` says what it is made of, in order: the same names, the same program."""

    direction: Direction
    names: tuple[str, ...]
    steps: tuple[Step, ...]
    plane: Plane = Plane.WORKLOAD

    def content(self) -> str:
        """What the steps say, and in whose name: the same for programs of the same answers for the same reasons."""
        return "\n".join(
            f"{step.tier} {step.action} {step.staged} {step.outgoing} {_said(step)}" for step in self.steps
        )


def _said(step: Step) -> str:
    """A step's reason and its match, by the texts that are their identity."""
    reason, match = step.reason, step.match
    why = f"{reason.cause}|{reason.tier}|{reason.policy.path if reason.policy else ''}|{reason.profile}|{reason.rule}"
    why += f"|{reason.fault}|{' '.join(key.path for key in reason.policies)}"
    if match is None:
        return why
    ends = (
        f"{side.peer.text if side.peer else None}|{side.ports}|{side.not_ports}"
        for side in (match.source, match.destination)
    )
    return "|".join((why, f"{match.family}|{match.protocol}|{match.not_protocol}|{match.icmp}|{match.not_icmp}", *ends))


class Resolver:
    """Programs for local endpoints, from one snapshot to the next; each distinct one is built once.

    With `in_doubt` there are endpoints of which nobody can tell which policies select them (`policy.doubt`).
    """

    def __init__(self, *, in_doubt: bool) -> None:
        self.in_doubt = in_doubt
        self._crowd = Crowd()
        self._locals: dict[Key, tuple[Local, Group]] = {}
        self._converted = Converted((), {}, {})
        self._applying: dict[int, tuple[TierOrder, Policy]] = {}
        self._by_mark: dict[int, dict[int, tuple[TierOrder, Policy]]] = defaultdict(dict)
        self._programs: dict[Key, dict[tuple[Direction, Plane], Program]] = {}
        self._built: dict[object, tuple[Program, object]] = {}
        self._missing: dict[str, ProfileRules] = {}
        self._memo = Memo()

    def follow(self, snapshot: Snapshot, converted: Converted, wanted: Mapping[Key, Local]) -> None:
        """Have programs for the endpoints `wanted`, as the policies and labels of `snapshot` are."""
        self._crowd.follow(snapshot)
        stale = self._move(wanted)
        marks = self._select(converted)
        touched = self._crowd.index.touched
        everyone = marks is None or converted.profiles is not self._converted.profiles
        self._converted = converted
        for key, (_, group) in self._locals.items():
            if everyone or group in touched or (marks and not marks.isdisjoint(group.marks)):
                stale.add(key)
        for key in stale:
            self._resolve(key)
        touched.clear()
        self._memo.forget()

    def _move(self, wanted: Mapping[Key, Local]) -> set[Key]:
        """Take endpoints in and out; those that are new, or others."""
        stale = {key for key, thing in wanted.items() if key not in self._locals or self._locals[key][0] is not thing}
        for key in [key for key in self._locals if key not in wanted or key in stale]:
            self._crowd.leave(self._locals.pop(key)[1])
            del self._programs[key]
        for key in stale:
            self._locals[key] = wanted[key], self._crowd.join(wanted[key])
        return stale

    def _select(self, converted: Converted) -> set[int] | None:
        """Follow the policies; the marks of those that came or went. None when a tier is another."""
        if converted.tiers is self._converted.tiers:
            return set()
        before = self._applying
        now = {id(policy): (tier, policy) for tier, policies in converted.tiers for policy in policies}
        marks: set[int] = set()
        for name in now.keys() - before.keys():
            for mark in self._use(now[name][1]):
                self._by_mark[mark][name] = now[name]
                marks.add(mark)
        for name in before.keys() - now.keys():
            for mark in self._drop(before[name][1]):
                del self._by_mark[mark][name]
                marks.add(mark)
                if not self._by_mark[mark]:
                    del self._by_mark[mark]
        self._applying = now
        if dict(_orders(converted)) == dict(_orders(self._converted)):
            return marks
        for entries in self._by_mark.values():
            entries.update((name, now[name]) for name in entries)
        return None

    def _use(self, policy: Policy) -> Iterable[int]:
        index = self._crowd.index
        return {index.use(policy.selector, possibly=possibly) for possibly in self._readings()}

    def _drop(self, policy: Policy) -> Iterable[int]:
        index = self._crowd.index
        marks = {index.mark(policy.selector, possibly=possibly) for possibly in self._readings()}
        for possibly in self._readings():
            index.drop(policy.selector, possibly=possibly)
        return marks

    def _readings(self) -> tuple[bool, ...]:
        return (False, True) if self.in_doubt else (False,)

    def programs(self, key: Key) -> Mapping[tuple[Direction, Plane], Program]:
        """The programs of one endpoint: of its plane, or of all planes of a host's."""
        return self._programs[key]

    def group(self, key: Key) -> Group:
        """The group that an endpoint is in among the local ones."""
        return self._locals[key][1]

    def _resolve(self, key: Key) -> None:
        thing, group = self._locals[key]
        applying = self._applying_to(group)
        programs = self._programs[key] = {}
        for plane in _planes(thing):
            asked = tuple(each for each in applying if plane in each[1].planes)
            for direction in OF_PLANE[plane]:
                told = tuple(each for each in asked if direction in each[1].types)
                programs[direction, plane] = self.program(told, thing.spec.profiles, direction, plane)

    def _applying_to(self, group: Group) -> Applying:
        found: dict[int, tuple[TierOrder, Policy]] = {}
        for mark in group.marks:
            found.update(self._by_mark.get(mark, {}))
        index, told = self._crowd.index, []
        for tier, policy in found.values():
            surely = not self.in_doubt or index.mark(policy.selector) in group.marks
            told.append((tier, policy if surely else self._memo(perhaps, policy)))
        return tuple(sorted(told, key=_order))

    def program(self, applying: Applying, profiles: Sequence[str], direction: Direction, plane: Plane) -> Program:
        """The program of an endpoint to which these policies apply, and which names these profiles."""
        named = [self._profile(name) for name in profiles] if plane in WITH_PROFILES else []
        tiers = tuple(dict.fromkeys(tier for tier, _ in applying))
        made_of = (direction, plane, tiers, tuple(id(policy) for _, policy in applying), tuple(map(id, named)))
        found = self._built.get(made_of)
        if found is None:
            if len(self._built) > 4 * len(self._programs) + 100:
                live = {program for programs in self._programs.values() for program in programs.values()}
                self._built = {name: built for name, built in self._built.items() if built[0] in live}
            found = self._built[made_of] = _program(applying, named, direction, plane), (applying, named)
        return found[0]

    def _profile(self, name: str) -> ProfileRules:
        found = self._converted.profiles.get(name) or self._missing.get(name)
        if found is None:
            found = self._missing[name] = ProfileRules(name, exists=False)
        return found


def _program(applying: Applying, profiles: Sequence[ProfileRules], direction: Direction, plane: Plane) -> Program:
    steps: list[Step] = []
    groups = [(tier, [policy for _, policy in group]) for tier, group in groupby(applying, key=itemgetter(0))]
    for number, (tier, policies) in enumerate(groups):
        for policy in policies:
            steps += _policy_steps(number, tier, policy, direction)
        if plane not in BY_RULES_ALONE:
            steps += _ends(number, tier, policies, direction)
    steps += _last_steps(len(groups), profiles, direction, plane)
    names = (*(_name(tier, policy) for tier, policy in applying), "", *(profile.name for profile in profiles))
    return Program(direction=direction, names=names, steps=tuple(steps), plane=plane)


def _name(tier: TierOrder, policy: Policy) -> str:
    marks = {
        "unreadable": policy.fault,
        "perhaps": policy.perhaps,
        "staged": policy.staged,
        "outgoing": policy.outgoing,
    }
    return "|".join((tier.name, policy.key.path, *(word for word, marked in marks.items() if marked)))


def _policy_steps(number: int, tier: TierOrder, policy: Policy, direction: Direction) -> list[Step]:
    steps: list[Step] = []
    if policy.fault:
        cause = Cause.UNREADABLE_POLICY
        fault = Reason(cause=cause, direction=direction, policy=policy.key, fault=policy.fault)
        steps.append(Step(number, Action.DENY, None, fault, policy.staged, policy.outgoing))
    for rule in policy.rules(direction):
        reason = Reason(
            cause=Cause.RULE,
            direction=direction,
            tier=tier.name,
            policy=policy.key,
            rule=rule.index,
            match=rule.match,
        )
        action = Action.PASS if tier.unreadable and rule.action is Action.ALLOW else rule.action
        steps.append(Step(number, action, rule.match, reason, policy.staged, policy.outgoing))
    return steps


def _ends(number: int, tier: TierOrder, policies: Sequence[Policy], direction: Direction) -> Iterable[Step]:
    """The end of a tier, which is there as far as a policy is there that brings it about."""

    def end(bringing: Sequence[Policy], *, staged: bool = False, outgoing: bool = False) -> Step:
        keys = tuple(policy.key for policy in bringing)
        reason = Reason(cause=Cause.END_OF_TIER, direction=direction, tier=tier.name, policies=keys)
        return Step(number, tier.default, None, reason, staged, outgoing)

    enforced = [policy for policy in policies if not policy.staged]
    if any(not policy.outgoing for policy in enforced):
        yield end(enforced)
        return
    if enforced:
        yield end(enforced, outgoing=True)
    if staged := [policy for policy in policies if policy.staged]:
        yield end(staged, staged=True)


def _last_steps(number: int, profiles: Sequence[ProfileRules], direction: Direction, plane: Plane) -> Iterable[Step]:
    """What follows the tiers."""
    for profile in profiles:
        if not profile.exists:
            reason = Reason(cause=Cause.MISSING_PROFILE, direction=direction, profile=profile.name)
            yield Step(number, Action.DENY, None, reason)
        for rule in profile.rules(direction):
            reason = Reason(
                cause=Cause.PROFILE_RULE,
                direction=direction,
                profile=profile.name,
                rule=rule.index,
                match=rule.match,
            )
            yield Step(number, rule.action, rule.match, reason)
    action, cause = _AFTER_ALL.get(plane, (Action.DENY, Cause.NO_PROFILE_RULE))
    yield Step(number + 1, action, None, Reason(cause=cause, direction=direction))


def _planes(thing: Local) -> Sequence[Plane]:
    if isinstance(thing, WorkloadEndpoint):
        return (Plane.WORKLOAD,)
    return (Plane.HOST, Plane.FORWARD, Plane.PRE_DNAT, Plane.UNTRACKED)


def _orders(converted: Converted) -> list[tuple[str, TierOrder]]:
    return [(tier.name, tier) for tier, _ in converted.tiers]


def _order(applying: tuple[TierOrder, Policy]) -> tuple[object, ...]:
    tier, policy = applying
    return *tier.sort_key, *policy.sort_key, policy.staged, policy.key
