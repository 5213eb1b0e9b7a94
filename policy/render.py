"""Tables as nftables text.

    felix's dispatch ──goto──> in-ID ──jump──> identify-source ──vmap──> class-N     sets the high bits of the mark
                                 │
                                 ├─ th dport readable? (only where ports matter)
                                 ├─ mark . protocol . port  vmap @in-ID-port  ──┐
                                 ├─ mark . protocol . port  vmap @in-ID-range ──┤    accept | return | drop
                                 ├─ mark . protocol         vmap @in-ID-proto ──┼──> goto residual-HASH
                                 ├─ mark                    vmap @in-ID-any   ──┘
                                 └─ drop

The contract with felix, which dispatches per interface with `goto`: ingress allowed is `accept`, egress allowed is
`return` (to felix's own chain, so that the ingress side is judged too), denied is `drop`. `class-N` is reached by goto
from a chain that was jumped to, so it returns to the stack's chain; the lower half of the mark is left alone.

A packet too short for its ports, or a later fragment, would miss the port maps and could be allowed by a wider answer:
where ports matter it is dropped before they are asked. Likewise where a residual reads the transport header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from types import MappingProxyType
from typing import Final

from core.addr import Address, Family, Network
from core.names import MARK_MASK
from core.nftables import Chain, Element, Ruleset, Set
from core.resources.policy import Direction
from policy.compile import Compiled
from policy.identity import CLASS_SHIFT, Identity
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
    Table,
    Tests,
    Verdict,
)

OURS: Final = f"{MARK_MASK:#010x}"
THEIRS: Final = f"{~MARK_MASK & 0xFFFFFFFF:#010x}"
LOG_PREFIX_CHARACTERS: Final = 100
"""nft takes at most 127 bytes of log prefix."""

IDENTIFY: Final = {Direction.INGRESS: "identify-source", Direction.EGRESS: "identify-destination"}
READABLE: Final = "readable"

_NFPROTO: Final = {4: "ipv4", 6: "ipv6"}
_HEADER: Final = {4: "ip", 6: "ip6"}
_ADDRESS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}
_ICMP: Final = {4: "icmp", 6: "icmpv6"}


def render(compiled: Compiled) -> Ruleset:
    """Chains, maps and elements for felix's table; the same policy gives the same text."""
    page = _Page()
    for table in compiled.tables.values():
        page.stack(table)
    if any(table.constant is None for table in compiled.tables.values()):
        page.identity(compiled.identity, {table.direction for table in compiled.tables.values() if not table.constant})
    return Ruleset(
        chains=MappingProxyType(dict(sorted(page.chains.items()))),
        sets=MappingProxyType(dict(sorted(page.sets.items()))),
        elements=MappingProxyType(dict(sorted(page.elements.items()))),
    )


class _Page:
    """A ruleset being written."""

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}
        self.elements: dict[Element, str] = {}

    def stack(self, table: Table) -> None:
        if table.constant is not None:
            self.chains[table.name] = Chain(rules=(_counted(self._verdict(table.constant, table.direction)),))
            return
        rules = [f"jump {IDENTIFY[table.direction]}"]
        mark = f"meta mark & {OURS}"
        protocols = table.port_protocols
        if protocols:
            rules.append(f"meta l4proto {{ {', '.join(map(str, protocols))} }} jump {READABLE}")
            self._readable()
        ports = ("mark", "inet_proto", "inet_service")
        single = {f"{_mark(c)} . {proto} . {port}": answer for (c, proto, port), answer in table.port.items()}
        spans = {f"{_mark(c)} . {proto} . {a}-{b}": answer for (c, proto, a, b), answer in table.ranges.items()}
        protos = {f"{_mark(c)} . {proto}": answer for (c, proto), answer in table.proto.items()}
        anys = {str(_mark(c)): answer for c, answer in table.any.items()}
        for suffix, key, answers, lookup in (
            ("port", ports, single, f"{mark} . meta l4proto . th dport"),
            ("range", ports, spans, f"{mark} . meta l4proto . th dport"),
            ("proto", ports[:2], protos, f"{mark} . meta l4proto"),
            # A packet whose protocol cannot be told must not pass for one of no special protocol.
            ("any", ports[:1], anys, f"meta l4proto 0-255 {mark}" if protos or protocols else mark),
        ):
            if answers:
                name = f"{table.name}-{suffix}"
                self.sets[name] = Set(key=key, value="verdict", interval=suffix == "range", counter=True)
                rules.append(f"{lookup} vmap @{name}")
                for element, answer in answers.items():
                    self.elements[Element(name, element)] = self._verdict(answer, table.direction)
        self.chains[table.name] = Chain(rules=(*rules, "counter drop"))

    def identity(self, identity: Identity, directions: Iterable[Direction]) -> None:
        rules: dict[Direction, list[str]] = {direction: [] for direction in sorted(directions)}
        for family in Family:
            setting = f"meta nfproto {_NFPROTO[family]} {_set_mark(identity.world[family])}"
            for each in rules.values():
                each.append(setting)
        for family in Family:
            exact = {str(address): number for address, number in _exact(identity, family)}
            spans = {_span(span, family): number for span, number in identity.ranges[family]}
            for name, elements in ((f"identity{int(family)}", exact), (f"cidr{int(family)}", spans)):
                if not elements:
                    continue
                interval = name.startswith("cidr")
                self.sets[name] = Set(key=(_ADDRESS[family],), value="verdict", interval=interval, counter=True)
                for key, number in elements.items():
                    self.elements[Element(name, key)] = f"goto {self._class(number)}"
                for direction, each in rules.items():
                    field = "saddr" if direction is Direction.INGRESS else "daddr"
                    each.append(f"{_HEADER[family]} {field} vmap @{name}")
        for direction, each in rules.items():
            self.chains[IDENTIFY[direction]] = Chain(rules=tuple(each))

    def _class(self, number: int) -> str:
        name = f"class-{number}"
        self.chains[name] = Chain(rules=(_set_mark(number),))
        return name

    def _readable(self) -> None:
        # Both rules read the first four bytes of the transport header: ports, or ICMP type and code.
        self.chains[READABLE] = Chain(rules=("@th,0,32 0-4294967295 return", "counter drop"))

    def _verdict(self, outcome: Outcome, direction: Direction) -> str:
        if isinstance(outcome, Decision):
            return _word(outcome.verdict, direction)
        return f"goto {self._residual(outcome, direction)}"

    def _residual(self, residual: Residual, direction: Direction) -> str:
        rules = [rule for line in residual.lines for rule in self._line(line, direction)]
        if any(line.tests is not None and line.tests.reads_payload for line in residual.lines):
            rules.insert(0, f"jump {READABLE}")
            self._readable()
        rules.append(_word(residual.final.verdict, direction))
        name = f"residual-{hashlib.sha256(chr(10).join(rules).encode()).hexdigest()[:12]}"
        self.chains[name] = Chain(rules=tuple(rules))
        return name

    def _line(self, line: Line, direction: Direction) -> list[str]:
        if isinstance(line.then, Logged):
            then = f'log prefix "{_log_prefix(line.then.reason)}"'
        else:
            then = self._verdict(line.then, direction)
        if line.tests is None:
            return [then]
        return [f"{test} {then}" for test in _tests(line.tests, direction)]


def _exact(identity: Identity, family: Family) -> Iterable[tuple[Address, int]]:
    make = IPv4Address if family is Family.V4 else IPv6Address
    found = (item for (version, _), bucket in identity.exact.items() if version == family for item in bucket.items())
    return [(make(address), number) for address, number in sorted(found)]


def _mark(number: int) -> int:
    return number << CLASS_SHIFT


def _set_mark(number: int) -> str:
    return f"meta mark set meta mark & {THEIRS} | {_mark(number):#010x}"


def _counted(verdict: str) -> str:
    """A rule's verdict that shows how much was denied, as an element's does."""
    return f"counter {verdict}" if verdict == "drop" else verdict


def _word(verdict: Verdict, direction: Direction) -> str:
    if verdict is Verdict.DENY:
        return "drop"
    return "accept" if direction is Direction.INGRESS else "return"


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


def _span(span: Range, family: int) -> str:
    """An interval's canonical spelling: an address, a prefix when it is one, else first-last."""
    make = IPv4Address if family == 4 else IPv6Address
    first, last = make(span[0]), make(span[1])
    if first == last:
        return str(first)
    nets = list(summarize_address_range(first, last))
    return str(nets[0]) if len(nets) == 1 else f"{first}-{last}"
