"""Which policies and profiles apply to an endpoint in one direction, as a program: steps in the order asked.

    first of all      a policy in whose reach the endpoint is and that cannot be read: deny
    tier by tier      policies of the tier that select the endpoint, rules in order, then the end of the tier
    then              the endpoint's profiles in order, then deny

A tier in which no policy selects the endpoint for the direction is skipped. Endpoints to which the same policies and
profiles apply share one program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from core.labels import Unknown
from core.resources.policy import Action, Direction
from policy.convert import Converted
from policy.doubt import perhaps
from policy.index import ALL_KNOWN, LabelIndex
from policy.model import Cause, Plane, Policy, ProfileRules, Reason, Step, TierOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Steps for one direction. `names` says what it is made of, in order: the same names, the same program."""

    direction: Direction
    names: tuple[str, ...]
    steps: tuple[Step, ...]


class Resolver:
    """Programs for endpoints, each distinct one built once."""

    def __init__(
        self,
        converted: Converted,
        endpoints: Sequence[Mapping[str, str]],
        unknown: Mapping[int, Unknown] = ALL_KNOWN,
    ) -> None:
        """`endpoints`: the effective labels of each local endpoint, by position; `unknown`, those nobody can tell."""
        self._converted = converted
        index = LabelIndex(endpoints, unknown)
        self._applying: list[list[tuple[TierOrder, Policy]]] = [[] for _ in endpoints]
        for tier, policies in converted.tiers:
            for policy in policies:
                if policy.staged or Plane.WORKLOAD not in policy.planes:
                    continue
                surely = index.matching(policy.selector)
                for position in surely:
                    self._applying[position].append((tier, policy))
                if unknown:
                    for position in set(index.matching(policy.selector, possibly=True)).difference(surely):
                        self._applying[position].append((tier, perhaps(policy)))
        self._programs: dict[tuple[Direction, tuple[str, ...]], Program] = {}

    def program(self, position: int, profiles: Sequence[str], direction: Direction) -> Program:
        """The program of the endpoint at `position`, which names `profiles`."""
        applying = [(tier, policy) for tier, policy in self._applying[position] if direction in policy.types]
        names = (
            *(_name(tier, policy) for tier, policy in applying),
            "",
            *profiles,
        )
        found = self._programs.get((direction, names))
        if found is None:
            steps = (*_tier_steps(applying, direction), *self._profile_steps(profiles, direction))
            found = self._programs[direction, names] = Program(direction=direction, names=names, steps=steps)
        return found

    def _profile_steps(self, names: Sequence[str], direction: Direction) -> list[Step]:
        tier = len(self._converted.tiers)
        steps = []
        for name in names:
            profile = self._converted.profiles.get(name, ProfileRules(name, exists=False))
            if not profile.exists:
                reason = Reason(cause=Cause.MISSING_PROFILE, direction=direction, profile=name)
                steps.append(Step(tier, Action.DENY, None, reason))
            for rule in profile.rules(direction):
                reason = Reason(
                    cause=Cause.PROFILE_RULE, direction=direction, profile=name, rule=rule.index, match=rule.match
                )
                steps.append(Step(tier, rule.action, rule.match, reason))
        last = Reason(cause=Cause.NO_PROFILE_RULE, direction=direction)
        return [*steps, Step(tier + 1, Action.DENY, None, last)]


def _name(tier: TierOrder, policy: Policy) -> str:
    closed = "|unreadable" if policy.fault else "|perhaps" if policy.perhaps else ""
    return f"{tier.name}|{policy.kind}|{policy.key.namespace}|{policy.key.name}{closed}"


def _tier_steps(applying: Sequence[tuple[TierOrder, Policy]], direction: Direction) -> list[Step]:
    steps: list[Step] = []
    for number, (tier, group) in enumerate(groupby(applying, key=itemgetter(0))):
        policies = [policy for _, policy in group]
        for policy in policies:
            if policy.fault:
                cause = Cause.UNREADABLE_POLICY
                fault = Reason(cause=cause, direction=direction, policy=policy.key, fault=policy.fault)
                steps.append(Step(number, Action.DENY, None, fault))
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
                steps.append(Step(number, action, rule.match, reason))
        keys = tuple(policy.key for policy in policies)
        end = Reason(cause=Cause.END_OF_TIER, direction=direction, tier=tier.name, policies=keys)
        steps.append(Step(number, tier.default, None, end))
    return steps
