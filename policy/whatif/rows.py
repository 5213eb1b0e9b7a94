"""Rows of compiled tables, laid side by side: for which traffic do they answer what.

    table, class ──row──> any        what most traffic is told
                          proto      protocols that are told something else
                          ports      port ranges that are told something else still

    rows ──regions──> protocol x destination ports x (source ports or ICMP type, where a residual asks)
                      in each region every row gives one decision

A region is the largest piece of traffic that none of the rows tells apart, so two rows are compared without asking
about any single packet, and nothing is left out. This is the one module outside the compiler's own that knows how its
tables are built; tests hold it to `policy.evaluate`, packet by packet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from operator import itemgetter
from typing import Final, TypeAlias

from core.addr import Address
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
    Table,
    Tests,
    Watched,
)
from policy.whatif.traffic import REST, Traffic

LARGEST_BYTE: Final = 255

Decisions: TypeAlias = tuple[Decision | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What one table says of one class; whether that depends on which own address the endpoint uses.

    Kept apart by identity: equal rows of one book are one object.
    """

    any: Outcome
    proto: Mapping[int, Outcome] = field(default_factory=dict)
    ports: Mapping[int, Sequence[tuple[Range, Outcome]]] = field(default_factory=dict)
    asks_local: bool = False

    @property
    def protocols(self) -> set[int]:
        """Those told something of their own."""
        return {*self.proto, *self.ports}

    def at(self, protocol: int, port: int) -> Outcome:
        """The answer to one protocol and destination port."""
        ranges = self.ports.get(protocol, ())
        place = bisect_right(ranges, port, key=lambda piece: piece[0][0]) - 1
        if place >= 0 and ranges[place][0][1] >= port:
            return ranges[place][1]
        return self.proto.get(protocol, self.any)

    def map(self, change: Callable[[Outcome], Outcome]) -> Row:
        """The row with each answer changed."""
        return Row(
            change(self.any),
            {protocol: change(outcome) for protocol, outcome in self.proto.items()},
            {protocol: [(span, change(said)) for span, said in each] for protocol, each in self.ports.items()},
        )


class Book:
    """The rows of compiled tables, each made when it is first asked for."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables
        self._rows: dict[str, tuple[dict[int, Row], Row]] = {}
        self._alike: dict[object, Row] = {}
        self._seen_from: dict[tuple[int, Address], Row] = {}

    def row(self, name: str, number: int, local: Address) -> Row:
        """What the table `name` says of class `number` to the one whose own address is `local`."""
        found = self._rows.get(name)
        if found is None:
            found = self._rows[name] = self._read(self._tables[name])
        row = found[0].get(number, found[1])
        if not row.asks_local:
            return row
        key = (id(row), local)
        if key not in self._seen_from:
            self._seen_from[key] = row.map(lambda outcome: _seen_from(outcome, local))
        return self._seen_from[key]

    def asks_local(self, name: str) -> bool:
        """Whether a table tells an endpoint's own addresses apart."""
        return any(
            _asks_local(outcome) for outcome in {id(each): each for each in _answers(self._tables[name])}.values()
        )

    def _read(self, table: Table) -> tuple[dict[int, Row], Row]:
        otherwise = self._one(table.otherwise if table.constant is None else table.constant, {}, {})
        if table.constant is not None:
            return {}, otherwise
        proto: dict[int, dict[int, Outcome]] = defaultdict(dict)
        ports: dict[int, dict[int, list[tuple[Range, Outcome]]]] = defaultdict(lambda: defaultdict(list))
        for (number, protocol), outcome in table.proto.items():
            proto[number][protocol] = outcome
        for (number, protocol, port), outcome in table.port.items():
            ports[number][protocol].append(((port, port), outcome))
        for (number, protocol, first, last), outcome in table.ranges.items():
            ports[number][protocol].append(((first, last), outcome))
        rows = {
            number: self._one(table.any.get(number, table.otherwise), proto.get(number, {}), ports.get(number, {}))
            for number in {*table.any, *proto, *ports}
        }
        return rows, otherwise

    def _one(
        self, usual: Outcome, proto: Mapping[int, Outcome], ports: Mapping[int, list[tuple[Range, Outcome]]]
    ) -> Row:
        """Compared by the answers' identity, which is cheap; answers that are equal and two only cost time."""
        if not proto and not ports:
            key: object = id(usual)
        else:
            key = (
                id(usual),
                tuple(sorted((protocol, id(outcome)) for protocol, outcome in proto.items())),
                tuple(sorted((p, span, id(outcome)) for p, each in ports.items() for span, outcome in each)),
            )
        found = self._alike.get(key)
        if found is None:
            in_order = {protocol: sorted(each, key=itemgetter(0)) for protocol, each in ports.items()}
            outcomes = (usual, *proto.values(), *(outcome for each in ports.values() for _, outcome in each))
            found = self._alike[key] = Row(usual, proto, in_order, any(map(_asks_local, outcomes)))
        return found


def reasons(tables: Iterable[Table]) -> set[Reason]:
    """Everything that decides anything that is enforced, for any class and any traffic."""
    found: set[Reason] = set()
    seen: set[int] = set()
    for table in tables:
        for outcome in _answers(table):
            if id(outcome) not in seen:
                seen.add(id(outcome))
                found.update(_deciding(enforced(outcome)))
    return found


def _answers(table: Table) -> Iterator[Outcome]:
    if table.constant is not None:
        yield table.constant
        return
    yield table.otherwise
    for answers in (table.any, table.proto, table.port, table.ranges):
        yield from answers.values()


def _deciding(outcome: Settled) -> set[Reason]:
    """The reasons that some packet meets; of a residual that asks own addresses, all there are."""
    if not isinstance(outcome, Residual):
        return {outcome.reason}
    if not _asks_local(outcome):
        met = (decisions[0] for _, decisions in _settled(Traffic(), [outcome]))
        return {each.reason for each in met if each is not None}
    nested = [_deciding(line.then) for line in outcome.lines if not isinstance(line.then, Logged)]
    return {outcome.final.reason}.union(*nested)


def enforced(outcome: Outcome) -> Settled:
    """What is in force, whatever staged policies would do."""
    return outcome.enforced if isinstance(outcome, Watched) else outcome


def _asks_local(outcome: Outcome) -> bool:
    found = enforced(outcome)
    return isinstance(found, Residual) and any(
        (line.tests is not None and line.tests.local is not None)
        or (isinstance(line.then, Residual) and _asks_local(line.then))
        for line in found.lines
    )


def _seen_from(outcome: Outcome, local: Address) -> Settled:
    """The answer for one own address: what it settles is settled."""
    found = enforced(outcome)
    if not isinstance(found, Residual):
        return found
    lines: list[Line] = []
    for line in found.lines:
        tests = line.tests
        if tests is not None and tests.local is not None:
            if not any(local in net for net in tests.local):
                continue
            tests = replace(tests, local=None)
        then = line.then if isinstance(line.then, Logged) else _seen_from(line.then, local)
        lines.append(Line(tests, then))
    return Residual(tuple(lines), found.final)


def regions(rows: Sequence[Row | None]) -> Iterator[tuple[Traffic, Decisions]]:
    """All traffic, in pieces that no row tells apart, with each row's decision (None for no row).

    Own addresses are taken as settled (`Book.row`).
    """
    given = [row for row in rows if row is not None]
    named = tuple(sorted({each for row in given for each in row.protocols}))
    for protocol in (*named, REST):
        besides = named if protocol == REST else ()
        spans = [span for row in given for span, _ in row.ports.get(protocol, ())]
        for ports in _pieces(spans):
            outcomes = [None if row is None else enforced(row.at(protocol, ports[0])) for row in rows]
            yield from _settled(Traffic(protocol=protocol, besides=besides, ports=ports), outcomes)


def _settled(traffic: Traffic, outcomes: Sequence[Settled | None]) -> Iterator[tuple[Traffic, Decisions]]:
    tests = [test for outcome in outcomes if isinstance(outcome, Residual) for test in _tests(outcome)]
    sports = _pieces([span for test in tests for span in test.sports or ()])
    icmps = _icmp_cases([match for test in tests for match in (test.icmp, test.not_icmp) if match is not None])
    for span, icmp in product(sports, icmps):
        decisions = tuple(None if each is None else _decide(each, span[0], icmp) for each in outcomes)
        yield replace(traffic, sports=span, icmp=_shown(icmp, icmps)), decisions


def _tests(residual: Residual) -> Iterator[Tests]:
    for line in residual.lines:
        if line.tests is not None:
            yield line.tests
        if isinstance(line.then, Residual):
            yield from _tests(line.then)


def _pieces(spans: Iterable[Range]) -> list[Range]:
    """All ports, cut at the edges of `spans`."""
    cuts = {ALL_PORTS[0], ALL_PORTS[1] + 1}
    for first, last in spans:
        cuts.update((first, last + 1))
    return [(first, end - 1) for first, end in pairwise(sorted(cuts))]


@dataclass(frozen=True, slots=True)
class _ICMP:
    """A type and code to ask with, and whether they stand for all that are not named."""

    type: int
    code: int
    other_type: bool = False
    other_code: bool = False


def _icmp_cases(matches: Sequence[ICMPMatch]) -> list[_ICMP | None]:
    """One type and code for each kind that the matches tell apart; None alone where they tell nothing apart."""
    if not matches:
        return [None]
    codes: dict[int, set[int]] = defaultdict(set)
    for match in matches:
        codes[match.type].update(() if match.code is None else (match.code,))
    cases: list[_ICMP | None] = []
    for kind, named in sorted(codes.items()):
        cases += [_ICMP(kind, code) for code in sorted(named)]
        other = _unnamed(named)
        if other is not None:
            cases.append(_ICMP(kind, other, other_code=True))
    other = _unnamed(codes)
    return cases if other is None else [*cases, _ICMP(other, 0, other_type=True, other_code=True)]


def _unnamed(named: Iterable[int]) -> int | None:
    taken = set(named)
    return next((number for number in range(LARGEST_BYTE + 1) if number not in taken), None)


def _shown(icmp: _ICMP | None, cases: Sequence[_ICMP | None]) -> tuple[int, int] | None:
    if icmp is None or len(cases) == 1:
        return None
    return (-1 if icmp.other_type else icmp.type, -1 if icmp.other_code else icmp.code)


def _decide(outcome: Settled, sport: int, icmp: _ICMP | None) -> Decision:
    while isinstance(outcome, Residual):
        hits = (line.then for line in outcome.lines if line.tests is None or _holds(line.tests, sport, icmp))
        outcome = next((then for then in hits if not isinstance(then, Logged)), outcome.final)
    return outcome


def _holds(tests: Tests, sport: int, icmp: _ICMP | None) -> bool:
    if tests.sports is not None and not any(first <= sport <= last for first, last in tests.sports):
        return False
    if icmp is None:
        return tests.icmp is None
    if tests.icmp is not None and not _is(tests.icmp, icmp):
        return False
    return tests.not_icmp is None or not _is(tests.not_icmp, icmp)


def _is(match: ICMPMatch, icmp: _ICMP) -> bool:
    return match.type == icmp.type and match.code in (None, icmp.code)
