"""One manifest rule to one policy rule, closed where it cannot be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core import values
from core.addr import Network, order
from core.errors import MuslinError
from core.resources.policy import ICMP, Action, EntityRule
from core.resources.policy import Rule as RuleManifest
from core.selector import Selector, parse
from policy.model import ICMPMatch, Match, Peer, Ports, Range, Rule, Side
from policy.scope import rule_selector

ICMP_PROTOCOLS = (1, 58)


@dataclass(slots=True)
class _Reading:
    """A rule being read. `missing` are the conditions that nothing here can enforce, in words."""

    namespace: str
    missing: list[str] = field(default_factory=list)

    def match(self, rule: RuleManifest) -> Match:
        protocol = self._protocol(rule.protocol)
        if rule.http is not None:
            self.missing.append("http needs a proxy")
        return Match(
            family=rule.ip_version,
            protocol=protocol,
            not_protocol=self._protocol(rule.not_protocol),
            icmp=self._icmp(rule.icmp, protocol),
            not_icmp=self._icmp(rule.not_icmp, protocol),
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
        if icmp is None or icmp.type is None:
            return None
        if protocol not in ICMP_PROTOCOLS:
            self.missing.append("icmp needs protocol ICMP or ICMPv6")
            return None
        return ICMPMatch(icmp.type, icmp.code)

    def _side(self, entity: EntityRule, protocol: int | None) -> Side:
        if entity.services is not None:
            where = entity.services.namespace or self.namespace or "(no namespace)"
            self.missing.append(f"service {where}/{entity.services.name} is not resolved")
        return Side(
            peer=self._peer(entity),
            ports=self._ports(entity.ports, protocol),
            not_ports=self._ports(entity.not_ports, protocol),
        )

    def _ports(self, ports: Sequence[int | str], protocol: int | None) -> Ports | None:
        if not ports:
            return None
        if protocol not in values.WITH_PORTS:
            self.missing.append("ports need protocol TCP, UDP or SCTP")
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


def convert_rules(manifests: Iterable[tuple[int, RuleManifest]], namespace: str) -> tuple[tuple[Rule, ...], list[str]]:
    """The rules as far as they can be enforced, each under the index it comes with, and what was closed, in words.

    `namespace` is the policy's own, "" for cluster-wide ones.
    """
    rules: list[Rule] = []
    closed: list[str] = []
    for index, manifest in manifests:
        reading = _Reading(namespace)
        match = reading.match(manifest)
        action = manifest.action
        if reading.missing:
            closed.append(f"rule {index} ({action}): {'; '.join(reading.missing)}")
            if action in (Action.ALLOW, Action.LOG):
                continue
            action = Action.DENY
        rules.append(Rule(index, action, match))
    return tuple(rules), closed
