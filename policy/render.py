"""Tables as nftables text, in parts that change one by one.

    felix's dispatch ──goto──> in-ID ──jump──> identify-source            the mark becomes the class of the other side
                                 │                                        (exact addresses, then prefixes, then world)
                                 ├─ mark . protocol . port  map @in-ID-port  ──┐
                                 ├─ mark . protocol . port  map @in-ID-range ──┤  each answers with the number of an
                                 ├─ th dport readable? (only where ports matter)  outcome, which becomes the mark, and
                                 ├─ mark . protocol         map @in-ID-proto ──┤  returns to felix: `policy.outcomes`
                                 ├─ mark                    map @in-ID-any   ──┘  settles it
                                 └─ otherwise: a number that is denied

    parts       machinery    what settles judgements; the same whatever policy says
                identify     the chains that ask the maps of addresses (`policy.render_identity`)
                identityF/N  a bucket of addresses, of family F; cidrF: all prefixes
                in-ID        one stack
                outcomes/N   a bucket of outcomes: elements, counters, residuals

A packet too short for its ports, or a later fragment, would miss the port maps and could be allowed by a wider answer:
where ports matter it is denied after they are asked and before the wider ones are. Likewise where a residual reads the
transport header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from core.addr import Network
from core.nftables import Chain, Element, Ruleset, Set
from core.resources.policy import Direction
from policy import outcomes
from policy.compile import Compiled
from policy.keep import OURS, high, keep
from policy.model import (
    Cause,
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
from policy.numbering import Handed
from policy.outcomes import Answer
from policy.render_identity import IDENTIFY, Addresses, of_content

LOG_PREFIX_CHARACTERS: Final = 100
"""nft takes at most 127 bytes of log prefix."""

_BUCKETS: Final = 64
_HEADER: Final = {4: "ip", 6: "ip6"}
_ICMP: Final = {4: "icmp", 6: "icmpv6"}
_PORTS: Final = ("mark", "inet_proto", "inet_service")


def machinery(judgements: Iterable[str]) -> Ruleset:
    """What settles the answers of the chains `judgements`, which felix calls with `policy.outcomes.ask`."""
    elements, counters = outcomes.reserved()
    return Ruleset(
        chains=MappingProxyType({**outcomes.chains(), **keep(tuple(judgements))}),
        sets=MappingProxyType(outcomes.sets()),
        elements=MappingProxyType(elements),
        counters=counters,
    )


def render(compiled: Compiled) -> Mapping[str, Ruleset]:
    """The parts of one state, by name: disjoint, and with felix's frame a whole table."""
    return Renderer().render(compiled)


@dataclass(frozen=True, slots=True)
class _Stack:
    """A stack as it was rendered last: its answers by digest, and its part."""

    table: Table
    answers: Mapping[bytes, Answer]
    part: Ruleset


class Renderer:
    """Renders state after state. What comes out, once it is settled, depends on the state alone; parts that stay the
    same are shared."""

    def __init__(self) -> None:
        self._stacks: dict[str, _Stack] = {}
        self._asked: dict[bytes, int] = {}  # digest of an answer: how many stacks give it
        self._answers: dict[bytes, Answer] = {}
        self._numbers: Handed[bytes] = Handed(outcomes.MOST_OUTCOMES)
        self._outcomes: dict[str, Ruleset] = {}
        self._identity = Addresses()

    def render(self, compiled: Compiled) -> Mapping[str, Ruleset]:
        """The parts of this state, by name."""
        fresh = {
            name: _answers(table)
            for name, table in compiled.tables.items()
            if name not in self._stacks or self._stacks[name].table is not table
        }
        touched = self._count(compiled.tables, fresh)
        moved = self._number(touched)
        for name, table in compiled.tables.items():
            stack = self._stacks.get(name)
            answers = fresh.get(name) or (stack.answers if stack else {})
            if name in fresh or (moved and not moved.isdisjoint(answers)):
                self._stacks[name] = _Stack(table, answers, _Page(self._numbers.of).stack(table))
        for name in [name for name in self._stacks if name not in compiled.tables]:
            del self._stacks[name]
        self._write_outcomes(touched, everything=bool(moved))
        return MappingProxyType(
            {
                **self._identity.parts(compiled.identity),
                **{name: self._stacks[name].part for name in compiled.tables},
                **self._outcomes,
            }
        )

    def _count(self, tables: Mapping[str, Table], fresh: Mapping[str, Mapping[bytes, Answer]]) -> set[bytes]:
        """Note who gives which answer; returns the answers that came or went."""
        before = self._answers.keys()
        touched: set[bytes] = set()
        for answers in fresh.values():
            for digest, answer in answers.items():
                if digest not in before:
                    touched.add(digest)
                    self._answers[digest] = answer
                self._asked[digest] = self._asked.get(digest, 0) + 1
        for name, stack in self._stacks.items():
            if name in fresh or name not in tables:
                for digest in stack.answers:
                    self._asked[digest] -= 1
                    if not self._asked[digest]:
                        del self._asked[digest], self._answers[digest]
                        touched ^= {digest}
        return touched

    @property
    def settled(self) -> bool:
        """Whether rendering the same state again would change nothing (`policy.numbering`)."""
        return self._numbers.settled

    @property
    def unnumbered(self) -> int:
        """Outcomes for which no number is left: they are denied."""
        return len(self._answers) - len(self._numbers.of)

    def _number(self, touched: set[bytes]) -> set[bytes]:
        """Number the answers that came or went; returns the others that have another number now, or none any more."""
        if not touched and self.settled:
            return set()
        gone = {digest for digest in touched if digest not in self._answers}
        return self._numbers.change(gone, {digest: digest for digest in touched - gone}) - touched

    def _write_outcomes(self, touched: set[bytes], *, everything: bool) -> None:
        stale = set(range(_BUCKETS)) if everything else {_bucket(digest) for digest in touched}
        if not stale:
            return
        pages = {bucket: _Page(self._numbers.of) for bucket in sorted(stale)}
        for digest, answer in sorted(self._answers.items()):
            number = self._numbers.of.get(digest, 0)
            if number and _bucket(digest) in stale:
                pages[_bucket(digest)].outcome(number, digest, answer)
        pending = {name for answer in self._answers.values() for name, _ in outcomes.pending(answer)}
        self._outcomes.pop("pending", None)
        if pending:
            self._outcomes["pending"] = Ruleset(counters=frozenset(pending))
        for bucket, page in pages.items():
            part, name = page.ruleset(), f"outcomes/{bucket}"
            if part.elements:
                self._outcomes[name] = part
            else:
                self._outcomes.pop(name, None)


def _bucket(digest: bytes) -> int:
    return digest[0] % _BUCKETS


def _answers(table: Table) -> dict[bytes, Answer]:
    return {answer.digest(): answer for answer in outcomes.answers(table)}


class _Page:
    """A part being written."""

    def __init__(self, numbers: Mapping[bytes, int]) -> None:
        self._numbers = numbers
        self._known: dict[int, int] = {}
        self._chains: dict[str, Chain] = {}
        self._sets: dict[str, Set] = {}
        self._elements: dict[Element, str] = {}
        self._counters: set[str] = set()

    def ruleset(self) -> Ruleset:
        return Ruleset(
            chains=MappingProxyType(dict(sorted(self._chains.items()))),
            sets=MappingProxyType(self._sets),
            elements=MappingProxyType(self._elements),
            counters=frozenset(self._counters),
        )

    def stack(self, table: Table) -> Ruleset:
        if table.constant is not None:
            self._chains[table.name] = Chain(rules=(f"meta mark set {high(self._number(table, table.constant))}",))
            return self.ruleset()
        rules = [f"jump {IDENTIFY[table.direction]}"]
        protocols = table.port_protocols
        single = {f"{_mark(c)} . {proto} . {port}": answer for (c, proto, port), answer in table.port.items()}
        spans = {f"{_mark(c)} . {proto} . {a}-{b}": answer for (c, proto, a, b), answer in table.ranges.items()}
        protos = {f"{_mark(c)} . {proto}": answer for (c, proto), answer in table.proto.items()}
        anys = {_mark(c): answer for c, answer in table.any.items()}
        rules += self._asking(table, "port", _PORTS, single, "meta mark . meta l4proto . th dport")
        rules += self._asking(table, "range", _PORTS, spans, "meta mark . meta l4proto . th dport")
        if protocols:
            rules += [f"meta l4proto {each} jump {outcomes.READABLE}" for each in protocols]
            rules.append(f"meta mark {high(outcomes.UNREADABLE)} return")
        rules += self._asking(table, "proto", _PORTS[:2], protos, "meta mark . meta l4proto")
        # A packet whose protocol cannot be told must not pass for one of no special protocol.
        guard = "meta l4proto 0-255 " if protos or protocols else ""
        rules += self._asking(table, "any", _PORTS[:1], anys, "meta mark", guard)
        rules.append(f"meta mark set {high(self._number(table, table.otherwise))}")
        self._chains[table.name] = Chain(rules=tuple(rules))
        return self.ruleset()

    def _asking(
        self,
        table: Table,
        suffix: str,
        key: tuple[str, ...],
        answers: Mapping[str, Outcome],
        look: str,
        guard: str = "",
    ) -> Iterator[str]:
        """The rule that asks one of a stack's maps, if there is anything in it."""
        if not answers:
            return
        name, interval = f"{table.name}-{suffix}", suffix == "range"
        values = {element: _mark(self._number(table, answer)) for element, answer in answers.items()}
        if interval:
            name = of_content(name, values)
        self._sets[name] = Set(key=key, value="mark", interval=interval)
        self._elements.update((Element(name, element), value) for element, value in values.items())
        yield f"{guard}meta mark set {look} map @{name} return"

    def _number(self, table: Table, outcome: Outcome) -> int:
        """The number of an outcome that `table` gives."""
        known = self._known.get(id(outcome))
        if known is None:
            known = self._known[id(outcome)] = self._numbered(Answer(table.plane, table.direction, outcome))
        return known

    def _numbered(self, answer: Answer) -> int:
        """An answer's number; 0, which is denied, of one for which none is left."""
        return self._numbers.get(answer.digest(), 0)

    def outcome(self, number: int, digest: bytes, answer: Answer) -> None:
        """What settles one answer."""
        found = answer.outcome
        if isinstance(found, Decision):
            name = outcomes.counter(answer.plane, found)
            self._counters.add(name)
            self._elements[Element(outcomes.REASONS, _mark(number))] = name
            if word := outcomes.word(answer.plane, answer.direction, found.verdict):
                self._settle(number, outcomes.VERDICTS, word)
        elif isinstance(found, Residual):
            name = f"residual-{digest.hex()[:12]}"
            self._chains[name] = Chain(rules=tuple(self._residual(answer, found)))
            self._settle(number, outcomes.BRANCHES, f"goto {name}")
        else:
            name = f"staged-{digest.hex()[:12]}"
            self._chains[name] = Chain(rules=tuple(self._staged(name, answer, found)))
            self._settle(number, outcomes.BRANCHES, f"goto {name}")

    def _settle(self, number: int, where: str, verdict: str) -> None:
        self._elements[Element(where, _mark(number))] = verdict
        self._elements[Element(outcomes.UNDENIED, _mark(number))] = ""

    def _residual(self, answer: Answer, residual: Residual) -> Iterator[str]:
        yield from _payload(residual, "goto denied")
        for line in residual.lines:
            if isinstance(line.then, Logged):
                yield from _when(line, answer.direction, f'log prefix "{_log_prefix(line.then.reason)}"')
            else:
                yield from _when(line, answer.direction, self._go_on(answer, line.then))
        yield self._go_on(answer, residual.final)

    def _go_on(self, answer: Answer, settled: Settled) -> str:
        """The statements that make `settled` so, in a chain that a judgement was settled by."""
        inner = Answer(answer.plane, answer.direction, settled)
        if isinstance(settled, Residual):
            return f"goto residual-{inner.digest().hex()[:12]}" if self._numbered(inner) else "goto denied"
        return f"{outcomes.set_mark(self._numbered(inner))} goto decided"

    def _staged(self, name: str, answer: Answer, watched: Watched) -> Iterator[str]:
        if isinstance(watched.pending, Decision):
            yield _pending(answer, watched.pending)
        else:
            yield f"jump {self._foreseen(name, answer, watched.pending)}"
        yield self._go_on(answer, watched.enforced)

    def _foreseen(self, name: str, answer: Answer, residual: Residual) -> str:
        """A chain that counts what a residual would decide, and returns."""
        chain = f"{name}-p"
        rules = list(_payload(residual, "return"))
        for number, line in enumerate(residual.lines):
            if isinstance(line.then, Decision):
                rules += _when(line, answer.direction, f"{_pending(answer, line.then)} return")
            elif isinstance(line.then, Residual):
                inner = self._foreseen(f"{chain}{number}", answer, line.then)
                rules += _when(line, answer.direction, f"goto {inner}")
        rules.append(_pending(answer, residual.final))
        self._chains[chain] = Chain(rules=tuple(rules))
        return chain


def _pending(answer: Answer, decision: Decision) -> str:
    return f'counter name "{outcomes.counter(answer.plane, decision, pending=True)}"'


def _payload(residual: Residual, otherwise: str) -> Iterator[str]:
    """Rules in front of a residual's that read the transport header: a packet without one goes no further."""
    if any(line.tests is not None and line.tests.reads_payload for line in residual.lines):
        yield f"jump {outcomes.READABLE}"
        counted = f"counter name meta mark & {OURS} map @{outcomes.REASONS} " if otherwise != "return" else ""
        yield f"meta mark & {OURS} == {high(outcomes.UNREADABLE)} {counted}{otherwise}"


def _when(line: Line, direction: Direction, then: str) -> list[str]:
    if line.tests is None:
        return [then]
    return [f"{test} {then}" for test in _tests(line.tests, direction)]


def _mark(number: int) -> str:
    return outcomes.mark(number)


def _log_prefix(reason: Reason) -> str:
    if reason.cause is Cause.PROFILE_RULE:
        words = f"profile {reason.profile}"
    else:
        words = f"{reason.tier}/{reason.policy.namespace + '/' if reason.policy and reason.policy.namespace else ''}"
        words += reason.policy.name if reason.policy else ""
    return f"muslin {words}"[:LOG_PREFIX_CHARACTERS] + ": "


def _tests(tests: Tests, direction: Direction) -> list[str]:
    """Match texts, any one of which is enough."""
    parts = []
    if tests.local is not None:
        field = "daddr" if direction is Direction.INGRESS else "saddr"
        parts.append(f"{_HEADER[tests.local[0].version]} {field} {_either(_nets(tests.local))}")
    if tests.sports is not None:
        parts.append(f"th sport {_either(_ports(tests.sports))}")
    word = _ICMP[tests.family]
    if tests.icmp is not None:
        code = "" if tests.icmp.code is None else f" {word} code {tests.icmp.code}"
        parts.append(f"{word} type {tests.icmp.type}{code}")
    if tests.not_icmp is not None:
        parts.append(_not_icmp(word, tests.not_icmp))
    return [" ".join(parts)]


def _not_icmp(word: str, match: ICMPMatch) -> str:
    if match.code is None:
        return f"{word} type != {match.type}"
    return f"{word} type . {word} code != {{ {match.type} . {match.code} }}"


def _either(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{{ {', '.join(items)} }}"


def _nets(nets: Iterable[Network]) -> list[str]:
    return [str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net) for net in nets]


def _ports(ports: Iterable[Range]) -> list[str]:
    return [str(first) if first == last else f"{first}-{last}" for first, last in ports]
