"""Policy as chains that are walked, the way Calico's felix writes them for nftables: what our look-ups stand beside.

A plain rendering of what calico.md section 4 describes, for workloads on the way forward:

    forward ──> FORWARD: clear marks ──> from-wl-dispatch ──> to-wl-dispatch        a verdict map each, by interface
                                           └─> fw-IFACE          └─> tw-IFACE
    endpoint chain   established: return, invalid: drop; a tier after the other; profiles; drop
                       a tier: clear pass; each policy's chain (or each group's) unless passed; accepted: return;
                       at its end drop, unless it passed or the tier's end does
    policy chain     two rules of nft for each of a policy: match and set a bit of the mark; if set, return or drop
                       a rule of several nets takes one more for each net, and one to begin with
    sets             one for each selector, of its members' addresses

Consecutive policies of one tier with the same selector make a group, a chain of its own. Every rule counts. What
belongs to other things than policy (raw, mangle, NAT, host endpoints, comments) is left out, which is in its favour.

It takes only what `bench.many_policies` writes: GlobalNetworkPolicy with selectors, nets, up to 15 ports or ranges;
anything else is a ValueError. Profiles allow all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import groupby
from typing import Final

import msgspec

from core import labels
from core.resources import GlobalNetworkPolicy, Tier, WorkloadEndpoint
from core.resources.policy import BUILT_IN_TIERS, Action, Direction, EntityRule, Rule
from core.selector import parse
from core.snapshot import Snapshot

ACCEPT: Final = 0x10000
PASS: Final = 0x20000
DROP: Final = 0x40000
SCRATCH: Final = 0x80000

_MOST_PORTS: Final = 15
_RETURN_EVERY: Final = 5
_BITS: Final = {Action.ALLOW: ACCEPT, Action.PASS: PASS, Action.DENY: DROP}
_SHORT: Final = {Direction.INGRESS: "i", Direction.EGRESS: "o"}


def render(snapshot: Snapshot, node: str, family: int = 4) -> str:
    """The table for the workloads of `node` as a file for `nft -f`; for IPv4, or with family 6 for IPv6."""
    return _Page(snapshot, family).text(node)


@dataclass(slots=True)
class _Page:
    snapshot: Snapshot
    family: int
    sets: dict[str, str] = field(default_factory=dict)
    chains: dict[str, Sequence[str]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return "ip" if self.family == 4 else "ip6"

    def text(self, node: str) -> str:
        tiers = self._tiers()
        ends: dict[Direction, dict[str, str]] = {direction: {} for direction in Direction}
        for endpoint in self.snapshot.of(WorkloadEndpoint).values():
            if endpoint.spec.node == node:
                for direction in Direction:
                    ends[direction][endpoint.spec.interface_name] = self._endpoint(endpoint, tiers, direction)
        lines = [f"table {self.address} walked {{", *self._sets()]
        for direction, prefix, interface in (
            (Direction.EGRESS, "from", "iifname"),
            (Direction.INGRESS, "to", "oifname"),
        ):
            elements = ", ".join(f'"{name}" : goto {chain}' for name, chain in ends[direction].items())
            lines.append(f"map {prefix}-wl {{ type ifname : verdict; elements = {{ {elements} }}; }}")
            self.chains[f"{prefix}-wl-dispatch"] = (f"{interface} vmap @{prefix}-wl", "counter drop")
        lines += [f"chain {name} {{ {'; '.join(rules)}; }}" for name, rules in self._declared()]
        return "\n".join((*lines, "}", ""))

    def _declared(self) -> Iterable[tuple[str, Sequence[str]]]:
        """Chains, each after those that it names."""
        yield from self.chains.items()
        clear = f"counter meta mark set mark & {_without(ACCEPT | PASS | DROP | SCRATCH)}"
        jumps = (
            'iifname "mus*" counter jump from-wl-dispatch',
            'oifname "mus*" counter jump to-wl-dispatch',
        )
        yield "FORWARD", (clear, *jumps)
        yield (
            "forward",
            (
                "type filter hook forward priority 0",
                "jump FORWARD",
                f"{_has(ACCEPT)} counter accept",
                f"counter meta mark set mark or {ACCEPT:#x}",
            ),
        )

    def _tiers(self) -> list[tuple[str, Action, list[GlobalNetworkPolicy]]]:
        by_tier: dict[str, list[GlobalNetworkPolicy]] = {}
        for policy in self.snapshot.of(GlobalNetworkPolicy).values():
            by_tier.setdefault(policy.spec.tier, []).append(policy)
        found = []
        for name, policies in by_tier.items():
            order, default = BUILT_IN_TIERS.get(name, (math.inf, Action.DENY))
            made = self.snapshot.get(Tier, name)
            if made is not None:
                order = order if made.spec.order is None else made.spec.order
                default = made.spec.default_action or default
            policies.sort(key=lambda each: (_order(each), each.metadata.name))
            found.append((order, name, default, policies))
        return [
            (name, default, policies) for order, name, default, policies in sorted(found, key=lambda tier: tier[:2])
        ]

    def _endpoint(
        self,
        endpoint: WorkloadEndpoint,
        tiers: Iterable[tuple[str, Action, list[GlobalNetworkPolicy]]],
        direction: Direction,
    ) -> str:
        held = labels.workload(self.snapshot, endpoint)
        rules = [
            "ct state related,established counter accept",
            "ct state invalid counter drop",
            f"counter meta mark set mark & {_without(ACCEPT | PASS)}",
        ]
        if direction is Direction.EGRESS:
            rules += ["meta l4proto udp udp dport 4789 counter drop", "meta l4proto 4 counter drop"]
        for _, default, policies in tiers:
            applying = [
                each
                for each in policies
                if direction in (each.spec.types or ()) and parse(each.spec.selector).matches(held)
            ]
            rules += self._tier(applying, default, direction) if applying else ()
        self.chains["profile"] = (f"counter meta mark set mark or {ACCEPT:#x}", f"{_has(ACCEPT)} counter return")
        rules += ["counter jump profile", f"{_has(ACCEPT)} counter return", "counter drop"]
        name = f"{'tw' if direction is Direction.INGRESS else 'fw'}-{endpoint.spec.interface_name}"
        self.chains[name] = rules
        return name

    def _tier(self, policies: Iterable[GlobalNetworkPolicy], default: Action, direction: Direction) -> list[str]:
        rules = [f"counter meta mark set mark & {_without(PASS)}"]
        for _, grouped in groupby(policies, key=lambda each: each.spec.selector):
            names = [self._policy(each, direction) for each in grouped]
            chain = names[0] if len(names) == 1 else self._group(names, direction)
            rules += [f"{_lacks(PASS)} counter jump {chain}", f"{_has(ACCEPT)} counter return"]
        if default is not Action.PASS:
            rules.append(f"{_lacks(PASS)} counter drop")
        return rules

    def _group(self, names: Sequence[str], direction: Direction) -> str:
        rules: list[str] = []
        for position, name in enumerate(names):
            if position and position % _RETURN_EVERY == 0:
                rules.append(f"meta mark & {ACCEPT | PASS:#x} != 0 counter return")
            rules.append(f"{_lacks(ACCEPT | PASS)} counter jump {name}")
        chain = f"g{_SHORT[direction]}-{_digest(' '.join(names))}"
        self.chains[chain] = rules
        return chain

    def _policy(self, policy: GlobalNetworkPolicy, direction: Direction) -> str:
        name = f"p{_SHORT[direction]}-{policy.metadata.name}".replace(".", "/")
        given = policy.spec.ingress if direction is Direction.INGRESS else policy.spec.egress
        if name not in self.chains:
            self.chains[name] = [line for rule in given or () for line in self._rule(rule)]
        return name

    def _rule(self, rule: Rule) -> Iterator[str]:
        _refuse_others(rule)
        match = [f"meta l4proto {str(rule.protocol).lower()}"] if rule.protocol else []
        sides = [
            (side, entity.selector, _nets(entity, self.family), bool(entity.nets))
            for side, entity in (("saddr", rule.source), ("daddr", rule.destination))
        ]
        if any(asked and not nets for _, _, nets, asked in sides):
            return
        for side, selector, nets, _ in sides:
            if selector:
                match.append(f"{self.address} {side} @{self._set(selector)}")
            if len(nets) == 1:
                match.append(f"{self.address} {side} {nets[0]}")
            elif nets:
                yield f"counter meta mark set mark & {_without(SCRATCH)}"
                for net in nets:
                    yield f"{self.address} {side} {net} counter meta mark set mark or {SCRATCH:#x}"
                match.append(_has(SCRATCH))
        for port, entity in (("sport", rule.source), ("dport", rule.destination)):
            if entity.ports:
                match.append(f"{str(rule.protocol).lower()} {port} {_ports(entity.ports)}")
        bit = _BITS[rule.action]
        yield " ".join((*match, f"counter meta mark set mark or {bit:#x}"))
        yield f"{_has(bit)} counter {'drop' if rule.action is Action.DENY else 'return'}"

    def _set(self, selector: str) -> str:
        return self.sets.setdefault(selector, f"cali{self.family}0s-{_digest(selector)}")

    def _sets(self) -> Iterator[str]:
        members = self._members()
        for selector, name in self.sets.items():
            wanted = parse(selector)
            found = ", ".join(address for address, held in members if wanted.matches(held))
            elements = f" elements = {{ {found} }};" if found else ""
            yield f"set {name} {{ type ipv{self.family}_addr;{elements} }}"

    def _members(self) -> list[tuple[str, Mapping[str, str]]]:
        return [
            (str(address), labels.workload(self.snapshot, endpoint))
            for endpoint in self.snapshot.of(WorkloadEndpoint).values()
            for address in endpoint.spec.addresses
            if address.version == self.family
        ]


def _refuse_others(rule: Rule) -> None:
    """ValueError if a rule says anything that is not rendered here."""
    plain = Rule(
        action=rule.action, protocol=rule.protocol, source=_plain(rule.source), destination=_plain(rule.destination)
    )
    several = sum(len(entity.nets) > 1 for entity in (rule.source, rule.destination))
    if rule != plain or rule.action not in _BITS or several > 1:
        raise ValueError(f"the walked rendering has no words for {msgspec.json.encode(rule).decode()}")


def _plain(entity: EntityRule) -> EntityRule:
    return EntityRule(selector=entity.selector, nets=entity.nets, ports=entity.ports)


def _nets(entity: EntityRule, family: int) -> list[str]:
    return [net for net in entity.nets if ip_network(net).version == family]


def _ports(ports: Sequence[int | str]) -> str:
    if len(ports) > _MOST_PORTS:
        raise ValueError(f"the walked rendering takes {_MOST_PORTS} ports a rule, not {len(ports)}")
    texts = [str(port).replace(":", "-") for port in ports]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _order(policy: GlobalNetworkPolicy) -> float:
    return math.inf if policy.spec.order is None else policy.spec.order


def _has(bits: int) -> str:
    return f"meta mark & {bits:#x} == {bits:#x}"


def _lacks(bits: int) -> str:
    return f"meta mark & {bits:#x} == 0"


def _without(bits: int) -> str:
    return f"{0xFFFFFFFF & ~bits:#x}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
