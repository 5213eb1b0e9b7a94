"""Manifest rules to policy rules, closed where they cannot be said.

Most become one rule. One that names a service becomes one for each set of ports its endpoints have, and one of named
ports without a protocol becomes one for each protocol that has ports: all under the index of the one they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from core import values
from core.addr import Network, order
from core.errors import MuslinError
from core.resources.policy import ICMP, Action, EntityRule, ServiceMatch
from core.resources.policy import Rule as RuleManifest
from core.selector import Selector, parse
from policy.model import ICMPMatch, Match, Peer, Ports, Range, Rule, Side
from policy.scope import rule_selector
from policy.services import Answering, Services

ICMP_PROTOCOLS = (1, 58)
ICMP_OF_FAMILY = ((4, 1), (6, 58))


@dataclass(slots=True)
class _Reading:
    """A rule being read. `missing` are the conditions that nothing here can enforce, in words; `unsure` says that it
    names a service of which nobody can tell all that answers."""

    namespace: str
    services: Services | None
    missing: list[str] = field(default_factory=list)
    unsure: bool = False

    def matches(self, rule: RuleManifest) -> tuple[list[Match], list[Match]]:
        """What the rule surely matches, and what it possibly does."""
        wide = [each for match in _by_protocol(self._match(rule)) for each in self._by_icmp(match)]
        source, destination = self._answering(rule.source), self._answering(rule.destination)
        matches = [_from(match, source) for match in wide] if source is not None else wide
        if destination is not None:
            matches = [each for match in matches for each in _to(match, destination)]
        return matches, wide if self.unsure else matches

    def _answering(self, entity: EntityRule) -> Answering | None:
        if entity.services is None:
            return None
        if self.services is None:
            self.missing.append(f"service {entity.services.name}: only rules of policies may name services")
            return None
        found = self.services.of(*service_of(entity.services, self.namespace))
        self.unsure |= not found.sure
        return found

    def _match(self, rule: RuleManifest) -> Match:
        protocol = self._protocol(rule.protocol)
        if rule.http is not None:
            self.missing.append("http needs a proxy")
        return Match(
            family=rule.ip_version,
            protocol=protocol,
            not_protocol=self._protocol(rule.not_protocol),
            icmp=self._icmp(rule.icmp, protocol),
            not_icmp=_icmp(rule.not_icmp),
            source=self._side(rule.source, protocol),
            destination=self._side(rule.destination, protocol),
        )

    def _protocol(self, value: int | str | None) -> int | None:
        if value is None:
            return None
        try:
            return values.protocol(value)
        except ValueError as error:
            self.missing.append(str(error))
            return None

    def _icmp(self, icmp: ICMP | None, protocol: int | None) -> ICMPMatch | None:
        found = _icmp(icmp)
        if found is not None and protocol not in ICMP_PROTOCOLS:
            self.missing.append("icmp needs protocol ICMP or ICMPv6")
            return None
        return found

    def _by_icmp(self, match: Match) -> list[Match]:
        """What is of another protocol is not ICMP of that type: a notICMP without ICMP's protocol matches it."""
        if match.not_icmp is None or match.protocol in ICMP_PROTOCOLS:
            return [match]
        other = replace(match, not_icmp=None)
        if match.protocol is not None:
            return [other]
        if match.not_protocol is not None:
            self.missing.append("notICMP with notProtocol needs a protocol")
            return [other]
        return [
            each
            for family, number in ICMP_OF_FAMILY
            if match.family in (None, family)
            for each in (
                replace(match, family=family, protocol=number),
                replace(other, family=family, not_protocol=number),
            )
        ]

    def _side(self, entity: EntityRule, protocol: int | None) -> Side:
        return Side(
            peer=self._peer(entity),
            ports=self._ports(entity.ports, protocol),
            not_ports=self._ports(entity.not_ports, protocol),
        )

    def _ports(self, ports: Sequence[int | str], protocol: int | None) -> Ports | None:
        if not ports:
            return None
        ranges: list[Range] = []
        names: list[str] = []
        for text in ports:
            try:
                port = values.port(text)
            except ValueError as error:
                self.missing.append(str(error))
                return None
            if isinstance(port, str):
                names.append(port)
            else:
                ranges.append((port.first, port.last))
        if protocol not in values.WITH_PORTS and (ranges or protocol is not None):
            self.missing.append("ports need protocol TCP, UDP or SCTP")
            return None
        return Ports(tuple(sorted(ranges)), tuple(sorted(names)))

    def _peer(self, entity: EntityRule) -> Peer | None:
        try:
            selector = rule_selector(entity, self.namespace)
            not_selector = parse(entity.not_selector) if entity.not_selector else None
            nets = _nets(entity.nets) if entity.nets else None
            not_nets = _nets(entity.not_nets)
        except (MuslinError, ValueError) as error:
            self.missing.append(str(error))
            return None
        return peer(selector, not_selector, nets, not_nets)


def _icmp(icmp: ICMP | None) -> ICMPMatch | None:
    return None if icmp is None or icmp.type is None else ICMPMatch(icmp.type, icmp.code)


def service_of(match: ServiceMatch, namespace: str) -> tuple[str, str]:
    """Namespace and name of the service that a rule of `namespace` means."""
    return match.namespace or namespace, match.name


def _by_protocol(match: Match) -> list[Match]:
    """Named ports of no protocol are ports of every protocol that has some."""
    asked = any(side.ports or side.not_ports for side in (match.source, match.destination))
    if match.protocol is not None or not asked:
        return [match]
    return [replace(match, protocol=number) for number in sorted(values.WITH_PORTS) if number != match.not_protocol]


def _from(match: Match, source: Answering) -> Match:
    return replace(match, source=replace(match.source, peer=peer(None, None, source.addresses, ())))


def _to(match: Match, destination: Answering) -> list[Match]:
    return [
        replace(
            match,
            protocol=protocol,
            destination=Side(
                peer=peer(None, None, nets, ()), ports=Ports(tuple((number, number) for number in numbers))
            ),
        )
        for protocol, numbers, nets in destination.ports
        if protocol != match.not_protocol and match.protocol in (None, protocol)
    ]


def peer(
    selector: Selector | None,
    not_selector: Selector | None,
    nets: tuple[Network, ...] | None,
    not_nets: tuple[Network, ...],
) -> Peer | None:
    """A peer with its canonical text; None when nothing is asked."""
    if selector is None and not_selector is None and nets is None and not not_nets:
        return None
    parts = []
    if selector is not None:
        parts.append(f"is {selector.canonical}")
    if not_selector is not None:
        parts.append(f"is not {not_selector.canonical}")
    if nets is not None:
        parts.append(f"in {','.join(map(str, nets))}")
    if not_nets:
        parts.append(f"not in {','.join(map(str, not_nets))}")
    return Peer(selector=selector, not_selector=not_selector, nets=nets, not_nets=not_nets, text="; ".join(parts))


def _nets(texts: Sequence[str]) -> tuple[Network, ...]:
    nets = {values.loose_network(text) for text in texts}
    return tuple(sorted(nets, key=order))


def convert_rules(
    manifests: Iterable[tuple[int, RuleManifest]], namespace: str, services: Services | None = None
) -> tuple[tuple[Rule, ...], list[str]]:
    """The rules as far as they can be enforced, each under the index it comes with, and what was closed, in words.

    `namespace` is the policy's own, "" for cluster-wide ones; `services` has those that the rules name. None: they are
    not of a policy, and may name none.
    """
    rules: list[Rule] = []
    closed: list[str] = []
    for index, manifest in manifests:
        reading = _Reading(namespace, services)
        surely, possibly = reading.matches(manifest)
        action = manifest.action
        if reading.missing:
            closed.append(f"rule {index} ({action}): {'; '.join(reading.missing)}")
            surely = []
        if action is not Action.DENY:
            rules += [Rule(index, action, match) for match in surely]
        if action is Action.DENY or (action is Action.PASS and (reading.missing or reading.unsure)):
            rules += [Rule(index, Action.DENY, match) for match in possibly]
    return tuple(rules), closed
