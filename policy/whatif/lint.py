"""What in policy is not, or may not be, as it was meant: findings, each with what to do. Nothing is enforced by them.

    snapshot ── convert ──> policies in their tiers ──> what their words say (tiers, shadows, Log)
        │                          └── population ───> what they mean here (selectors, names of ports, prefixes)
        └────── compile ──> tables ──────────────────> rules that decide nothing here

Where there are no endpoints (manifests of a repository) only what holds for any endpoints is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.addr import Network, contains
from core.names import Key
from core.resources import IPPool, Tier, WorkloadEndpoint
from core.resources.policy import BUILT_IN_TIERS, Action, Direction, NetworkPolicySpec, ServiceMatch
from core.snapshot import Snapshot
from policy import drafts
from policy.compile import compile
from policy.convert import Converted, convert, known_to
from policy.doubt import Doubt
from policy.model import Cause, Match, Peer, Plane, Policy, Rule, Side, TierOrder
from policy.rules import service_of
from policy.whatif.findings import Finding
from policy.whatif.population import Population
from policy.whatif.rows import reasons
from policy.whatif.shadows import Shadow, Shadows


def lint(snapshot: Snapshot) -> list[Finding]:
    """Everything there is to say, the gravest first."""
    converted = convert(snapshot, Doubt((), ports=False))
    seen = Population(snapshot)
    found = [*_tiers(snapshot, converted), *_unenforced(converted)]
    unanswered = list(_unanswered(snapshot))
    of_nobody = {each.key for each in unanswered}
    found += unanswered if seen.workloads else ()
    for tier, policies in converted.tiers:
        for policy in policies:
            found += (each for each in _words(tier, policy) if each.code != "isolates" or policy.key not in of_nobody)
            found += _meaning(snapshot, policy, seen)
        found += _shadowed(tier, policies)
    if seen.workloads:
        told = {(each.key, each.path) for each in found}
        found += (each for each in _idle(snapshot, converted, seen) if (each.key, each.path) not in told)
    return sorted(dict.fromkeys(found), key=lambda each: each.sort_key)


def _path(direction: Direction, index: int) -> str:
    return f"spec.{direction.lower()}[{index}]"


def _tiers(snapshot: Snapshot, converted: Converted) -> Iterator[Finding]:
    """Tiers that are named and not there, and those that are there and not named."""
    used = {tier.name for tier, _ in converted.tiers}
    for tier, policies in converted.tiers:
        if tier.missing:
            what = f"there is no tier {tier.name}: the policy is asked after all tiers, and its end denies"
            yield from (Finding("no-such-tier", policy.key, "spec.tier", what) for policy in policies)
    for key in snapshot.of(Tier):
        if key.name not in used and key.name not in BUILT_IN_TIERS:
            yield Finding("empty-tier", key, "", "no policy is in this tier")


def _unenforced(converted: Converted) -> Iterator[Finding]:
    """What conversion had to close; a missing tier has a finding of its own."""
    missing = {policy.key for tier, policies in converted.tiers if tier.missing for policy in policies}
    for key, text in converted.problems.items():
        said = [part for part in text.split("; ") if key not in missing or not part.startswith("there is no tier ")]
        if said:
            yield Finding("not-enforced", key, "", f"cannot be enforced as written: {'; '.join(said)}")


def _unanswered(snapshot: Snapshot) -> Iterator[Finding]:
    """Rules that name a service for which nobody answers: conversion leaves nothing of them."""
    naming = [each for each in drafts.policies(snapshot) if drafts.needs(each).services]
    known = known_to(snapshot, naming).services
    for manifest in naming:
        for direction, index, match in _services(manifest.spec):
            namespace, name = service_of(match, manifest.key.namespace)
            answering = known.of(namespace, name)
            if answering.sure and not answering.addresses:
                what = f"service {namespace}/{name} has no endpoint that is ready"
                yield Finding("service-of-nobody", manifest.key, _path(direction, index), what)


def _services(spec: object) -> Iterator[tuple[Direction, int, ServiceMatch]]:
    """The services that rules name: as source of an ingress rule, as destination of an egress rule."""
    if not isinstance(spec, NetworkPolicySpec):
        return
    for direction, rules in ((Direction.INGRESS, spec.ingress), (Direction.EGRESS, spec.egress)):
        for index, rule in enumerate(rules or ()):
            match = (rule.source if direction is Direction.INGRESS else rule.destination).services
            if match is not None:
                yield direction, index, match


def _words(tier: TierOrder, policy: Policy) -> Iterator[Finding]:
    """What a policy's own rules say by themselves."""
    if tier.default is not Action.DENY or policy.fault or not policy.planes & {Plane.WORKLOAD, Plane.HOST}:
        return
    shut = []
    for direction in sorted(policy.types):
        rules = policy.rules(direction)
        if rules and all(rule.action is Action.LOG for rule in rules):
            what = f"its {direction.lower()} rules only log, so the end of tier {tier.name} denies what it selects"
            yield Finding("only-logs", policy.key, f"spec.{direction.lower()}", what)
        elif not rules:
            shut.append(direction.lower())
    if shut:
        what = f"it isolates what it selects ({' and '.join(shut)}) and allows nothing itself"
        yield Finding("isolates", policy.key, "spec", what)


def _shadowed(tier: TierOrder, policies: Sequence[Policy]) -> Iterator[Finding]:
    shadows = Shadows(policies)
    for direction in Direction:
        yield from (_shadow(tier, each) for each in shadows.found(direction))
    for policy in dict.fromkeys(shadows.left):
        yield Finding("not-compared", policy.key, "", "its rules were too many to compare with all those before them")


def _shadow(tier: TierOrder, shadow: Shadow) -> Finding:
    owner = "" if shadow.by is shadow.policy else f" of {shadow.by.key} in tier {tier.name}"
    before = f"{shadow.direction.lower()} rule {shadow.rule.index} ({shadow.rule.action}: {shadow.rule.match}){owner}"
    what = f"{before} comes first and decides all that it matches"
    if shadow.catch_all and shadow.action is Action.ALLOW:
        code = "after-catch-all"
    else:
        code = "repeated-rule" if shadow.rule.action is shadow.action else "shadowed-rule"
    return Finding(code, shadow.policy.key, _path(shadow.direction, shadow.index), what)


def _meaning(snapshot: Snapshot, policy: Policy, seen: Population) -> Iterator[Finding]:
    """What a policy means among the endpoints and sets that are there."""
    if _could_select(policy, seen) and not any(_selects(policy, seen)):
        yield Finding("selects-nothing", policy.key, "spec.selector", f"no endpoint matches {policy.selector}")
    pools = [pool.spec.network for pool in snapshot.of(IPPool).values()]
    for direction in Direction:
        for index, rules in _by_index(policy.rules(direction)).items():
            path = _path(direction, index)
            for text, code in _of_rule(policy, direction, rules, seen, pools):
                yield Finding(code, policy.key, path, text)


def _could_select(policy: Policy, seen: Population) -> bool:
    """Whether all that it is for is there to be selected: manifests have hosts, and no pods, as often as neither."""
    for_workloads, for_hosts = Plane.WORKLOAD in policy.planes, policy.planes != {Plane.WORKLOAD}
    return bool(seen.workloads if for_workloads else for_hosts and seen.hosts)


def _selects(policy: Policy, seen: Population) -> tuple[bool, bool]:
    """Whether it applies to a workload, and whether to a host."""
    workload, host = seen.selects(policy.selector)
    return workload and Plane.WORKLOAD in policy.planes, host and policy.planes != {Plane.WORKLOAD}


def _by_index(rules: Sequence[Rule]) -> Mapping[int, list[Rule]]:
    found: dict[int, list[Rule]] = defaultdict(list)
    for rule in rules:
        found[rule.index].append(rule)
    return found


def _of_rule(
    policy: Policy, direction: Direction, rules: Sequence[Rule], seen: Population, pools: Sequence[Network]
) -> Iterator[tuple[str, str]]:
    for rule in rules:
        for word, side, own in _sides(rule.match, direction):
            if side.peer is not None and (seen.workloads or seen.sets):
                selector = side.peer.selector
                if selector is not None and not seen.means_any(selector):
                    yield f"its {word} {selector} matches no endpoint and no network set", "peer-matches-nothing"
            yield from ((text, "unknown-port-name") for text in _unnamed(policy, rule.match, side, seen, own=own))
            if side.peer is not None:
                yield from ((text, "prefix-of-pods") for text in _of_pods(side.peer, seen, pools))


def _sides(match: Match, direction: Direction) -> tuple[tuple[str, Side, bool], ...]:
    """Each side with its word, and whether it is that of the endpoints that the policy selects."""
    ingress = direction is Direction.INGRESS
    return ("source", match.source, not ingress), ("destination", match.destination, ingress)


def _unnamed(policy: Policy, match: Match, side: Side, seen: Population, *, own: bool) -> Iterator[str]:
    """Names of ports that nobody who could be meant has."""
    if side.ports is None or match.protocol is None or not seen.workloads + seen.hosts:
        return
    asked = policy.selector if own else side.peer.selector if side.peer is not None else None
    whom = f"what {asked} matches" if asked is not None else "any endpoint"
    for name in side.ports.names:
        if not seen.names((name, match.protocol), asked):
            yield f"no port of {whom} is called {name}"


def _of_pods(peer: Peer, seen: Population, pools: Sequence[Network]) -> Iterator[str]:
    """Prefixes, short of everything, in which pods have or may get addresses."""
    for net in peer.nets or ():
        if net.prefixlen == 0:
            continue
        pool = next((each for each in pools if contains(each, net) or contains(net, each)), None)
        if pool is not None:
            yield f"{net} lies across {pool}, from which pods get addresses"
        elif not pools and seen.has_pods_in(net):
            yield f"{net} holds addresses of pods"


@dataclass(frozen=True, slots=True)
class _Place:
    key: Key
    direction: Direction
    rule: int


def _idle(snapshot: Snapshot, converted: Converted, seen: Population) -> Iterator[Finding]:
    """Rules that apply to a pod of today and are no decision's reason in any table."""
    compiled = compile(snapshot, snapshot.of(WorkloadEndpoint))
    deciding = {
        _Place(reason.policy, reason.direction, reason.rule)
        for reason in reasons(compiled.tables.values())
        if reason.cause is Cause.RULE and reason.policy is not None and reason.rule is not None
    }
    for _, policies in converted.tiers:
        for policy in policies:
            if policy.staged or policy.fault or not _selects(policy, seen)[0]:
                continue
            for direction in sorted(policy.types):
                for index, rules in _by_index(policy.rules(direction)).items():
                    judging = rules[0].action in (Action.ALLOW, Action.DENY)
                    if judging and _Place(policy.key, direction, index) not in deciding:
                        what = "for the endpoints there are now, other rules decide all that it matches"
                        yield Finding("never-decides", policy.key, _path(direction, index), what)
