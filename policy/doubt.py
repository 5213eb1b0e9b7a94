"""What nobody can tell is closed: rules and policies as they must be while something they ask about cannot be told.

An object that cannot be read leaves labels untold, and the addresses that carry them; two pods that claim one address
leave untold whose labels it carries. Every selector then has two readings, what surely and what possibly matches:

    Allow, Log      what surely matches             Deny      what possibly matches
    Pass            what surely matches, then a Deny of what possibly does

Why this never opens: walk these rules beside the rules as they would be if all were known. Where the walk here goes
on, so does the other: a Deny that does not possibly match does not match, and a Pass leaves the tier in both or in
neither. Where it allows, the other allows or has allowed already. A policy that perhaps applies keeps its Denys and
the end of its tier. Where nothing is in doubt, nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from core.resources.policy import Action
from core.selector import Selector
from policy.index import Group, readings
from policy.model import Match, Peer, Policy, ProfileRules, Rule, Side

_D = TypeVar("_D", Policy, ProfileRules)


class Doubt:
    """What cannot be told of `groups`; `ports` says that there are endpoints whose named ports cannot.

    True when there is anything.
    """

    def __init__(self, groups: Iterable[Group], *, ports: bool) -> None:
        self._doubtful = [each for each in groups if each.doubtful]
        self._ports = ports or any(each.ports and not each.sure for each in self._doubtful)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._doubtful)

    def close(self, directed: _D) -> _D:
        """A policy's or a profile's rules, closed."""
        if not self._doubtful:
            return directed
        return replace(directed, ingress=self._rules(directed.ingress), egress=self._rules(directed.egress))

    def _rules(self, rules: Sequence[Rule]) -> tuple[Rule, ...]:
        return tuple(closed for rule in rules for closed in self._closed(rule))

    def _closed(self, rule: Rule) -> list[Rule]:
        sides = (rule.match.source, rule.match.destination)
        if not any(self._about(side) or (self._ports and _names(side)) for side in sides):
            return [rule]
        sure = [] if self._ports and any(side.not_ports and side.not_ports.names for side in sides) else [rule]
        if rule.action in (Action.ALLOW, Action.LOG):
            return sure
        denied = Rule(rule.index, Action.DENY, self._widened(rule.match))
        return [denied] if rule.action is Action.DENY else [*sure, denied]

    def _widened(self, match: Match) -> Match:
        return replace(match, source=self._wide_side(match.source), destination=self._wide_side(match.destination))

    def _wide_side(self, side: Side) -> Side:
        peer, ports, not_ports = side.peer, side.ports, side.not_ports
        if peer is not None and self._about(side):
            peer = replace(peer, possibly=True, text=f"possibly {peer.text}")
        if ports is not None and ports.names and (self._ports or self._about(side)):
            ports = None
        if not_ports is not None and not_ports.names and self._ports:
            not_ports = replace(not_ports, names=()) if not_ports.ranges else None
        return Side(peer=peer, ports=ports, not_ports=not_ports)

    def _about(self, side: Side) -> bool:
        """Whether it is in doubt which addresses `side` means."""
        return side.peer is not None and any(map(self._in_doubt, _selectors(side.peer)))

    def _in_doubt(self, selector: Selector) -> bool:
        known = self._known.get(selector.canonical)
        if known is None:
            known = self._known[selector.canonical] = any(_differ(selector, each) for each in self._doubtful)
        return known


def perhaps(policy: Policy) -> Policy:
    """`policy` for an endpoint that it perhaps applies to: it denies what it could, and allows nothing."""
    return replace(policy, ingress=_denials(policy.ingress), egress=_denials(policy.egress), perhaps=True)


def _denials(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    return tuple(replace(rule, action=Action.DENY) for rule in rules if rule.action in (Action.DENY, Action.PASS))


def _differ(selector: Selector, group: Group) -> bool:
    surely, possibly = readings(selector, group.labels, group.unknown)
    return possibly and not (surely and group.sure)


def _selectors(peer: Peer) -> list[Selector]:
    return [selector for selector in (peer.selector, peer.not_selector) if selector is not None]


def _names(side: Side) -> bool:
    return any(ports is not None and ports.names for ports in (side.ports, side.not_ports))
