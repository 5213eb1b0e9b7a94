"""The answers of one stack, kept for as long as its rules and its own side stay the same.

    signature ── the stack's steps that its peers let match ── decide ──> answers, one for each question ever asked
    classes that came or went, and that this stack's rules can tell from others ──> a new table; else the same one

Most classes are alike to a stack: none of the peers that it asks about holds for them. They share one answer for each
family.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Final

from core.addr import Family
from policy.bind import Bound, Own
from policy.classes import Moved
from policy.decide import SPREAD, Decided, decide
from policy.identity import Signature
from policy.model import Cause, Decision, Outcome, Reason, Table, Verdict
from policy.resolve import Program

MOST_REMEMBERED: Final = 256
"""Answers to questions that nobody asks any more, that a stack may keep."""


@dataclass(frozen=True)
class Roll:
    """The classes there are: numbers by signature, and in order by family; `world` is that of IPv4's.

    With `lost` there are addresses in no class.
    """

    numbers: Mapping[Signature, int]
    world: Signature
    lost: bool

    @cached_property
    def by_family(self) -> Mapping[int, Sequence[tuple[int, Signature]]]:
        """Numbers and signatures of each family, in order."""
        found: dict[int, list[tuple[int, Signature]]] = {int(family): [] for family in Family}
        for number, signature in sorted(((n, s) for s, n in self.numbers.items()), key=itemgetter(0)):
            found[signature.family].append((number, signature))
        return found


class Stack:
    """A program bound to one own side."""

    def __init__(self, name: str, program: Program, own: Own) -> None:
        self.name, self.program = name, program
        self._bound = {int(family): Bound(program, own, family) for family in Family}
        self._peers = frozenset().union(*(bound.peers for bound in self._bound.values()))
        self._asks_names = any(bound.asks_names for bound in self._bound.values())
        self._answers: dict[object, Decided] = {}
        self._apart: dict[Signature, Decided] = {}
        self._alike = {int(family): self._answer(Signature(int(family))) for family in Family}
        self._table: Table | None = None
        self._world: Signature | None = None

    def _tells(self, signature: Signature) -> bool:
        """Whether any rule here can tell such addresses from those that nobody asks about."""
        return not self._peers.isdisjoint(signature.peers) or (self._asks_names and bool(signature.ports))

    def _answer(self, signature: Signature) -> Decided:
        bound = self._bound[signature.family]
        question = bound.question(signature)
        found = self._answers.get(question)
        if found is None:
            if len(self._answers) > 2 * len(self._apart) + MOST_REMEMBERED:
                self._answers.clear()
            found = self._answers[question] = decide(bound.steps(signature), signature.family)
        return found

    def table(self, roll: Roll, moved: Moved) -> Table:
        """The answers for the classes on the `roll`, some of which `moved`; the same when that is nothing here."""
        before = self._table
        if before is not None and not moved and self._world == roll.world:
            return before
        stirred = [signature for signature in moved.gone if self._apart.pop(signature, None)]
        for signature in moved.come if before is not None else roll.numbers:
            if self._tells(signature):
                self._apart[signature] = self._answer(signature)
                stirred.append(signature)
        self._world = roll.world
        constant = self._constant(roll)
        otherwise = self._unknown if constant is not None else self._otherwise(roll)
        still = constant is not None or not (stirred or self._differs(otherwise))
        if before is not None and still and before.constant == constant and before.otherwise == otherwise:
            return before
        self._table = self._filled(roll, constant, otherwise)
        return self._table

    @property
    def _unknown(self) -> Decision:
        return Decision(Verdict.DENY, Reason(cause=Cause.UNKNOWN, direction=self.program.direction))

    def _constant(self, roll: Roll) -> Outcome | None:
        """The one answer to everything, if there is one. What is in no class must meet a look-up that fails."""
        apart = Counter(signature.family for signature in self._apart)
        usual = [self._alike[family] for family, there in roll.by_family.items() if len(there) > apart[family]]
        answers = list({id(each): each for each in (*usual, *self._apart.values())}.values())
        same = all(each.any == answers[0].any and not each.proto and not each.ports for each in answers)
        return answers[0].any if answers and same and not roll.lost else None

    def _otherwise(self, roll: Roll) -> Decision:
        """What is said of IPv4's world, if that denies: whoever is denied for the same reason needs no element."""
        if roll.world not in roll.numbers:
            return self._unknown
        usual = self._apart.get(roll.world, self._alike[roll.world.family]).any
        return usual if isinstance(usual, Decision) and usual.verdict is Verdict.DENY else self._unknown

    def _differs(self, otherwise: Decision) -> bool:
        """Whether classes that nobody asks about need elements."""
        return any(each.any != otherwise or each.proto or each.ports for each in self._alike.values())

    def _filled(self, roll: Roll, constant: Outcome | None, otherwise: Decision) -> Table:
        program = self.program
        table = Table(
            name=self.name,
            direction=program.direction,
            plane=program.plane,
            constant=constant,
            otherwise=otherwise,
        )
        if constant is not None:
            return table
        if self._differs(otherwise):
            for family, there in roll.by_family.items():
                usual = self._alike[family]
                for number, signature in there:
                    _fill(table, number, self._apart.get(signature, usual))
        else:
            numbered = sorted(((roll.numbers[s], answer) for s, answer in self._apart.items()), key=itemgetter(0))
            for number, answer in numbered:
                _fill(table, number, answer)
        return table


def _fill(table: Table, number: int, answer: Decided) -> None:
    if answer.any != table.otherwise:
        table.any[number] = answer.any
    for protocol, outcome in answer.proto.items():
        table.proto[number, protocol] = outcome
    for (protocol, first, last), outcome in answer.ports.items():
        if last - first < SPREAD:
            for port in range(first, last + 1):
                table.port[number, protocol, port] = outcome
        else:
            table.ranges[number, protocol, first, last] = outcome
