"""Which rules can never decide because an earlier one decides all that they match.

    earlier rules of the policy ────────────────────────────────────┐
    rules of earlier policies of the tier, which apply to every ────┴──> one whose match this one's implies: shadowed
    endpoint that this one applies to, in the same direction

Read from the rules alone, so it holds for endpoints to come as well. What only several earlier rules together decide
shows in compiled tables: there, a rule that is no decision's reason never decides for the endpoints of today.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from core.resources.policy import Action, Direction
from core.selector import And, Selector
from policy.implies import implies, matches
from policy.model import Match, Policy, Rule

MOST_COMPARED: Final = 3_000_000
"""Pairs of rules compared in one tier and direction, a few seconds' worth; of what is beyond, nothing is said."""

TERMINAL: Final = frozenset({Action.ALLOW, Action.DENY, Action.PASS})


@dataclass(frozen=True, slots=True)
class Shadow:
    """A rule (by policy and place in its manifest) all of which `by` decides before."""

    policy: Policy
    direction: Direction
    index: int
    action: Action
    by: Policy
    rule: Rule

    @property
    def catch_all(self) -> bool:
        """Whether it comes after a rule of its own policy that denies everything."""
        return self.by is self.policy and self.rule.action is Action.DENY and self.rule.match == Match()


class Shadows:
    """The shadowed rules of one tier. `left` are policies that were too many to compare."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        """`policies` in the order asked."""
        self._policies = policies
        self.left: list[Policy] = []

    def found(self, direction: Direction) -> Iterator[Shadow]:
        """Those of one direction."""
        by_term: dict[str, list[Policy]] = defaultdict(list)
        compared = 0
        for policy in self._policies:
            if direction not in policy.types or policy.fault:
                continue
            before = [each for each in _applying(by_term, policy.selector) if _asked_with(each, policy)]
            earlier = [(each, rule) for each in before for rule in _terminal(each, direction)]
            mine = _terminal(policy, direction)
            compared += len(policy.rules(direction)) * (len(earlier) + len(mine))
            if compared > MOST_COMPARED:
                self.left.append(policy)
                continue
            yield from _shadowed(policy, direction, [*earlier, *((policy, rule) for rule in mine)])
            if not policy.staged:
                by_term[_first_term(policy.selector)].append(policy)


def _asked_with(earlier: Policy, policy: Policy) -> bool:
    """Whether wherever `policy` is asked, or would be if it is staged, `earlier` is asked before."""
    return policy.planes <= earlier.planes and not (policy.staged and earlier.outgoing)


def _terminal(policy: Policy, direction: Direction) -> list[Rule]:
    return [rule for rule in policy.rules(direction) if rule.action in TERMINAL]


def _shadowed(policy: Policy, direction: Direction, before: Sequence[tuple[Policy, Rule]]) -> Iterator[Shadow]:
    """A rule of the manifest may have become several: it is shadowed when all of them are."""
    parts: dict[int, list[Rule]] = defaultdict(list)
    for rule in policy.rules(direction):
        parts[rule.index].append(rule)
    for index, rules in parts.items():
        if rules[0].action is Action.LOG:
            continue
        over = [_shadow_of(policy, rule, before) for rule in rules]
        first = over[0]
        if first is not None and None not in over:
            yield Shadow(policy, direction, index, rules[0].action, *first)


def _shadow_of(policy: Policy, rule: Rule, before: Iterable[tuple[Policy, Rule]]) -> tuple[Policy, Rule] | None:
    for owner, earlier in before:
        if owner is policy and earlier.index >= rule.index:
            return None
        if earlier.match.protocol in (None, rule.match.protocol) and matches(rule.match, earlier.match):
            return owner, earlier
    return None


def _applying(by_term: dict[str, list[Policy]], selector: Selector) -> list[Policy]:
    """Earlier policies that apply wherever `selector` does, as far as their words say so."""
    terms = ["all()", *map(str, _terms(selector))]
    return [each for term in dict.fromkeys(terms) for each in by_term.get(term, ()) if implies(selector, each.selector)]


def _first_term(selector: Selector) -> str:
    return str(_terms(selector)[0])


def _terms(selector: Selector) -> tuple[object, ...]:
    return selector.root.terms if isinstance(selector.root, And) else (selector.root,)
