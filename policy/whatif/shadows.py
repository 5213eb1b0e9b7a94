"""Which rules can never decide because an earlier one decides all that they match.

    earlier rules of the policy ────────────────────────────────────┐
    rules of earlier policies of the tier, which apply to every ────┴──> one whose match this one's implies: shadowed
    endpoint that this one applies to, in the same direction

Read from the rules alone, so it holds for endpoints to come as well. What only several earlier rules together decide
shows in compiled tables: there, a rule that is no decision's reason never decides for the endpoints of today.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from core.resources.policy import Action, Direction
from core.selector import And, Compare, In, Node, Or, Selector
from policy.model import Match, Policy, Rule
from policy.whatif.implies import implies, matches

MOST_COMPARED: Final = 1_000_000
"""Pairs of rules compared in one tier, ten seconds' worth; of what is beyond, nothing is said."""

_Owned: TypeAlias = tuple[Policy, Rule]
_Anchor: TypeAlias = tuple[str, str, str]
"""A side of a rule, a label and a value."""

FREE: Final[_Anchor] = ("", "", "")
"""For rules whose selectors name no value."""


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
        self._apply: dict[tuple[str, str], bool] = {}
        self._compared = 0
        self.left: list[Policy] = []

    def found(self, direction: Direction) -> Iterator[Shadow]:
        """Those of one direction."""
        before = _Earlier()
        for policy in self._policies:
            if direction not in policy.types or policy.fault:
                continue
            mine = _Earlier()
            shadows = list(self._of_one(policy, direction, before, mine))
            if self._compared > MOST_COMPARED:
                self.left.append(policy)
                continue
            yield from shadows
            if not policy.staged:
                before.extend(mine)

    def _of_one(self, policy: Policy, direction: Direction, before: _Earlier, mine: _Earlier) -> Iterator[Shadow]:
        """A rule of the manifest may have become several: it is shadowed when all of them are."""
        parts: dict[int, list[_Owned | None]] = defaultdict(list)
        for rule in policy.rules(direction):
            if rule.action is Action.LOG:
                continue
            parts[rule.index].append(self._first_over(policy, rule, before) or self._first_over(policy, rule, mine))
            mine.add(policy, rule)
        actions = {rule.index: rule.action for rule in policy.rules(direction)}
        for index, over in parts.items():
            if over[0] is not None and None not in over:
                yield Shadow(policy, direction, index, actions[index], *over[0])

    def _first_over(self, policy: Policy, rule: Rule, earlier: _Earlier) -> _Owned | None:
        for owner, other in earlier.candidates(rule):
            self._compared += 1
            if self._compared > MOST_COMPARED:
                return None
            if owner is policy and other.index == rule.index:
                continue
            if self._applies(owner, policy) and matches(rule.match, other.match):
                return owner, other
        return None

    def _applies(self, earlier: Policy, policy: Policy) -> bool:
        """Whether wherever `policy` is asked, or would be if it is staged, `earlier` is asked before."""
        if earlier is policy:
            return True
        if not policy.planes <= earlier.planes or (policy.staged and earlier.outgoing):
            return False
        key = (policy.selector.canonical, earlier.selector.canonical)
        if key not in self._apply:
            self._apply[key] = implies(policy.selector, earlier.selector)
        return self._apply[key]


class _Earlier:
    """Rules in the order asked, found by what a rule that they cover must ask for.

    A rule is kept under one test of one of its selectors; who implies that selector has a test that implies the test,
    and so one of the same label and, where values are named, of a value among them.
    """

    def __init__(self) -> None:
        self._all: list[_Owned] = []
        self._under: dict[_Anchor, list[int]] = defaultdict(list)

    def add(self, policy: Policy, rule: Rule) -> None:
        """One more, after all others."""
        for anchor in _kept_under(rule.match):
            self._under[anchor].append(len(self._all))
        self._all.append((policy, rule))

    def extend(self, others: _Earlier) -> None:
        """All of the others, after all of these."""
        for policy, rule in others._all:
            self.add(policy, rule)

    def candidates(self, rule: Rule) -> Iterator[_Owned]:
        """Those that could cover `rule`, in order."""
        found = {place for anchor in _looked_for(rule.match) for place in self._under.get(anchor, ())}
        for place in sorted(found):
            spoken = self._all[place][1].match.protocol
            if spoken is None or spoken == rule.match.protocol:
                yield self._all[place]


def _sides(match: Match) -> Iterator[tuple[str, Selector]]:
    for word, side in (("source", match.source), ("destination", match.destination)):
        if side.peer is not None and side.peer.selector is not None:
            yield word, side.peer.selector


def _kept_under(match: Match) -> list[_Anchor]:
    """The last test of a value, as namespaces are asked first and tell less; else any place will do."""
    anchors: list[_Anchor] = [FREE]
    for word, selector in _sides(match):
        for term in _terms(selector):
            if isinstance(term, Compare) and term.operator == "==":
                anchors = [(word, term.label, term.value)]
            elif isinstance(term, In) and not term.negated:
                anchors = [(word, term.label, value) for value in term.values]
    return anchors


def _looked_for(match: Match) -> Iterator[_Anchor]:
    yield FREE
    for word, selector in _sides(match):
        for term in _terms(selector):
            for test in term.terms if isinstance(term, Or) else (term,):
                if isinstance(test, Compare) and test.operator == "==":
                    yield word, test.label, test.value
                elif isinstance(test, In) and not test.negated:
                    yield from ((word, test.label, value) for value in test.values)


def _terms(selector: Selector) -> tuple[Node, ...]:
    return selector.root.terms if isinstance(selector.root, And) else (selector.root,)
